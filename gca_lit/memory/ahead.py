"""What takes long to make, made while those before it are in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor


class MadeAhead:
    """Calls `make` for each `take`; from the second one on a thread makes the next tensors beforehand.

    It goes on until half as many wait as were taken, so none waits where a single one was taken. What `make` raises is
    raised by the `take` that the tensor was for.

    Args:
        make: makes a tensor, in any thread.
        ahead: how many wait at most.
        most: how many are taken at most, None for no limit: none is made beyond it.
    """

    def __init__(self, make: Callable[[], Tensor], ahead: int, most: int | None = None) -> None:
        self._make, self._ahead, self._most = make, ahead, most
        self._thread = ThreadPoolExecutor(1)
        self._ready: deque[Future[Tensor]] = deque()
        self._taken = 0

    @property
    def waiting(self) -> int:
        """How many are made, or will be, that nobody has taken."""
        return len(self._ready)

    def take(self) -> Tensor:
        taken = self._ready.popleft().result() if self._ready else self._make()
        self._taken += 1
        while len(self._ready) < self._enough():
            self._ready.append(self._thread.submit(self._make))
        return taken

    def close(self) -> None:
        """Wait for the thread to end, at most for one tensor, and forget what it made."""
        self._thread.shutdown(cancel_futures=True)
        self._ready.clear()

    def _enough(self) -> int:
        enough = min(self._taken // 2, self._ahead)
        return enough if self._most is None else min(enough, self._most - self._taken)
