"""Which rows the layers that can wait must run: as far back as they can see from what is read."""

from __future__ import annotations

from dataclasses import dataclass

from gca_lit.model.chunks import Layout


@dataclass(frozen=True)
class Span:
    """Rows [begin, stop) of the rows at hand, which start at global row `origin`.

    Rows before `begin` are dropped: nothing that is read later can see them. Rows from `stop` on wait.
    """

    begin: int
    stop: int
    origin: int

    @property
    def first_row(self) -> int:
        return self.origin + self.begin

    @property
    def last_row(self) -> int:
        """Global row behind the last one."""
        return self.origin + self.stop

    def is_all_of(self, layout: Layout) -> bool:
        """Whether these are just the rows of the segment: nothing waits, and nothing is skipped."""
        return self.first_row == layout.first_row and self.stop - self.begin == layout.rows


def plan_span(layout: Layout, deferred: int, wanted: tuple[int, int], reach: int) -> Span:
    """What to run of `deferred` waiting rows and the segment's.

    Args:
        layout: of the segment.
        deferred: rows of the segments before that have not run.
        wanted: [first, last) text tokens of the segment that are read.
        reach: rows before a row that is read which must run with it.
    """
    origin = layout.first_row - deferred
    first, last = wanted
    if first == last:
        keep = max(0, deferred + layout.rows - reach)
        return Span(keep, keep, origin)
    begin = max(0, layout.row_of(first) - origin - reach)
    return Span(begin, layout.row_of(last - 1) + 1 - origin, origin)
