"""What takes long to make, made while the one before it is in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor


class MadeAhead:
    """Calls `make` for each `take`; from the second one on a thread makes the next tensor beforehand.

    So there is at most one more than was taken, and none more than a single one was taken. What `make` raises is raised
    by the `take` that the tensor was for.

    Args:
        make: makes a tensor, in any thread.
        most: how many are taken at most, None for no limit: none is made beyond it.
    """

    def __init__(self, make: Callable[[], Tensor], most: int | None = None) -> None:
        self._make, self._most = make, most
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[Tensor] | None = None
        self._taken = 0

    @property
    def waiting(self) -> int:
        """How many are made, or being made, that nobody has taken: 0 or 1."""
        return int(self._next is not None)

    def take(self) -> Tensor:
        ready, self._next = self._next, None
        taken = self._make() if ready is None else ready.result()
        self._taken += 1
        if self._taken > 1 and self._taken != self._most:
            self._next = self._thread.submit(self._make)
        return taken

    def close(self) -> None:
        """Wait for the thread to end, and forget what it made."""
        self._thread.shutdown()
        self._next = None
