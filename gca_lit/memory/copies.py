"""How bytes move between a device and the host: at once, or on a side stream that is waited for before a read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Copies(Protocol):
    """Runs copies, perhaps later; `wait` returns when all of them are done, and all reads."""

    def run(self, copy: Callable[[], None], source: Tensor) -> None:
        """Start `copy`, which reads `source`; the source stays valid until it is done."""

    def read(self, read: Callable[[], T]) -> T:
        """What `read` gives: device work that comes after the copies so far and before later ones. Nobody waits."""

    def wait(self) -> None: ...


class InlineCopies:
    """Copies are done when `run` returns."""

    def run(self, copy: Callable[[], None], source: Tensor) -> None:
        copy()

    def read(self, read: Callable[[], T]) -> T:
        return read()

    def wait(self) -> None:
        return None


class StreamCopies:
    """Copies run on a CUDA stream of their own, behind the work queued when they start.

    Each holds its source on the device until it is done, so the host queues one copy behind the one that runs, no more.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._last: torch.cuda.Event | None = None

    def run(self, copy: Callable[[], None], source: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
        source.record_stream(self._stream)
        before, self._last = self._last, self._stream.record_event()
        if before is not None:
            before.synchronize()

    def read(self, read: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        result = read()
        self._stream.wait_stream(current)
        return result

    def wait(self) -> None:
        self._stream.synchronize()
