"""Chunks: where landmarks stand among the rows, and the encoder that turns a chunk into landmark key, K and V."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gca_lit.attention.base import Dims
from gca_lit.layers import QKV, RMSNorm, Rotation, SwiGLU, rotation
from gca_lit.memory.base import ChunkTable


@dataclass(frozen=True)
class Layout:
    """Where the tokens and landmarks of a segment stand.

    A chunk of C text tokens and its landmark make a block of C + 1 rows; an incomplete chunk has no landmark.

    Args:
        position: text tokens before the segment.
        tokens: text tokens of the segment, T.
        chunk_size: C, or None when there are no landmarks.
    """

    position: int
    tokens: int
    chunk_size: int | None

    @property
    def block(self) -> int:
        return 1 if self.chunk_size is None else self.chunk_size + 1

    @property
    def first_row(self) -> int:
        """Rows before the segment."""
        return self.position + self._landmarks_before(self.position)

    @property
    def rows(self) -> int:
        """Rows of the segment, R."""
        return self.row_of(self.tokens) - self.first_row

    @property
    def first_chunk(self) -> int:
        """Whole chunks before the segment."""
        return self._landmarks_before(self.position)

    @property
    def begins_chunk(self) -> bool:
        """Whether a landmark stands right before the segment."""
        return self.chunk_size is not None and self.position > 0 and self.position % self.chunk_size == 0

    @property
    def chunks(self) -> int:
        """Chunks that the segment completes, n."""
        return self._landmarks_before(self.position + self.tokens) - self.first_chunk

    def row_of(self, token: int) -> int:
        """Row, since the start of the input, of the segment's text token number `token`."""
        return self.position + token + self._landmarks_before(self.position + token)

    def text_rows(self, device: torch.device) -> Tensor:
        """Row in the segment of each text token, int64 [T]."""
        token = torch.arange(self.position, self.position + self.tokens, device=device)
        landmarks = 0 if self.chunk_size is None else token // self.chunk_size
        return token + landmarks - self.first_row

    def text_of(self, rows: Tensor, first_row: int, wanted: tuple[int, int]) -> Tensor:
        """Text tokens [first, last) of the segment [B, n, M], from `rows` [B, R', M] that begin at `first_row`."""
        first, last = wanted
        begin = self.row_of(first) - first_row
        if first == last or self.row_of(last - 1) - self.row_of(first) == last - 1 - first:  # no landmark between them
            return rows[:, begin : begin + last - first]
        return rows[:, self.text_rows(rows.device)[first:last] + (self.first_row - first_row)]

    def spread(self, text: Tensor, landmark: Tensor) -> Tensor:
        """Rows [B, R, M] from the embedded text [B, T, M] with `landmark` [M] behind each completed chunk."""
        if self.rows == self.tokens and not torch.is_grad_enabled():
            return text
        rows = landmark.expand(len(text), self.rows, -1).to(text.dtype)
        return rows.index_copy(1, self.text_rows(text.device), text)

    def row_documents(self, documents: Tensor) -> Tensor:
        """Document of each row [B, R] from that of each token [B, T]; a landmark has its last token's."""
        is_text = torch.zeros(self.rows, dtype=torch.long, device=documents.device)
        is_text[self.text_rows(documents.device)] = 1
        return documents[:, is_text.cumsum(0) - 1]

    def _landmarks_before(self, token: int) -> int:
        return 0 if self.chunk_size is None else token // self.chunk_size


class EncodedChunks(NamedTuple):
    """landmarks: keys that retrievers score, [B, n, M'], in the type of K and V; table: K and V of the C text rows."""

    landmarks: Tensor
    table: ChunkTable


