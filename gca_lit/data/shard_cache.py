"""Shards from a remote address, kept in a bounded folder that all processes of a machine share.

A shard is downloaded whole when it is first read, by one process while others wait; its size and the crc32 of all its
pieces are those of the manifest before anybody maps it. When the folder is full, the shards that were mapped the
longest time ago are removed. A process that still has one of them mapped goes on reading it: on Linux a removed file
stays until the last map of it is gone.

Each data set has a folder HASH.remote, by its content; nothing outside of these is ever removed. Who downloads or maps
a file holds its lock, FILE.lock, and no file is removed while somebody holds it. Sizes change under the lock of the
whole cache alone: a download takes its full size before its first byte comes.
"""

import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gca_lit.data.remote import Storage
from gca_lit.data.shard_format import INDEX, is_shard, read_manifest
from gca_lit.data.verify import all_errors, file_errors
from gca_lit.whole_file import PIECE_BYTES, is_full

SPAN = 4  # pieces that are read at once
_WAIT = 0.1  # seconds between looks for room


@dataclass(frozen=True)
class Cache:
    """Where shards from remote addresses are kept; one folder may serve all runs on a machine.

    Args:
        directory: A folder on a disk of this machine.
        gib: Size that it may grow to, in GiB of 2**30 bytes; at least two shards.
        retries: How many times a read that failed is tried again, after pauses that grow from 1 s to 1 min.
    """

    directory: str = "data/cache"
    gib: float = 64.0
    retries: int = 8

    def __post_init__(self) -> None:
        if self.gib <= 0 or self.retries < 0:
            raise ValueError(f"data.cache needs gib > 0 and retries >= 0, not {self.gib} and {self.retries}")


