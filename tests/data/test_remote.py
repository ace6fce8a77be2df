"""Data sets at remote addresses, in storages that fail in every way."""

import io
import logging
import os
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jsonargparse import ArgumentParser

from gca_lit import whole_file
from gca_lit.data import remote, shard_cache, verify
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.mixture import Mixture, RowMaker
from gca_lit.data.rows import BlockRows, Work
from gca_lit.data.shard_cache import Cache, RemoteFiles
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.tasks.base import Task

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


@pytest.mark.parametrize(
    "text, expected",
    [
        ("s3://bucket/path?endpoint_override=h:1&secret=x", "s3://bucket/path"),
        ("s3://key:sec/ret@bucket/path is gone", "s3://bucket/path is gone"),
        ("gs://anonymous@bucket/data@v2/train", "gs://bucket/data@v2/train"),
        ("url='https://h/p?X-Amz-Signature=abc', status 403", "url='https://h/p', status 403"),
        ("/a/path@v2?", "/a/path@v2?"),
    ],
)
def test_credentials_are_not_shown(text: str, expected: str) -> None:
    assert remote.shown(text) == expected


def test_tokens_are_those_of_the_local_data_set(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    local, far = ShardReader(directory), ShardReader(upload(directory), cache=cache())
    assert far.place == "flaky://train" and cached(cache()) == {}
    assert np.array_equal(far.tokens(900, 2100), local.tokens(900, 2100))
    assert sorted(cached(cache())) == NAMES[:3]
    for mine, theirs in zip(far.documents, local.documents, strict=True):
        assert np.array_equal(mine, theirs)
    again = ShardReader(upload(directory), cache=cache(), verify=True)
    assert np.array_equal(again.tokens(0, again.total), local.tokens(0, local.total))
    assert {name: Flaky.reads[name] for name in NAMES} == dict.fromkeys(NAMES, Flaky.reads[NAMES[0]])


@pytest.mark.parametrize("fault", ["truncated", "flipped", ConnectionResetError, RuntimeError])
def test_what_fails_in_flight_is_read_again(
    directory: Path,
    upload: Callable[[Path], str],
    cache: Callable[..., Cache],
    caplog: pytest.LogCaptureFixture,
    fault: str | type[Exception],
) -> None:
    far = ShardReader(upload(directory), cache=cache())
    Flaky.faults = [fault] * 3
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(far.tokens(0, 1000), ShardReader(directory).tokens(0, 1000))
    assert [record.getMessage().split(" failed")[0] for record in caplog.records] == [
        f"flaky://train/tokens-00000.arrow: try {number} of 4" for number in (1, 2, 3)
    ]
    reasons = {"truncated": "bytes came from byte 0 on, not", "flipped": "do not fit their crc32"}
    assert (reasons[fault] if isinstance(fault, str) else fault.__name__) in caplog.text


def test_a_storage_that_is_gone_ends_with_one_clear_error(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    far = ShardReader(upload(directory), cache=cache())
    Flaky.faults = ["gone"]
    with pytest.raises(ConnectionError) as caught:
        far.tokens(0, 1000)
    assert str(caught.value) == (
        "flaky://train/tokens-00000.arrow cannot be read, 4 of 4 tries failed, the last one with ConnectionResetError: "
        "nobody listens at flaky://host/x. When it can be reached again, training goes on with --ckpt_path last"
    )
    assert cached(cache()) == {}
    Flaky.faults = []
    assert np.array_equal(far.tokens(0, 1000), ShardReader(directory).tokens(0, 1000))


class Denied(OSError):
    def __str__(self) -> str:
        return "When reading x: AWS Error ACCESS_DENIED during HeadObject operation"


@pytest.mark.parametrize(
    "fault, reason", [(PermissionError, "PermissionError: no"), (Denied, "Denied: .*ACCESS_DENIED")]
)
def test_what_cannot_help_is_not_tried_again(
    directory: Path,
    upload: Callable[[Path], str],
    cache: Callable[..., Cache],
    fault: type[OSError],
    reason: str,
) -> None:
    far = ShardReader(upload(directory), cache=cache())
    before = Flaky.reads.total()
    Flaky.faults = [fault]
    with pytest.raises(OSError, match=f"tokens-00000.arrow cannot be read: {reason}"):
        far.tokens(0, 1)
    assert Flaky.reads.total() == before + 1
    with pytest.raises(FileNotFoundError, match="flaky://elsewhere does not exist"):
        ShardReader("flaky://elsewhere", cache=cache())
    with pytest.raises(OSError, match=r"^nothing://x cannot be read: .*nothing"):
        ShardReader("nothing://x", cache=cache())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda store: store.pop("/train/index.json"), r"flaky://train/index.json is missing"),
        (lambda store: store.pop("/train/tokens-00001.arrow"), r"shard flaky://train/tokens-00001.arrow is missing"),
        (lambda store: Flaky().pipe_file("/train/tokens-00001.arrow", b"x"), r"00001.arrow has 1 bytes, .* says"),
        (lambda store: Flaky().pipe_file("/train/tokens-00007.arrow", b"x"), r"00007.arrow is foreign"),
        (lambda store: Flaky().pipe_file("/train/index.json", b'{"format": 2}'), r"flaky://train/index.json is dam"),
    ],
)
def test_what_is_wrong_is_named_on_opening(
    directory: Path,
    upload: Callable[[Path], str],
    cache: Callable[..., Cache],
    damage: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    address = upload(directory)
    damage(Flaky.store)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ShardReader(address, cache=cache())


def test_a_damaged_file_in_the_cache_is_downloaded_again(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    address, expected = upload(directory), ShardReader(directory).tokens(0, 1000)
    ShardReader(address, cache=cache()).tokens(0, 1000)
    (path,) = Path(cache().directory).glob("*/tokens-00000.arrow")
    content = bytearray(path.read_bytes())
    content[PIECE + 200] ^= 1
    path.write_bytes(content)
    path.with_name("tokens-00003.arrow.part").write_bytes(b"left by a process that was killed")
    far = ShardReader(address, cache=cache())
    assert np.array_equal(far.tokens(0, 1000), expected)
    far.tokens(3000, 4000)
    assert sorted(cached(cache())) == [NAMES[0], NAMES[3]]


def test_the_cache_is_bounded_and_keeps_what_was_mapped_last(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    small = cache(3.5)
    mine = Path(small.directory) / "mine" / "tokens-00000.arrow"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(bytes(shard_bytes(directory)))
    local, far = ShardReader(directory), ShardReader(upload(directory), cache=small)
    seen = []
    for shard in (0, 1, 2, 0, 3, 4, 0, 5):
        ShardReader("flaky://train", cache=small).tokens(1000 * shard, 1000 * shard + 1)
        seen.append([NAMES.index(name) for name in sorted(cached(small))])
        assert sum(cached(small).values()) <= 3.5 * shard_bytes(directory)
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 3, 4], [0, 4, 5]]
    for _ in range(2):
        assert np.array_equal(far.tokens(0, far.total), local.tokens(0, local.total))
    assert len(far._maps) == 3 and mine.exists()


def test_a_removed_file_stays_readable_where_it_is_mapped(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    local, far = ShardReader(directory), ShardReader(upload(directory), cache=cache())
    far.tokens(0, 1)
    shutil.rmtree(cache().directory)
    assert np.array_equal(far.tokens(0, far.total), local.tokens(0, local.total))


@pytest.mark.parametrize("shards, downloads", [(10, 1), (2, None)])
def test_many_readers_share_a_cache(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache], shards: int, downloads: int | None
) -> None:
    """All of them get their tokens, from two places in the cache too; with room enough each shard comes once."""
    address, local, wrong = upload(directory), ShardReader(directory), []
    whole = RemoteFiles(address, cache(shards))._entries[NAMES[0]]["bytes"]
    reads = -(-whole // (shard_cache.SPAN * PIECE))

    def read(seed: int) -> None:
        far = ShardReader(address, cache=cache(shards))
        for start in np.random.default_rng(seed).integers(0, 4800, 40).tolist():
            if not np.array_equal(far.tokens(start, start + 1200), local.tokens(start, start + 1200)):
                wrong.append(start)
        done.append(seed)

    done: list[int] = []
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3] and wrong == []
    assert sum(cached(cache()).values()) <= shards * shard_bytes(directory)
    if downloads:
        assert {Flaky.reads[name] for name in NAMES[:-1]} == {downloads * reads}


def test_a_small_cache_is_refused_with_the_numbers(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    size, address = shard_bytes(directory), upload(directory)
    with pytest.raises(ValueError, match=f"has {size} bytes, the cache {int(1.5 * size)} .*two such files"):
        ShardReader(address, cache=cache(1.5))
    total = sum(path.stat().st_size for path in directory.glob("*.arrow"))

    def data(shards: float, shuffle: int | None) -> ArrowDataModule:
        made = ArrowDataModule(address, str(directory), 64, cache=cache(shards), shuffle_shards=shuffle)
        made.setup("fit")
        return made

    with pytest.raises(ValueError, match=f"has {total} bytes, the cache {4 * size} .*this one holds 4, or"):
        data(4, None)
    with pytest.raises(ValueError, match=r"shuffle_shards 3 needs 5 shards .* that is 4 shards: give fewer"):
        data(4, 3)
    assert data(4, 2).epoch_steps == data(10, None).epoch_steps
    for wrong in ({"gib": 0.0}, {"retries": -1}):
        with pytest.raises(ValueError, match=r"gib > 0 and retries >= 0"):
            Cache(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shuffle_shards must be 1 or more"):
        data(4, 0)


@pytest.mark.parametrize("shuffle", [None, 2])
def test_trains_in_the_order_of_the_local_data_set(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache], shuffle: int | None
) -> None:
    settings: dict[str, Any] = {"val": str(directory), "train_length": 64, "shuffle_shards": shuffle}
    local = ArrowDataModule(str(directory), **settings)
    far = ArrowDataModule(upload(directory), cache=cache(10 if shuffle is None else 4), **settings)
    Flaky.faults = ["truncated", ConnectionError, "flipped", "none"] * 3
    assert np.array_equal(order(far, 93), order(local, 93))


def test_a_shard_comes_for_its_window_and_for_the_block_that_reaches_into_it(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    far = ArrowDataModule(upload(directory), str(directory), 64, cache=cache(4), shuffle_shards=2)
    far.setup("fit")
    Flaky.reads.clear()
    order(far, 93)
    reads = -(-shard_bytes(directory) // (shard_cache.SPAN * PIECE))
    assert set(Flaky.reads) == set(NAMES) and max(Flaky.reads.values()) <= 2 * reads


def test_another_order_is_refused_on_resuming(directory: Path) -> None:
    def data(**settings: Any) -> ArrowDataModule:
        made = ArrowDataModule(str(directory), str(directory), 64, **settings)
        made.setup("fit")
        return made

    state = data(shuffle_shards=3).state_dict()
    data(shuffle_shards=3).load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle_shards was 3, now None"):
        data().load_state_dict(state)
    before = data().state_dict()
    del before["fingerprint"]["shuffle_shards"]
    data().load_state_dict(before)
    with pytest.raises(ValueError, match="shuffle_shards was None, now 3"):
        data(shuffle_shards=3).load_state_dict(before)


def test_settings_come_from_flags() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ArrowDataModule, "data")
    needed = ["--data.train", "s3://bucket/x", "--data.val", "y", "--data.train_length", "64"]
    data = parser.instantiate(parser.parse_args([*needed, "--data.cache.gib", "10"])).data
    assert data._cache == Cache(gib=10.0) and data._shuffle_shards is None


def test_rows_travel_to_workers_that_are_started_afresh(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache], mark_task: Task
) -> None:
    tasks = [mark_task.bind(1, ByteTokenizer().encode, None)]
    far = ShardReader(upload(directory), cache=cache())
    rows = BlockRows(far, 64, RowMaker(Mixture(text=0.5), tasks, seed=1), reset_at_document=True)
    work = Work([0, 1, 2, 3], [5, 20, 33, 60], 32)
    expected = rows[work]
    assert len(far._maps) > 0
    sent = pickle.dumps(rows)
    assert len(sent) < 20_000 and b"_connection" not in sent
    for mine, theirs in zip(pickle.loads(sent)[work], expected, strict=True):
        assert np.array_equal(mine, theirs)


def test_full_disk(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    far = ShardReader(upload(directory), cache=cache())

    def full(path: Path, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "truncate", full)
    with pytest.raises(OSError, match=r"data.cache.directory .* is full .*data.cache.gib"):
        far.tokens(0, 1)
    assert cached(cache()) == {}
