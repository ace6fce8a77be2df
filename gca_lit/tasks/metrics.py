"""The interval of an accuracy."""

from __future__ import annotations

from math import sqrt


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval (low, high) of the share correct / n; z = 1.96 is 95 %. n = 0 gives (0, 1).

    Raises ValueError unless 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"wilson: correct must lie between 0 and n, got {correct} of {n}.")
    if n == 0:
        return 0.0, 1.0
    share, scale = correct / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)
