"""Fixed places for the arguments of functions that are called in turns: what lies there is not copied again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from gca_lit.model.nested import Room, flatten, unflatten


class Given:
    """An argument: its tensors, and what the work on it depends on.

    Made for every token: what a result that is left in its place has in common with the last one is not made again.
    """

    __slots__ = ("kind", "leaves", "left", "on_device", "room", "structure", "value")

    value: Any
    leaves: list[Any]
    structure: Any
    on_device: bool
    kind: Hashable
    left: bool
    """Whether it is a result that was left in its place."""
    room: Room | None
    """Where it lies, or lay."""

    def __init__(self, value: Any) -> None:
        self.value, self.leaves, self.left, self.room = value, [], False, None
        self.structure = flatten(value, self.leaves)
        self.on_device = all([isinstance(x, Tensor) and x.is_cuda for x in self.leaves])
        shapes = tuple([(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else None for x in self.leaves])
        self.kind = self.structure, shapes

    def is_of(self, value: Any) -> bool:
        """Whether it is of that very object, and nobody has changed it."""
        return value is self.value and (self.left or isinstance(value, tuple))

    def there(self) -> Any:
        """The tensors of its room, nested like it."""
        assert self.room is not None
        return unflatten(self.structure, iter(self.room.tensors))

    def receive(self, value: Any) -> None:
        """Copy a value of the same kind to its room."""
        leaves: list[Tensor] = []
        flatten(value, leaves)
        assert self.room is not None
        self.room.fill(leaves)

    def replaced(self, value: Any) -> Given:
        """A result of the same kind, for the same room."""
        other = Given.__new__(Given)
        other.structure, other.on_device, other.kind, other.room = self.structure, self.on_device, self.kind, self.room
        other.value, other.leaves, other.left = value, [], True
        return other


class Places:
    """Rooms for arguments: one for each kind of value that each has had."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[int, Hashable], tuple[Room, Hashable]] = {}
        """With their kinds: one object of each, for kinds are compared for every token."""
        self._there: dict[Room, Given] = {}
        self._last: dict[int, Given] = {}

    def look(self, number: int, value: Any) -> Given:
        """What a value of argument `number` is; the same object again while it lies there."""
        last = self._last.get(number)
        if last is not None and last.is_of(value):
            return last
        given = Given(value)
        given.room, given.kind = self._rooms.get((number, given.kind), (None, given.kind))
        return given

    def settle(self, number: int, given: Given) -> None:
        """Give it a room. Rooms are no graph's memory: call this before a capture."""
        if given.room is None:
            at = number, given.kind
            if at not in self._rooms:
                with torch.inference_mode(False):
                    self._rooms[at] = Room.like(given.leaves), given.kind
            given.room, given.kind = self._rooms[at]

    def put(self, number: int, given: Given) -> None:
        """Copy it to its room, unless it is there."""
        if given.room is None:
            self.settle(number, given)
        assert given.room is not None
        if self._there.get(given.room) is not given:
            given.room.fill(given.leaves)
            self._there[given.room] = given
        self._last[number] = given

    def left(self, number: int, given: Given) -> None:
        """It lies in its room."""
        assert given.room is not None
        self._there[given.room] = self._last[number] = given

    def __getstate__(self) -> dict[str, Any]:
        """A copy has rooms of its own."""
        return {"_rooms": {}, "_there": {}, "_last": {}}
