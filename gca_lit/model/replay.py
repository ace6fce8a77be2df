"""A function of tensors as one CUDA graph: the host starts it once, however many kernels it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Replayed:
    """Calls `function`, and replays it as a CUDA graph once the same shapes come twice in a row. Where something then
    lies elsewhere it is captured anew at once.

    Without gradients, on a CUDA device and with whole weights only; otherwise, and while shapes change, it is an
    ordinary call. Results are copies: they never change afterwards.

    Args:
        function: of nested tuples of tensors, to nested tuples of tensors. What it does depends on their shapes alone;
            it changes nothing, and on a CUDA device it does not wait for the device.
        module: has all the weights that it reads. They may change, and be replaced.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function, self._weights = function, Weights(module)
        self._seen: Hashable = None
        self._graph: Graph | None = None

    def __call__(self, *inputs: Any, held: tuple[Any, ...] = ()) -> Any:
        """held: handed to `function` by that name. Tensors in it are read where they lie: their values may change, not
        their place. Of anything else in it another value makes another graph."""
        function = partial(self._function, held=held) if held else self._function
        leaves: list[Any] = []
        structure = _flatten(inputs, leaves)
        if not _can_replay(leaves):
            return function(*inputs)
        weights = self._weights.addresses()
        shapes, seen = _shapes(leaves, structure), self._seen
        self._seen = shapes
        key = shapes, _places(held), weights
        if self._graph is None or self._graph.key != key:
            if weights is None or shapes != seen:
                return function(*inputs)
            self._graph = None  # gives its memory back first
            self._graph = Graph.capture(function, key, leaves, structure)
        return self._graph.replay(leaves)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a network, or a pickle of it, captures anew."""
        return self.__dict__ | {"_seen": None, "_graph": None}


class Weights:
    """Where the parameters and buffers of a module lie."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._holders: list[dict[str, Any]] = []
        self._held: list[Any] = []
        self._tensors: list[Tensor] = []
        self._divided = False

    def addresses(self) -> tuple[int, ...] | None:
        """None where they are divided among processes. Asked for every token: no loop of it is in Python."""
        held = list(chain.from_iterable(map(dict.values, self._holders)))
        if not held or len(held) != len(self._held) or not all(map(is_, held, self._held)):
            self._look()
        return None if self._divided else tuple(map(Tensor.data_ptr, self._tensors))

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self._module, "_holders": [], "_held": [], "_tensors": [], "_divided": False}

    def _look(self) -> None:
        every = [held for m in self._module.modules() for held in (m._parameters, m._buffers, m._modules)]
        self._holders = [held for held in every if held]
        self._held = [one for holder in self._holders for one in holder.values()]
        self._tensors = [one for one in self._held if isinstance(one, Tensor)]
        self._divided = any(isinstance(weight, DTensor) for weight in self._tensors)


class Graph(NamedTuple):
    """One captured call: its key, the graph, and the tensors that it reads and writes, with those of one type."""

    key: Hashable
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]
    structure: Any
    inputs_by_type: list[list[int]]
    outputs_by_type: list[list[int]]

    @classmethod
    def capture(cls, function: Callable[..., Any], key: Hashable, leaves: Sequence[Tensor], structure: Any) -> Graph:
        device = leaves[0].device
        with torch.inference_mode(False):
            inputs = _room(leaves)
        inputs_by_type = _by_type(inputs)
        _copy(inputs, leaves, inputs_by_type)
        stream, current = _side_stream(device), torch.cuda.current_stream(device)
        graph, outputs = torch.cuda.CUDAGraph(), list[Tensor]()
        stream.wait_stream(current)
        with _no_cast_kept(), torch.cuda.stream(stream):
            function(*_unflatten(structure, iter(inputs)))  # compiles what it has to, and makes room for the libraries
            # other threads may make pinned memory meanwhile; torch.cuda.graph would empty the allocator's cache first
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                given = _flatten(function(*_unflatten(structure, iter(inputs))), outputs)
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return cls(key, graph, inputs, outputs, given, inputs_by_type, _by_type(outputs))

    def replay(self, leaves: Sequence[Tensor]) -> Any:
        _copy(self.inputs, leaves, self.inputs_by_type)
        self.graph.replay()
        results = _room(self.outputs)
        _copy(results, self.outputs, self.outputs_by_type)
        return _unflatten(self.structure, iter(results))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: the matrix libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_cast_kept() -> Iterator[None]:
    """Autocast casts weights at every use: a graph neither reads what it cast before nor leaves anything behind."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _can_replay(leaves: Sequence[Any]) -> bool:
    on_device = bool(leaves) and all([isinstance(x, Tensor) and x.is_cuda for x in leaves])
    busy = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return on_device and not busy and not torch.cuda.is_current_stream_capturing()


def _shapes(leaves: Sequence[Tensor], structure: Hashable) -> Hashable:
    """What the work on `leaves` depends on."""
    device = leaves[0].device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shapes = tuple([(x.shape, x.dtype, x.device) for x in leaves])
    return structure, shapes, cast, torch.get_float32_matmul_precision()


def _places(held: tuple[Any, ...]) -> Hashable:
    """Where tensors lie, and the values of the rest."""
    parts: list[Any] = []
    structure = _flatten(held, parts)
    places = [(x.data_ptr(), x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in parts]
    return structure, tuple(places)


def _flatten(tree: Any, leaves: list[Any]) -> Any:
    """Append what is no tuple in `tree` to `leaves` -> how it was nested."""
    if isinstance(tree, tuple):
        return type(tree), *[_flatten(part, leaves) for part in tree]
    leaves.append(tree)
    return None


def _unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return next(leaves)
    kind, *parts = structure
    made = [_unflatten(part, leaves) for part in parts]
    return tuple(made) if kind is tuple else kind(*made)


def _room(like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


def _by_type(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the tensors of each type."""
    types = dict.fromkeys(x.dtype for x in tensors)
    return [[at for at, x in enumerate(tensors) if x.dtype == dtype] for dtype in types]


def _copy(into: Sequence[Tensor], source: Sequence[Tensor], by_type: list[list[int]]) -> None:
    """Copy all tensors, those of a type in one launch."""
    for numbers in by_type:
        torch._foreach_copy_([into[at] for at in numbers], [source[at] for at in numbers], non_blocking=True)
