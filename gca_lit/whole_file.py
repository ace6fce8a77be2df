"""Files that are there whole or not at all, with checksums of their pieces."""

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

PIECE_BYTES = 4 << 20
PART = ".part"


class NotSaved(OSError):
    """The disk did not take a file, or chunk K/V; files that were there before are as they were."""


def is_full(error: OSError) -> bool:
    """Whether the disk, or what a user may have of it, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remedy(error: OSError) -> str:
    """What to do where the disk takes nothing."""
    return "make room" if is_full(error) else "name a place that can be written"


@contextmanager
def saving(failed: str, remedy: Callable[[OSError], str] = remedy) -> Iterator[None]:
    """Raise NotSaved when the disk does not take what the block writes: it says `failed`, the cause, and a remedy."""
    try:
        yield
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch hides what the disk said
        if not isinstance(cause, OSError):
            raise
        raise NotSaved(f"{failed}: {cause.strerror or cause}; {remedy(cause)}") from error


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise ValueError when an output is the same file as an input, under whatever name."""
    given = [path for path in inputs if path.exists()]
    for output in outputs:
        if output.exists() and any(output.samefile(path) for path in given):
            raise ValueError(f"{output} is an input and would be overwritten: name another output")


def part_of(path: Path) -> Path:
    """Where a WholeFile is until all of it is there."""
    return path.with_name(path.name + PART)


class WholeFile:
    """A file that is written as NAME.part and gets its name when all of it is on the disk.

    As a context manager it is committed when the block ends, and discarded when the block raises. `bytes` counts what
    was written, `checks` are the crc32 of each piece of PIECE_BYTES.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.checks: list[int] = []
        self._part = part_of(path)
        self._file = self._part.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()

    def write(self, data: bytes) -> int:
        rest = memoryview(data).cast("B")
        self._file.write(rest)
        while rest:
            if not self.bytes % PIECE_BYTES:
                self.checks.append(0)
            piece = rest[: PIECE_BYTES - self.bytes % PIECE_BYTES]
            self.checks[-1] = zlib.crc32(piece, self.checks[-1])
            self.bytes += len(piece)
            rest = rest[len(piece) :]
        return len(data)

    def commit(self) -> None:
        sync(self._file)
        self._file.close()
        self._part.rename(self.path)
        sync_directory(self.path.parent)

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        with suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


def sync(file: BinaryIO) -> None:
    """Wait until what was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in `directory` are on the disk."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
