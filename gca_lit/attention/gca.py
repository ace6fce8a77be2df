"""Grouped cross attention (arXiv 2410.01651): window attention below, learned retrieval of chunks above."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gca_kernels import GCAIndex, gca_attention, gca_index
from gca_lit.attention.base import Dims, LayerPlan, Mixer, RetrievalBackend, View, seen_pairs
from gca_lit.attention.self_attention import KV, SelfAttention
from gca_lit.layers import RMSNorm
from gca_lit.memory.base import ChunkTable, Selection

Score = Literal["dot", "cosine"]
Residual = Literal["bypass", "add"]
LandmarkReads = Literal["previous", "own"]
Noise = Literal["gumbel", "none"]


class GroupedCrossAttention(RetrievalBackend):
    """Lower layers see a window; upper layers see a window and, by grouped cross attention, the selected chunks.

    The defaults are the paper's.

    Args:
        chunk_size: text tokens of a chunk, C; a block has C + 1 rows, its landmark is the last.
        window: rows that a layer's self-attention sees; at least two blocks, else some rows could never be seen.
        top_k: chunks selected per query chunk, K. With K = 1 the retriever gets no gradient.
        groups: retrieval groups; each selects once, for an equal share of the upper layers.
        lower_layers: layers below the chunk encoder; None for half of them.
        encoder_layers: bidirectional layers of the chunk encoder.
        score: "dot" of the normed query and key / sqrt(M), or "cosine" with a learned scale that starts at 8.
        retrieval_width: width of learned projections of query and key before the score; None for no projections.
        residual: "bypass" shows what was read to the MLP alone, "add" adds it to the residual stream.
        softmax_offset: n in exp(s) / (n + sum exp(s)) inside a chunk; 1 lets a row read nothing.
        landmark_reads: selection that serves a landmark's own row: the one its block has ("previous"), or its "own".
        smear_keys: move each key of a chunk towards that of the token before it, by a learned share per key/value head
            (see `model.chunks.Smear`): a row that asks for a token then reads the one behind it.
        recency: each retrieval group learns a slope, which starts at 0, and takes slope * log2(distance) from a score:
            a doubling of the distance costs the slope. The distance of chunk j from the landmark of chunk i is i - j
            chunks: 1 for the nearest that it can select, which costs nothing.
        noise: Gumbel noise on the scores while choosing, in training only.
        impl: implementation of the attention operation.
    """

    name = "gca"

    def __init__(
        self,
        chunk_size: int = 63,
        window: int = 512,
        top_k: int = 8,
        groups: int = 1,
        lower_layers: int | None = None,
        encoder_layers: int = 2,
        score: Score = "dot",
        retrieval_width: int | None = None,
        residual: Residual = "bypass",
        softmax_offset: float = 0.0,
        landmark_reads: LandmarkReads = "previous",
        smear_keys: bool = False,
        recency: bool = False,
        noise: Noise = "gumbel",
        impl: Literal["auto", "reference", "triton"] = "auto",
    ) -> None:
        counts = {"chunk_size": chunk_size, "top_k": top_k, "groups": groups, "encoder_layers": encoder_layers}
        for setting, value in counts.items():
            if value < 1:
                raise ValueError(f"GroupedCrossAttention: {setting} must be at least 1, got {value}")
        if window < 2 * (chunk_size + 1):
            raise ValueError(
                f"GroupedCrossAttention: window {window} leaves a blind gap: it must cover two blocks, "
                f"2 * (chunk_size + 1) = {2 * (chunk_size + 1)} rows"
            )
        for setting, given, known in (
            ("score", score, Score),
            ("residual", residual, Residual),
            ("landmark_reads", landmark_reads, LandmarkReads),
            ("noise", noise, Noise),
        ):
            if given not in get_args(known):
                raise ValueError(f"GroupedCrossAttention: {setting} must be one of {get_args(known)}, got {given!r}")
        if softmax_offset < 0:
            raise ValueError(f"GroupedCrossAttention: softmax_offset must not be negative, got {softmax_offset}")
        if top_k == 1:
            warnings.warn(
                "GroupedCrossAttention: top_k = 1 gives the retriever no gradient: use 2 or more", stacklevel=2
            )
        self.chunk_size, self.window, self.top_k = chunk_size, window, top_k
        self.groups, self.lower_layers, self.encoder_layers = groups, lower_layers, encoder_layers
        self.score, self.retrieval_width, self.residual = score, retrieval_width, residual
        self.softmax_offset, self.landmark_reads = softmax_offset, landmark_reads
        self.smear_keys, self.recency = smear_keys, recency
        self.noise, self.impl = noise, impl

    def plan(self, layers: int) -> tuple[LayerPlan, ...]:
        lower = layers // 2 if self.lower_layers is None else self.lower_layers
        upper = layers - lower
        if not 0 < lower < layers or upper % self.groups:
            raise ValueError(
                f"GroupedCrossAttention: {layers} layers with {lower} lower ones leave {upper} upper layers, "
                f"which must be a positive multiple of groups = {self.groups}"
            )
        groups = [i * self.groups // upper for i in range(upper)]
        return (LayerPlan(self.window),) * lower + tuple(LayerPlan(self.window, g) for g in groups)

    def mixer(self, dims: Dims, plan: LayerPlan) -> Mixer:
        if plan.group is None:
            return SelfAttention(dims, plan.window)
        return GCAMixer(dims, self)

    def landmark_key(self, dims: Dims) -> nn.Module:
        return Projection(dims.width, self.retrieval_width, normalize=self.score == "cosine")

    def retriever(self, dims: Dims) -> nn.Module:
        return Retriever(dims.width, self.retrieval_width, self.score)

    def slope(self) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(1)) if self.recency else None

    def index(self, table: ChunkTable, selection: Selection) -> GCAIndex | None:
        """The inverse index that the backward kernels read; the reference needs none."""
        if not torch.is_grad_enabled() or self.impl == "reference" or not table.k.is_cuda:
            return None
        return gca_index(selection.ids, table.k.shape[1])

    def kv_bytes(self, dims: Dims, layers: int, length: int, itemsize: int) -> dict[str, int]:
        chunks = length // self.chunk_size
        row = 2 * dims.kv_heads * dims.head_width * itemsize
        state = super().kv_bytes(dims, layers, length, itemsize)["state"]
        landmarks = chunks * (self.retrieval_width or dims.width) * itemsize
        return {"store": chunks * self.chunk_size * row, "state": state + landmarks}

    def flops(self, dims: Dims, layers: int, length: int) -> int:
        chunks, rest = divmod(length, self.chunk_size)
        block, plan = self.chunk_size + 1, self.plan(layers)
        sizes = [block] * chunks + [rest]
        read = self.chunk_size * sum(rows * min(self.top_k, max(0, at - 1)) for at, rows in enumerate(sizes))
        pairs = len(plan) * seen_pairs(length + chunks, self.window) + sum(p.group is not None for p in plan) * read
        pairs += self.encoder_layers * chunks * block**2
        scores = self.groups * chunks * (chunks - 1) // 2
        return 4 * dims.width * pairs + 2 * (self.retrieval_width or dims.width) * scores


class GCAMixer(Mixer):
    """Window attention, then attention to the selected chunks with queries taken behind it."""

    def __init__(self, dims: Dims, settings: GroupedCrossAttention) -> None:
        super().__init__()
        self.dims, self.settings = dims, settings
        self.local = SelfAttention(dims, settings.window)
        self.norm = RMSNorm(dims.width)
        self.q = nn.Linear(dims.width, dims.width, bias=False)
        self.q_norm = RMSNorm(dims.head_width) if dims.qk_norm else nn.Identity()
        self.out = nn.Linear(dims.width, dims.width, bias=False)

    def empty_past(self, batch_size: int, like: Tensor) -> KV:
        return self.local.empty_past(batch_size, like)

    def prepare(self, x: Tensor, past: KV, view: View) -> Any:
        return self.local.prepare(x, past, view)

    def forward(self, x: Tensor, past: KV, view: View) -> tuple[Tensor, Tensor | None, KV]:
        local, _, past = self.local(x, past, view)
        read = self.out(self._read(x + local, view).flatten(2))
        if self.settings.residual == "bypass":
            return local, read, past
        return local + read, None, past

    def _read(self, x: Tensor, view: View) -> Tensor:
        assert view.table is not None and view.selection is not None
        q = self.q_norm(self.q(self.norm(x)).unflatten(-1, (-1, self.dims.head_width)))
        read = gca_attention(
            q,
            view.table.k.to(q.dtype),
            view.table.v.to(q.dtype),
            view.selection.ids,
            view.selection.weights,
            block=view.block,
            start=view.start,
            softmax_offset=self.settings.softmax_offset,
            impl=self.settings.impl,
            index=view.index,
        )
        return read if view.served is None else read * view.served[:, :, None, None]


class Projection(nn.Module):
    """An optional linear map, then an optional scaling to unit length."""

    def __init__(self, width: int, projected: int | None, normalize: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, projected, bias=False) if projected else nn.Identity()
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return F.normalize(x, dim=-1) if self.normalize else x


class Retriever(nn.Module):
    """The query of a retrieval group: norm, optional projection, and the scale of the score."""

    def __init__(self, width: int, projected: int | None, score: Score) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.project = Projection(width, projected, normalize=score == "cosine")
        self.scale: nn.Parameter | float
        if score == "cosine":
            self.scale = nn.Parameter(torch.tensor([8.0]))  # FSDP divides no plain numbers
        else:
            self.scale = (projected or width) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x)) * self.scale

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """A scale that was saved as a plain number is taken too."""
        if (scale := state_dict.get(f"{prefix}scale")) is not None:
            state_dict[f"{prefix}scale"] = scale.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *rest)
