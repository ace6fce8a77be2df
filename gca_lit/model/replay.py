"""A function of tensors as one CUDA graph: the host starts it once, however many kernels it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from gca_lit.model.nested import Given, Room, flatten, unflatten
from gca_lit.model.weights import Weights


class Replayed:
    """Calls `function`, and replays it as a CUDA graph once the same shapes come twice in a row. Where something then
    lies elsewhere it is captured anew at once.

    Without gradients, on a CUDA device and with whole weights only; otherwise, and while shapes change, it is an
    ordinary call. Results are copies: they never change afterwards. The very tuple of the last call, and its first
    result as the first argument, lie there already and are not copied again: nobody may change the tensors in them.

    Args:
        function: of tensors and nested tuples of tensors, to a tuple of such. Its first result is like its first
            argument and is often given to the next call. What it does depends on shapes alone; it changes nothing, and
            on a CUDA device it does not wait for the device.
        module: has all the weights that it reads. They may change, and move. Others in their place are noticed unless
            the first argument is what the last call gave.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function, self._weights = function, Weights(module)
        self._seen: Hashable = None
        self._graph: Graph | None = None

    def __call__(self, *inputs: Any, held: tuple[Any, ...] = ()) -> Any:
        """held: handed to `function` by that name. Tensors in it are read where they lie: their values may change, not
        their place. Of anything else in it another value makes another graph."""
        function = partial(self._function, held=held) if held else self._function
        graph, seen = self._graph, self._seen
        known = [None] * len(inputs) if graph is None else graph.given
        given = [
            last if last and last.is_of(value) else Given(value) for value, last in zip(inputs, known, strict=True)
        ]
        if not _can_replay(given):
            return function(*inputs)
        weights = self._weights.addresses(look=given[0] is not known[0])
        self._seen = shapes = tuple([one.kind for one in given]), _precision()
        key = shapes, _places(held), weights
        if graph is None or graph.key != key:
            if weights is None or shapes != seen:
                return function(*inputs)
            self._graph = graph = None  # gives its memory back first
            given = [Given(value) for value in inputs]
            self._graph = graph = Graph.capture(function, key, given)
        return graph.replay(given)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a network, or a pickle of it, captures anew."""
        return self.__dict__ | {"_seen": None, "_graph": None}


class Graph:
    """One captured call.

    Args:
        key: of the call.
        graph: what was captured.
        given: the arguments that lie in `inputs`.
        inputs, output: what the graph reads and writes.
        structure: of the output.
        goes_round: whether the first input then holds the first result.
    """

    def __init__(
        self,
        key: Hashable,
        graph: torch.cuda.CUDAGraph,
        given: Sequence[Given],
        inputs: Sequence[Room],
        output: Room,
        structure: Any,
        goes_round: bool,
    ) -> None:
        self.key, self.given, self._goes_round = key, list(given), goes_round
        self._graph, self._inputs, self._output, self._structure = graph, inputs, output, structure

    @classmethod
    def capture(cls, function: Callable[..., Any], key: Hashable, given: Sequence[Given]) -> Graph:
        device = next(leaf.device for one in given for leaf in one.leaves)
        structures = [one.structure for one in given]
        with torch.inference_mode(False):
            inputs = [Room.like(one.leaves) for one in given]
        for room, one in zip(inputs, given, strict=True):
            room.fill(one.leaves)
        stream, current = _side_stream(device), torch.cuda.current_stream(device)
        graph, outputs = torch.cuda.CUDAGraph(), list[Tensor]()

        def call() -> Any:
            return function(*map(unflatten, structures, [iter(room.tensors) for room in inputs]))

        stream.wait_stream(current)
        with _no_cast_kept(), torch.cuda.stream(stream):
            call()  # compiles what it has to, and makes room for the libraries
            # other threads may make pinned memory meanwhile; torch.cuda.graph would empty the allocator's cache first
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                first, *rest = call()
                if goes_round := Given(first).kind == given[0].kind:
                    inputs[0].fill(Given(first).leaves)
                    first = unflatten(structures[0], iter(inputs[0].tensors))
                structure = flatten((first, *rest), outputs)
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return cls(key, graph, given, inputs, Room(outputs), structure, goes_round)

    def replay(self, given: Sequence[Given]) -> Any:
        for room, one, last in zip(self._inputs, given, self.given, strict=True):
            if one is not last:
                room.fill(one.leaves)
        self._graph.replay()
        result = unflatten(self._structure, iter(self._output.copies()))
        self.given = list(given)
        if self._goes_round:
            self.given[0] = given[0].replaced(result[0])
        return result


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


def _can_replay(given: Sequence[Given]) -> bool:
    on_device = any([one.leaves for one in given]) and all([one.on_device for one in given])
    busy = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return on_device and not busy and not torch.cuda.is_current_stream_capturing()


def _precision() -> Hashable:
    """What work on a CUDA device depends on beside its arguments."""
    cast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return cast, torch.get_float32_matmul_precision()


def _places(held: tuple[Any, ...]) -> Hashable:
    """Where tensors lie, and the values of the rest."""
    parts: list[Any] = []
    structure = flatten(held, parts)
    places = [(x.data_ptr(), x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in parts]
    return structure, tuple(places)
