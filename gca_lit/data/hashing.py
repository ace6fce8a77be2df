"""Seeded choices as pure integer arithmetic: the same on every machine, rank, worker and library version."""

import numpy as np

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _scramble(z: int) -> int:
    """The finalizer of splitmix64, a bijection of the 64-bit integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def mix(*numbers: int) -> int:
    """Hash integers to 64 bits."""
    state = 0
    for number in numbers:
        state = _scramble((state + _STEP + (number & _MASK)) & _MASK)
    return state


def fraction(*numbers: int) -> float:
    """Hash integers to a number in [0, 1)."""
    return (mix(*numbers) >> 11) * 2.0**-53


def permutation(n: int, *key: int) -> np.ndarray:
    """The numbers 0 .. n-1, int64 [n], in an order that depends on `n` and `key` alone."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(mix(*key))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")
