"""The cache of remote shards: bounded, shared, mended."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from gca_lit.data import shard_cache
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.shard_cache import Cache, RemoteFiles
from gca_lit.data.shards import ShardReader
from tests.data.remote.conftest import NAMES, PIECE, Flaky, cached, order, shard_bytes


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


def test_a_shard_comes_for_its_window_and_for_the_block_that_reaches_into_it(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache]
) -> None:
    far = ArrowDataModule(upload(directory), str(directory), 64, cache=cache(4), shuffle_shards=2)
    far.setup("fit")
    Flaky.reads.clear()
    order(far, 93)
    reads = -(-shard_bytes(directory) // (shard_cache.SPAN * PIECE))
    assert set(Flaky.reads) == set(NAMES) and max(Flaky.reads.values()) <= 2 * reads


def test_settings_come_from_flags() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ArrowDataModule, "data")
    needed = ["--data.train", "s3://bucket/x", "--data.val", "y", "--data.train_length", "64"]
    data = parser.instantiate(parser.parse_args([*needed, "--data.cache.gib", "10"])).data
    assert data._splits.cache == Cache(gib=10.0) and data._shuffle_shards is None


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
