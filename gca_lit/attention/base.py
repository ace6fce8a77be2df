"""The interface between the decoder and an attention backend.

A backend holds settings and makes modules; it has no weights. A backend without retrieval implements `plan` and
`mixer`; one with retrieval sets `chunk_size` and makes retrievers too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from gca_lit.layers import Rotation
from gca_lit.memory.base import ChunkTable, Selection

Past = Any
"""What a mixer carries from one segment to the next; only the mixer that made it looks inside."""


@dataclass(frozen=True)
class Dims:
    """Widths that every layer shares.

    Args:
        width: of the residual stream, M.
        heads: query heads, H.
        kv_heads: key/value heads, J; heads must be a multiple.
        position: how window attention sees order.
        qk_norm: RMS-normalize queries and keys per head.
    """

    width: int = 768
    heads: int = 12
    kv_heads: int = 12
    position: Literal["rotary", "alibi"] = "rotary"
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "heads", "kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"width / heads must be even for rotary positions, got {self.head_width}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class LayerPlan:
    """One layer: rows of its window (None: all before), and its retrieval group (None: it does not retrieve)."""

    window: int | None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention: the window of a layer must be at least 1 row, got {self.window}")


@dataclass(frozen=True)
class View:
    """What a layer sees beside its input, made once per segment and group.

    positions: row numbers since the start of the input, int64 [R].
    rotation: rotary cosine and sine of these positions, or None.
    documents: document number of each row [B, R], or None when rows may look across document ends.
    table, selection: chunk K/V and the slots that index it, for layers with a retrieval group.
    index: what the backend prepares from both, once for all layers of the group.
    block, start: rows per query chunk, and rows of the first one that came before row 0.
    served: [B, R], False where a row belongs to another document than its selection; None when all do.
    prepared: what the layer's own mixer made of it, see `Mixer.prepare`.
    """

    positions: Tensor
    rotation: Rotation | None = None
    documents: Tensor | None = None
    table: ChunkTable | None = None
    selection: Selection | None = None
    index: Any = None
    block: int = 1
    start: int = 0
    served: Tensor | None = None
    prepared: Any = None


class Mixer(nn.Module, ABC):
    """The attention part of one layer, its norm included. Pure: the past given is never changed in place."""

    @abstractmethod
    def empty_past(self, batch_size: int, like: Tensor) -> Past:
        """The past of an input that has not begun, on `like`'s device and in its dtype."""

    def prepare(self, x: Tensor, past: Past, view: View) -> Any:
        """What depends on shapes and documents alone: made outside of compiled layers, it comes in `view.prepared`."""
        return None

    @abstractmethod
    def forward(self, x: Tensor, past: Past, view: View) -> tuple[Tensor, Tensor | None, Past]:
        """x [B, R, M] -> (added to the residual, seen by the MLP alone or None, new past)."""


class AttentionBackend(ABC):
    """Settings of one kind of attention, and the maker of its modules."""

    name: ClassVar[str]
    """What results and figures call it."""
    chunk_size: int | None = None
    """Text tokens of a chunk, C; None for a backend without chunks."""
    max_length: int | None = None
    """Longest input in text tokens; None for no limit."""
    free_settings: ClassVar[tuple[str, ...]] = ("window", "max_length")
    """Settings that may differ from those a checkpoint was trained with."""

    @abstractmethod
    def plan(self, layers: int) -> tuple[LayerPlan, ...]:
        """The layers from bottom to top; those with a retrieval group come last and in the order of their groups."""

    @abstractmethod
    def mixer(self, dims: Dims, plan: LayerPlan) -> Mixer:
        """A new mixer for one layer."""

    def kv_bytes(self, dims: Dims, layers: int, length: int, itemsize: int) -> dict[str, int]:
        """Bytes held for one input of `length` text tokens: "store" (chunk K/V) and "state" (all the rest)."""
        row = 2 * dims.kv_heads * dims.head_width * itemsize
        rows = sum(length if p.window is None else min(length, p.window - 1) for p in self.plan(layers))
        return {"store": 0, "state": rows * row}

    def flops(self, dims: Dims, layers: int, length: int) -> int:
        """Floating-point operations of attention in a forward over `length` text tokens, beside the linear maps.

        A product of [a, b] and [b, c] has 2abc; only pairs that see each other count.
        """
        return 4 * dims.width * sum(seen_pairs(length, p.window) for p in self.plan(layers))

    def describe(self) -> dict[str, Any]:
        """Settings for the log and for results: at least backend, window and k, of settings `window` and `top_k`."""
        window, k = (getattr(self, setting, None) for setting in ("window", "top_k"))
        return {"backend": self.name, "window": window, "k": k, "chunk_size": self.chunk_size}


class RetrievalBackend(AttentionBackend):
    """A backend whose upper layers read chunks: what the decoder needs to encode and to select them."""

    chunk_size: int
    top_k: int
    encoder_layers: int
    landmark_reads: Literal["previous", "own"]
    noise: Literal["gumbel", "none"]
    smear_keys: bool = False
    free_settings = ("window", "max_length", "top_k", "noise", "impl")

    def slope(self) -> nn.Parameter | None:
        """What a doubling of its distance takes from a chunk's score, [1], of one retrieval group; None for nothing."""
        return None

    def index(self, table: ChunkTable, selection: Selection) -> Any:
        """What the mixers of a group share beside the table and its selection; made outside of compiled layers."""
        return None

    @abstractmethod
    def landmark_key(self, dims: Dims) -> nn.Module:
        """Encoded landmark [B, n, M] -> key that retrievers score and memory keeps [B, n, M']."""

    @abstractmethod
    def retriever(self, dims: Dims) -> nn.Module:
        """Residual stream at landmarks [B, n, M] -> query [B, n, M']; its dot product with a key is the score."""


def seen_pairs(rows: int, window: int | None) -> int:
    """Pairs of a row and one that it sees, itself or a row before, among `rows` rows."""
    window = rows if window is None else min(window, rows)
    return window * (window + 1) // 2 + (rows - window) * window