class RemoteFiles:
    """The files of the data set at `address`, each on this machine while it is held.

    `manifest` is read at every opening. `mapped` files at most may be mapped by a reader: as many as the cache holds.

    Raises what `Storage` raises, and ValueError for a cache smaller than two shards.
    """

    def __init__(self, address: str, cache: Cache) -> None:
        self._storage = Storage(address, cache.retries)
        self.place = self._storage.place
        self._sizes = self._storage.sizes()
        self.manifest = self._read_manifest()
        self._entries = {entry["name"]: entry for entry in self.manifest["files"]}
        sizes = [entry["bytes"] for entry in self.manifest["files"]]
        self._gib = cache.gib
        self._limit = int(cache.gib * 2**30)
        self._bytes = sum(sizes)
        self.mapped = len(sizes) if self._bytes <= self._limit else self._limit // max(sizes)
        if self._limit < 2 * max(sizes):
            raise ValueError(
                f"the largest file of {self.place} has {max(sizes)} bytes, {self._room}: it must hold two such files, "
                "give a larger data.cache.gib"
            )
        files = json.dumps([self.manifest["content"], self.manifest["files"]])
        self._root = Path(cache.directory)
        self._folder = self._root / f"{hashlib.sha256(files.encode()).hexdigest()[:16]}.remote"
        self._whole: set[str] = set()  # files that this process has compared with the manifest

    def check(self, everything: bool) -> None:
        """Compare names and sizes with the manifest; with `everything`, download all files and compare their content.

        Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
        """
        for name, entry in self._entries.items():
            size = self._sizes.get(name)
            if size is None:
                raise FileNotFoundError(f"shard {self.place}/{name} is missing: upload the data set again")
            if size != entry["bytes"]:
                raise ValueError(
                    f"shard {self.place}/{name} has {size} bytes, {INDEX} says {entry['bytes']}: "
                    "upload the data set again"
                )
        for name in sorted(self._sizes):
            if is_shard(name) and name not in self._entries:
                raise ValueError(f"shard {self.place}/{name} is foreign: {INDEX} does not name it; move it elsewhere")
        for name, entry in self._entries.items() if everything else ():
            with self.hold(name) as path:
                for error in all_errors({**self.manifest, "files": [entry]}, path.parent.joinpath):
                    raise error

    def check_order(self, shuffle_shards: int | None) -> None:
        """Raise ValueError when training in this order needs more shards at once than the cache holds."""
        if self._bytes <= self._limit:
            return
        if shuffle_shards is None:
            raise ValueError(
                f"{self.place} has {self._bytes} bytes, {self._room}: with data.shuffle_shards null any shard can be "
                f"needed at any time. Give data.shuffle_shards N for a cache of N + 2 shards, this one holds "
                f"{self.mapped}, or a data.cache.gib of {self._bytes / 2**30:.3g} or more"
            )
        if shuffle_shards + 2 > self.mapped:
            raise ValueError(
                f"data.shuffle_shards {shuffle_shards} needs {shuffle_shards + 2} shards of {self.place} at once, "
                f"{self._room}, that is {self.mapped} shards: give fewer, or a larger data.cache.gib"
            )

    @contextmanager
    def hold(self, name: str) -> Iterator[Path]:
        """Where a file lies on this machine, whole, as long as the context lasts."""
        path = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(path)):
            if not self._is_whole(path):
                self._download(path)
            self._whole.add(name)
            os.utime(path)
            yield path

    @property
    def _room(self) -> str:
        return f"the cache {self._limit} (data.cache.gib {self._gib:g})"

    def _read_manifest(self) -> dict[str, Any]:
        if INDEX not in self._sizes:
            raise FileNotFoundError(f"{self.place}/{INDEX} is missing, so {self.place} is no finished data set")
        content = self._storage.read(INDEX, 0, self._sizes[INDEX], lambda content: None)
        with TemporaryDirectory() as folder:
            (Path(folder) / INDEX).write_bytes(content)
            try:
                return read_manifest(Path(folder))
            except ValueError as error:
                raise ValueError(str(error).replace(folder, self.place)) from None

    def _is_whole(self, path: Path) -> bool:
        if path.name in self._whole:
            return path.exists()
        return not any(file_errors(path, self._entries[path.name], self.manifest))

    def _download(self, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        size = self._entries[path.name]["bytes"]
        try:
            with part.open("wb") as file:
                path.unlink(missing_ok=True)
                self._make_room(part, size)
                for start in range(0, size, SPAN * PIECE_BYTES):
                    file.write(self._read(path.name, start))
            with _locked(self._root / "lock"):
                part.rename(path)
        except OSError as error:
            if not is_full(error):
                raise
            raise OSError(
                f"the disk of data.cache.directory {self._root} is full ({error.strerror}) before the cache has its "
                f"{self._limit} bytes: make room, or give a smaller data.cache.gib"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _read(self, name: str, start: int) -> bytes:
        entry = self._entries[name]
        checks = entry["crc32"].split()[start // PIECE_BYTES :][:SPAN]

        def wrong(content: bytes) -> str | None:
            for number, check in enumerate(checks):
                piece = memoryview(content)[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
                if zlib.crc32(piece) != int(check, 16):
                    return f"the 4 MiB from byte {start + number * PIECE_BYTES} on do not fit their crc32"
            return None

        return self._storage.read(name, start, min(SPAN * PIECE_BYTES, entry["bytes"] - start), wrong)

    def _make_room(self, part: Path, size: int) -> None:
        """Give `part` its size when the cache has room for it; what was mapped the longest time ago makes room."""
        while True:
            with _locked(self._root / "lock"):
                files = sorted(_files(self._root))
                total = sum(held for _, held, _ in files)
                for _, held, path in files:
                    if total + size <= self._limit:
                        break
                    total -= held * _removed(path)
                if total + size <= self._limit:
                    os.truncate(part, size)
                    return
            time.sleep(_WAIT)  # all that is there is being downloaded or mapped right now


def _files(root: Path) -> Iterator[tuple[int, int, Path]]:
    """When each file of the cache was used last, its size, and the file; nothing else that lies in `root`."""
    for path in root.glob("*.remote/*"):
        if path.suffix in (".arrow", ".part"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield found.st_mtime_ns, found.st_size, path


def _removed(path: Path) -> bool:
    """Remove a file of the cache, unless somebody holds it."""
    try:
        with _locked(_lock_of(path), wait=False):
            path.unlink(missing_ok=True)
            return True
    except BlockingIOError:
        return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.part')}.lock")


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock among all processes and threads of this machine. Raises BlockingIOError if it shall not wait."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