class ChunkEncoder(nn.Module):
    """Bidirectional layers over each block alone; one K and V for all upper layers.

    Args:
        dims: widths.
        mlp_width: hidden width of the MLPs.
        layers: encoder layers.
        landmark_key: encoded landmark -> retrieval key.
        kv_dtype: type in which K, V and landmarks are kept and read; None for the type K and V are computed in.
        smear_keys: smear the keys, before their norm.
    """

    def __init__(
        self,
        dims: Dims,
        mlp_width: int,
        layers: int,
        landmark_key: nn.Module,
        kv_dtype: torch.dtype | None,
        smear_keys: bool = False,
    ) -> None:
        super().__init__()
        self.dims, self.kv_dtype = dims, kv_dtype
        self.norm_in = RMSNorm(dims.width)
        self.layers = nn.ModuleList(EncoderLayer(dims, mlp_width) for _ in range(layers))
        self.norm_out = RMSNorm(dims.width)
        self.landmark_key = landmark_key
        with torch.no_grad():
            self.key_width = landmark_key(torch.zeros(1, 1, dims.width)).shape[-1]
        self.kv = nn.Linear(dims.width, 2 * dims.kv_heads * dims.head_width, bias=False)
        self.smear = Smear(dims.kv_heads) if smear_keys else nn.Identity()
        self.k_norm = RMSNorm(dims.head_width) if dims.qk_norm else nn.Identity()

    def rotation(self, blocks: Tensor) -> Rotation:
        """Of the rows of blocks [B, n, C + 1, M].

        It is made outside of the compiled `forward`, which would take the angles in fp64 again for every element.
        """
        return _inside_block(blocks.shape[2], self.dims.head_width, blocks.dtype, blocks.device)

    def forward(self, blocks: Tensor, turn: Rotation) -> EncodedChunks:
        """blocks: lower hidden states of whole blocks [B, n, C + 1, M], the landmark's row last; turn: `rotation`."""
        B, n = blocks.shape[:2]
        x = self.norm_in(blocks.flatten(0, 1))
        for layer in self.layers:
            x = layer(x, turn)
        x = self.norm_out(x).unflatten(0, (B, n))
        k, v = self.kv(x[:, :, :-1]).unflatten(-1, (2, -1, self.dims.head_width)).unbind(-3)
        k = self.k_norm(self.smear(k))
        if self.kv_dtype is not None:
            k, v = k.to(self.kv_dtype), v.to(self.kv_dtype)
        return EncodedChunks(self.landmark_key(x[:, :, -1]).to(k.dtype), ChunkTable(k, v))

    def nothing(self, x: Tensor, rows: int) -> EncodedChunks:
        """What becomes of no chunk, cheaply; x [B, R, M] gives batch size, type and device, `rows` those of a chunk."""
        computed = nn.functional.linear(x[:, :0], x.new_empty(1, x.shape[-1])).dtype  # what autocast makes of x's type
        dtype = computed if self.kv_dtype is None else self.kv_dtype
        none = x.new_empty(len(x), 0, rows, self.dims.kv_heads, self.dims.head_width, dtype=dtype)
        return EncodedChunks(none.new_empty(len(x), 0, self.key_width), ChunkTable(none, none))


@lru_cache(maxsize=64)
def _inside_block(rows: int, head_width: int, dtype: torch.dtype, device: torch.device) -> Rotation:
    with torch.inference_mode(False):  # one first made in evaluation serves training too
        return rotation(torch.arange(rows, device=device), head_width, dtype)


class Smear(nn.Module):
    """The keys of a chunk, each a mean with the key before it: "smeared keys" (Olsson and others, In-context Learning
    and Induction Heads, 2022).

    k_i becomes (1 - s) k_i + s k_(i-1), s a learned share per head that starts at 1/2; the first key stays. A query
    that carries a token then matches the one behind an earlier occurrence, and one layer can copy.
    """

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(kv_heads))

    def forward(self, k: Tensor) -> Tensor:
        """k [B, n, C, J, D] -> the same, computed in the type of the share or a wider one."""
        before = torch.cat((k[:, :, :1], k[:, :, :-1]), 2)
        return (k + self.logit.sigmoid()[:, None] * (before - k)).to(k.dtype)


class EncoderLayer(nn.Module):
    """Attention over all rows of a block, rotary positions inside the block, and an MLP."""

    def __init__(self, dims: Dims, mlp_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dims.width)
        self.qkv = QKV(dims.width, dims.heads, dims.kv_heads, dims.head_width, dims.qk_norm)
        self.out = nn.Linear(dims.width, dims.width, bias=False)
        self.mlp_norm = RMSNorm(dims.width)
        self.mlp = SwiGLU(dims.width, mlp_width)

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        q, k, v = self.qkv(self.norm(x), turn)
        mixed = nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), enable_gqa=q.shape[2] != k.shape[2]
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))
