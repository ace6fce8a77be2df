"""The causal decoder: one forward for training, segmented prefill and token-by-token decoding, for every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from gca_lit.attention.base import AttentionBackend, Dims, LayerPlan, RetrievalBackend
from gca_lit.layers import Init, RMSNorm, initialize
from gca_lit.memory import ChunkMemory, ChunkStore
from gca_lit.model.block import Block, row_view, run_blocks
from gca_lit.model.chunks import ChunkEncoder, Layout
from gca_lit.model.decoding import Decoding
from gca_lit.model.group import Group
from gca_lit.model.loss import cross_entropy
from gca_lit.model.pasts import Pasts, separate
from gca_lit.model.state import ModelState, Step
from gca_lit.model.tail import WindowTail
from gca_lit.model.upper import Documents, UpperHalf

Read = Literal["all", "last", "none"] | slice
KVType = Literal["float32", "bfloat16", "float16"]
GRAPHS = 64
"""Most versions of a compiled part; training, validation and a sweep over lengths take about thirty."""


@dataclass(frozen=True)
class DecoderConfig(Dims):
    """Size and shape of the decoder; the defaults are the paper's size.

    Args:
        layers: decoder layers.
        mlp_width: hidden width of the SwiGLU MLPs.
        tie_embeddings: use the token embedding as the output head.
        init: "normal" (std 0.02, the paper) or "fan_in" (0.5 / sqrt(fan in), embeddings 0.5, logits / sqrt(M)).
        gradient_checkpointing: recompute each layer in the backward pass.
        kv_dtype: type in which chunk K/V are kept and read; null for the type they are computed in.
    """

    layers: int = 12
    mlp_width: int = 2048
    tie_embeddings: bool = True
    init: Init = "normal"
    gradient_checkpointing: bool = False
    kv_dtype: KVType | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Decoder(nn.Module):
    """Embedding, layers as the backend plans them, final norm and head.

    Lower layers run on every row. The layers above run only where an output is read: with a retrieval backend those
    that retrieve, behind the chunk encoder; otherwise the window layers above the last layer that sees everything.
    """

    def __init__(self, config: DecoderConfig, attention: AttentionBackend, vocab_size: int) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        self.config, self.attention, self.vocab_size = config, attention, vocab_size
        plan = attention.plan(config.layers)
        blocks = [Block(attention.mixer(config, p), config.width, config.mlp_width) for p in plan]
        lower = _always_run(plan)
        self.embed = nn.Embedding(vocab_size, config.width)
        self.lower = nn.ModuleList(blocks[:lower])
        self.landmark: nn.Parameter | None = None
        self.upper: UpperHalf | WindowTail
        if isinstance(attention, RetrievalBackend):
            kv_dtype = None if config.kv_dtype is None else getattr(torch, config.kv_dtype)
            key = attention.landmark_key(config)
            encoder = ChunkEncoder(
                config, config.mlp_width, attention.encoder_layers, key, kv_dtype, attention.smear_keys
            )
            self.landmark = nn.Parameter(torch.empty(config.width))
            self.upper = UpperHalf(
                config, attention, blocks[lower:], plan[lower:], encoder, config.gradient_checkpointing
            )
        else:
            reach = sum(p.window or 0 for p in plan[lower:])
            self.upper = WindowTail(config, blocks[lower:], reach, config.gradient_checkpointing)
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self.decoding = Decoding(self)
        self.logit_scale = 1.0 if config.init == "normal" else 1 / math.sqrt(config.width)
        initialize(self, config.init)
        if self.landmark is not None:
            nn.init.normal_(self.landmark, std=0.02 if config.init == "normal" else 0.5)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile layers, chunk encoder and loss, each as one whole graph; store, memory and retrieval stay out.

        Parts of one shape share their code: it is compiled for the first row length, once more for all others, and the
        same for evaluation and for segments. The weights keep their names. A part that cannot be compiled whole, or is
        compiled more than GRAPHS times, raises where it is called.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        for part in self._parts():
            part.compile(fullgraph=True, backend=backend)
        self.token_loss = torch.compile(  # type: ignore[method-assign]
            self.token_loss, fullgraph=True, dynamic=True, backend=backend
        )

    def shard_parts(self, mesh: DeviceMesh) -> None:
        """Divide the weights over `mesh` (FSDP2): each layer and the chunk encoder is gathered when it runs.

        Raises ValueError for a mesh that divides anything else than rows.
        """
        if (ranks := mesh["data_parallel"].size()) < mesh.size():
            raise ValueError(
                f"ModelParallelStrategy would divide rows over {ranks} of {mesh.size()} processes: set "
                f"data_parallel_size to {mesh.size()} and tensor_parallel_size to 1"
            )
        mesh = mesh["data_parallel"]
        for part in self._parts():
            fully_shard(part, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer: matrices, embeddings (the output head is one), and vectors, which do not decay."""
        named = dict(self.named_parameters())
        tables = {"embed.weight", "head.weight"}
        return [
            {"name": "matrices", "params": [p for name, p in named.items() if p.ndim >= 2 and name not in tables]},
            {"name": "embeddings", "params": [p for name, p in named.items() if name in tables]},
            {"name": "vectors", "params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
        ]

    def new_state(self, batch_size: int, store: ChunkStore | None) -> ModelState:
        """The state of inputs that have not begun. `store` is emptied; without one no chunk is kept."""
        like = torch.empty(0, dtype=self.embed.weight.dtype, device=self.embed.weight.device)
        nothing = like.new_empty(batch_size, 0, self.config.width)
        lower = [cast(Block, block).mixer.empty_past(batch_size, like) for block in self.lower]
        memory = None
        if store is not None and isinstance(self.upper, UpperHalf):
            store.reset()
            memory = ChunkMemory(store)
        return ModelState(
            position=0,
            pasts=(*lower, *self.upper.empty_pasts(batch_size, like)),
            pending=(),
            deferred=nothing,
            carried=self.upper.no_selections(batch_size, like) if isinstance(self.upper, UpperHalf) else (),
            memory=memory,
        )

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        read: Read = "all",
        documents: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Step:
        """Run the next segment of a batch of inputs.

        Args:
            tokens: int64 [B, T], the text tokens that follow `state`.
            state: what the segments before left; None for a whole input of which nothing is kept (training).
            read: text tokens of the segment whose hidden states are wanted. With less than "all", the upper layers run
                only as far back as the tokens read can see.
            documents: document number of each token, int64 [B, T]: window and retrieval stop at document ends. Only
                for whole inputs.
            noise: a number of each row, int64 [B], that seeds the retrieval noise; used in training mode only.

        Raises:
            ValueError: tokens of a wrong shape, or another batch size than the state; documents together with a state;
                a state that keeps no chunks or was used before.
        """
        given = state is not None
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must be [B, T] with at least one token, got shape {tuple(tokens.shape)}")
        if state is None:
            state = self.new_state(len(tokens), None)
        elif documents is not None:
            raise ValueError("documents can only be given for a whole input, without a state")
        elif len(state.deferred) != len(tokens):
            raise ValueError(f"tokens must be [{len(state.deferred)}, T] for this state, got {tuple(tokens.shape)}")
        elif isinstance(self.upper, UpperHalf) and state.memory is None:
            raise ValueError("the state keeps no chunks: make it with a store, new_state(batch_size, HostStore())")
        layout = Layout(state.position, tokens.shape[1], self.attention.chunk_size)
        wanted = _wanted(read, layout.tokens)
        if state.memory is not None and state.memory.count != layout.first_chunk:
            raise ValueError(
                f"the state has read {layout.first_chunk} chunks and its memory holds {state.memory.count}: another "
                "step took it before; go on with what that returned, or make another state with a store of its own"
            )
        if given and noise is None and self.decoding.takes(layout, wanted, state):
            return self.decoding.step(tokens, state, layout)

        x = self.embed(tokens)
        if self.landmark is not None:
            x = layout.spread(x, self.landmark)
        spans = None if documents is None else Documents(documents, layout.row_documents(documents))
        view = row_view(layout.first_row, x, self.config, None if spans is None else spans.rows)
        lower, upper = self.halves(state.pasts)
        x, lower = run_blocks(self.lower, lower, x, view, self.config.gradient_checkpointing)
        selections, first_chunk = (), 0
        if isinstance(self.upper, WindowTail):
            hidden, upper, state = self.upper(x, upper, layout, state, wanted, view)
        else:
            hidden, upper, selections, first_chunk, state = self.upper(
                x, upper, layout, state, wanted, view, spans, noise if self.training else None
            )
        state = replace(state, position=state.position + layout.tokens, pasts=(*lower, *separate(upper)))
        return Step(self.norm(hidden), selections, first_chunk, state)

    def halves(self, pasts: Pasts) -> tuple[Pasts, Pasts]:
        """Those of the lower layers and of the upper ones."""
        return pasts[: len(self.lower)], pasts[len(self.lower) :]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., M] -> [..., V]."""
        return self.head(hidden) * self.logit_scale

    def flops(self, length: int) -> int:
        """Floating-point operations of one forward that reads all of an input of `length` text tokens.

        Those of linear maps and of attention, see `AttentionBackend.flops`; the backward has twice as many.
        """
        layout = Layout(0, length, self.attention.chunk_size)
        blocks = sum(_weights(part) for part in self.modules() if isinstance(part, Block))
        maps = layout.rows * blocks + length * _weights(self.head)
        if isinstance(self.upper, UpperHalf):
            encoder = self.upper.encoder
            of_chunk = layout.block * _weights(encoder.layers) + (layout.block - 1) * _weights(encoder.kv)
            of_chunk += _weights(encoder.landmark_key)
            of_chunk += sum(_weights(cast(Group, group).retriever) for group in self.upper.groups)
            maps += layout.chunks * of_chunk
        return 2 * maps + self.attention.flops(self.config, self.config.layers, length)

    def token_loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `loss.TokenLoss`."""
        return cross_entropy(self.logits(hidden), targets)

    def _parts(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, Block | ChunkEncoder)]


def _weights(module: nn.Module) -> int:
    """Weights of all linear maps in `module`, sharded ones too."""
    return sum(part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))


def _always_run(plan: tuple[LayerPlan, ...]) -> int:
    """How many layers, from the bottom, see everything or stand below one that does, or below the chunk encoder."""
    if any(p.group is not None for p in plan):
        return sum(p.group is None for p in plan)
    return max((number for number, p in enumerate(plan, 1) if p.window is None), default=0)


def _wanted(read: Read, tokens: int) -> tuple[int, int]:
    """[first, last) of the text tokens that `read` names."""
    if read == "all":
        return 0, tokens
    if read == "last":
        return tokens - 1, tokens
    if read == "none":
        return 0, 0
    if not isinstance(read, slice):
        raise ValueError(f'read must be "all", "last", "none" or a slice, got {read!r}')
    first, last, step = read.indices(tokens)
    if step != 1:
        raise ValueError(f"read must be a slice without a step, got {read!r}")
    return first, max(first, last)
