"""Seconds and device memory of work that a CUDA device does behind the host, and how fast the host is meanwhile."""

from __future__ import annotations

import time

import torch


class Clock:
    """Seconds of work that is done, and the peak of device memory."""

    def __init__(self, device: str) -> None:
        self._cuda, self._begun = device == "cuda", 0.0
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.lap()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def lap(self, wait: bool = True) -> float:
        """Seconds since the start or the last lap, once the device is done if `wait`."""
        if wait and self._cuda:
            torch.cuda.synchronize()
        begun, self._begun = self._begun, time.perf_counter()
        return self._begun - begun

    def peak_gb(self) -> float:
        """Most device memory allocated since the start."""
        return torch.cuda.max_memory_allocated() / 1e9 if self._cuda else 0.0


def host_ms() -> float:
    """Milliseconds that the host takes for some arithmetic in Python: more while others slow it down."""
    begun, total = time.perf_counter(), 0
    for number in range(20_000):
        total += number * number % 7
    return 1e3 * (time.perf_counter() - begun)
