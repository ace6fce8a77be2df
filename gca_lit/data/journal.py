"""What is whole in a data set that is still being written, so that an interrupted run goes on behind it.

`prepare.journal` holds a head and one entry for each whole shard, a line each, with the line's crc32 in front;
`ends.journal` holds where the documents of these shards end, int64.
"""

import fcntl
import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gca_lit.data.shard_format import FORMAT
from gca_lit.whole_file import WholeFile, sync


class Entry(NamedTuple):
    """A whole shard.

    Args:
        file: Its entry in the manifest.
        calls: Calls of `ShardWriter.write` that it and the shards before it took from, the last one maybe in part.
        taken: Tokens that were taken of the last call.
        source: Fingerprint of all that these calls were made from.
        ends: crc32 of the ends of its documents.
    """

    file: dict[str, Any]
    calls: int
    taken: int
    source: str
    ends: int


class Journal:
    """The journal in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._lines = directory / "prepare.journal"
        self._ends = directory / "ends.journal"
        self._lock: BinaryIO | None = None

    def exists(self) -> bool:
        return self._lines.exists()

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or the end of this one. Raises ValueError when one is at work."""
        file = self._lines.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"another process is writing to {self._lines.parent}: wait for its end, or choose another --output"
            ) from error
        self.unlock()
        self._lock = file

    def unlock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def read(self) -> tuple[dict[str, Any], list[Entry]]:
        """The head and the entries, up to the first one that is not whole. Raises ValueError without a head."""
        lines = _whole_lines(self._lines.read_bytes())
        if not lines or lines[0]["format"] != FORMAT:
            raise ValueError(f"{self._lines} is damaged or of another version: choose another --output or remove it")
        head, *entries = lines
        ends = self.ends()
        found: list[Entry] = []
        start = 0
        for entry in (Entry(**line) for line in entries):
            stop = start + entry.file["documents"]
            if stop > len(ends) or zlib.crc32(ends[start:stop].data) != entry.ends:
                break
            found.append(entry)
            start = stop
        return head, found

    def ends(self) -> np.ndarray:
        """The ends of all documents, int64, mapped."""
        values = self._ends.stat().st_size // 8 if self._ends.exists() else 0
        return np.memmap(self._ends, np.int64, "r", shape=(values,)) if values else np.empty(0, np.int64)

    def rewrite(self, head: dict[str, Any], entries: list[Entry]) -> None:
        """Keep `head` and `entries`, the first ones of those that were read, and nothing else."""
        with WholeFile(self._lines) as file:
            file.write(b"".join([_line(head), *(_line(entry._asdict()) for entry in entries)]))
        with self._ends.open("ab") as ends:
            ends.truncate(8 * sum(entry.file["documents"] for entry in entries))
            sync(ends)

    def append(self, entry: Entry, ends: np.ndarray) -> None:
        for path, content in ((self._ends, ends.tobytes()), (self._lines, _line(entry._asdict()))):
            with path.open("ab") as file:
                file.write(content)
                sync(file)

    def remove(self) -> None:
        self._ends.unlink(missing_ok=True)
        self._lines.unlink(missing_ok=True)


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _whole_lines(content: bytes) -> list[dict[str, Any]]:
    found = []
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or line[:8] != b"%08x" % zlib.crc32(line[9:-1]):
            break
        found.append(json.loads(line[9:]))
    return found
