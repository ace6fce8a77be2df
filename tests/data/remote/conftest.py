"""A storage in memory that fails in every way, and a data set in it."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gca_lit import whole_file
from gca_lit.data import remote, shard_cache, verify
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.shard_cache import Cache

PIECE = 512
GIB = 2**30
NAMES = [f"tokens-{number:05d}.arrow" for number in range(6)]


class Flaky(MemoryFileSystem):
    """A storage in memory. `faults` are what happens to the next reads of shards; `reads` counts them by file."""

    protocol = "flaky"
    faults: ClassVar[list[str | type[Exception]]] = []
    reads: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if mode != "rb":
            return super().open(path, mode, **settings)
        content = self.cat_file(path)
        name = path.rpartition("/")[2]
        Flaky.reads[name] += 1
        if not Flaky.faults or not name.endswith(".arrow"):
            return io.BytesIO(content)
        fault = Flaky.faults.pop(0) if len(Flaky.faults) > 1 or Flaky.faults[0] != "gone" else "gone"
        if fault == "none":
            return io.BytesIO(content)
        if fault == "truncated":
            return io.BytesIO(content[: len(content) // 2])
        if fault == "flipped":
            return io.BytesIO(bytes(byte ^ 1 for byte in content))
        if fault == "gone":
            raise ConnectionResetError("nobody listens at flaky://user:secret@host/x?key=secret")
        assert isinstance(fault, type)
        raise fault("no")


@pytest.fixture
def directory(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six shards of 1000 tokens whose files have pieces of 512 bytes."""
    for module in (verify, whole_file, shard_cache):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    return Path(write(sizes=(700, 1, 2900, 1500, 899)))


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Put a directory into the storage; returns its address."""
    monkeypatch.setattr(remote, "_BACKOFF", 1e-3)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.faults, Flaky.reads, Flaky.store = [], Counter(), {}

    def put(directory: Path) -> str:
        for path in directory.iterdir():
            Flaky().pipe_file(f"/{directory.name}/{path.name}", path.read_bytes())
        return f"flaky://{directory.name}"

    yield put


@pytest.fixture
def cache(tmp_path: Path, directory: Path) -> Callable[..., Cache]:
    """A cache of as many shards."""

    def make(shards: float = 10, retries: int = 3) -> Cache:
        return Cache(str(tmp_path / "cache"), shards * shard_bytes(directory) / GIB, retries)

    return make


def shard_bytes(directory: Path) -> int:
    return max(path.stat().st_size for path in directory.glob("*.arrow"))


def cached(cache: Cache) -> dict[str, int]:
    return {
        path.name: path.stat().st_size for path in Path(cache.directory).glob("*.remote/*") if path.suffix != ".lock"
    }


def order(data: ArrowDataModule, batches: int) -> np.ndarray:
    data.setup("fit")
    loader = data.train_dataloader()
    try:
        found = [batch for batch, _ in zip(loader, range(batches), strict=False)]
    finally:
        data.teardown("fit")
    return np.stack([np.stack([batch.tokens, batch.targets]) for batch in found])
