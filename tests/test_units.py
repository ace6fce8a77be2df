"""Sizes in the unit that leaves the number small."""

import pytest

from gca_lit.units import GIB, MIB, size


@pytest.mark.parametrize(
    "count, said",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (2048, "2.0 KiB"),
        (1_000_000, "976.6 KiB"),
        (12 * MIB, "12.0 MiB"),
        (2 * GIB - 1, "2.0 GiB"),
        (5000 * GIB, "5,000.0 GiB"),
    ],
)
def test_sizes(count, said):
    assert size(count) == said
