"""Data sets at remote addresses, in storages that fail in every way."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gca_lit.data import remote
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.mixture import Mixture, RowMaker
from gca_lit.data.rows import BlockRows, Work
from gca_lit.data.shard_cache import Cache
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.tasks.base import Task
from tests.data.remote.conftest import NAMES, Flaky, cached, order


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


@pytest.mark.parametrize("shuffle", [None, 2])
def test_trains_in_the_order_of_the_local_data_set(
    directory: Path, upload: Callable[[Path], str], cache: Callable[..., Cache], shuffle: int | None
) -> None:
    settings: dict[str, Any] = {"val": str(directory), "train_length": 64, "shuffle_shards": shuffle}
    local = ArrowDataModule(str(directory), **settings)
    far = ArrowDataModule(upload(directory), cache=cache(10 if shuffle is None else 4), **settings)
    Flaky.faults = ["truncated", ConnectionError, "flipped", "none"] * 3
    assert np.array_equal(order(far, 93), order(local, 93))


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
