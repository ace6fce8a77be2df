"""A function of tensors as one CUDA graph: the host starts it once, however many kernels it has."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from gca_lit.model.nested import Room, flatten, unflatten
from gca_lit.model.places import Given, Places
from gca_lit.model.weights import Weights

T = TypeVar("T")


class Replayed:
    """Calls `function`, and replays it as a CUDA graph once the same shapes come twice in a row. Where something then
    lies elsewhere it is captured anew at once.

    Without gradients, on a CUDA device and with whole weights only; otherwise, and while shapes change, it is an
    ordinary call. Results are copies: they never change afterwards. An argument that is the very tuple of the last
    call, or a result that was left in its place, is not copied again: nobody may change the tensors in it.

    Args:
        function: of tensors and nested tuples of tensors, to a tuple of such. What it does depends on their shapes
            alone; it changes nothing, and on a CUDA device it does not wait for the device.
        weights: of all that it reads. They may change, and move. Others in their place are noticed unless the first
            argument is a result that was left in its place.
        places: of its arguments; functions that are called in turns share places and weights.
        stays: by the number of a result, that of the argument in whose place it is left.
    """

    def __init__(
        self, function: Callable[..., Any], weights: Weights, places: Places, stays: Mapping[int, int]
    ) -> None:
        self._function, self._weights, self._places, self._stays = function, weights, places, stays
        self._seen: Hashable = None
        self._graph: Graph | None = None

    def __call__(self, *inputs: Any, held: tuple[Any, ...] = ()) -> Any:
        """held: handed to `function` by that name. Tensors in it are read where they lie: their values may change, not
        their place. Of anything else in it another value makes another graph."""
        function = partial(self._function, held=held) if held else self._function
        given = [self._places.look(number, value) for number, value in enumerate(inputs)]
        if not _can_replay(given):
            return function(*inputs)
        weights = self._weights.addresses(look=not given[0].left)
        seen, self._seen = self._seen, (tuple([one.kind for one in given]), _precision())
        key = self._seen, _addresses(held), weights
        if self._graph is None or self._graph.key != key:
            if weights is None or self._seen != seen:
                return function(*inputs)
            self._graph = None  # gives its memory back first
            self._graph = Graph.capture(function, key, given, self._places, self._stays)
        return self._graph.replay(given)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a network, or a pickle of it, captures anew."""
        return self.__dict__ | {"_seen": None, "_graph": None}


class Graph:
    """One captured call.

    Args:
        key: of the call.
        graph: what was captured.
        places: where it reads its arguments.
        output: what it writes.
        structure: of the output.
        left: numbers of results and of the arguments in whose places they are left, and what they are.
    """

    def __init__(
        self,
        key: Hashable,
        graph: torch.cuda.CUDAGraph,
        places: Places,
        output: Room,
        structure: Any,
        left: Sequence[tuple[int, int, Given]],
    ) -> None:
        self.key, self._graph, self._places = key, graph, places
        self._output, self._structure, self._left = output, structure, left

    @classmethod
    def capture(
        cls,
        function: Callable[..., Any],
        key: Hashable,
        given: Sequence[Given],
        places: Places,
        stays: Mapping[int, int],
    ) -> Graph:
        for number, one in enumerate(given):
            places.put(number, one)
        inputs = [one.there() for one in given]
        with _aside(Given(tuple(inputs)).leaves[0].device):
            made = function(*inputs)  # compiles what it has to, and makes room for the libraries
            left = [(result, argument, places.look(argument, made[result])) for result, argument in stays.items()]
            left = [(result, argument, one) for result, argument, one in left if one.leaves]
            for _, argument, one in left:
                places.settle(argument, one)

            def work() -> tuple[Any, list[Tensor]]:
                made, outputs = list(function(*inputs)), list[Tensor]()
                for result, _, one in left:
                    one.receive(made[result])
                    made[result] = one.there()
                return flatten(tuple(made), outputs), outputs

            graph, (structure, outputs) = _record(work)
        forgotten = [(result, argument, one.replaced(None)) for result, argument, one in left]
        return cls(key, graph, places, Room(outputs), structure, forgotten)

    def replay(self, given: Sequence[Given]) -> Any:
        for number, one in enumerate(given):
            self._places.put(number, one)
        for _, argument, like in self._left:
            self._places.left(argument, like)
        self._graph.replay()
        results = unflatten(self._structure, iter(self._output.copies()))
        for number, argument, like in self._left:
            self._places.left(argument, like.replaced(results[number]))
        return results


def _record(work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """The device work of `work` on the current stream, which is not done, and what it gives."""
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    gc.disable()  # it may find graphs and page-locked memory, and to give those back would end the capture
    try:
        # other threads may make pinned memory meanwhile; torch.cuda.graph would empty the allocator's cache first
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            return graph, work()
        finally:
            graph.capture_end()
    finally:
        if collects:
            gc.enable()


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On another stream, behind the work of the current one and before what comes later.

    Autocast casts weights at every use: a graph neither reads what it cast before nor leaves anything behind.
    """
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    enabled = torch.is_autocast_cache_enabled()
    stream.wait_stream(current)
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
    current.wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: the matrix libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


def _can_replay(given: Sequence[Given]) -> bool:
    on_device = any([one.leaves for one in given]) and all([one.on_device for one in given])
    busy = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return on_device and not busy and not torch.cuda.is_current_stream_capturing()


def _precision() -> Hashable:
    """What work on a CUDA device depends on beside its arguments."""
    cast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return cast, torch.get_float32_matmul_precision()


def _addresses(held: tuple[Any, ...]) -> Hashable:
    """Where tensors lie, and the values of the rest."""
    parts: list[Any] = []
    structure = flatten(held, parts)
    places = [(x.data_ptr(), x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in parts]
    return structure, tuple(places)
