"""Every kind of damage is found, named with its file and place, and told apart from the others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gca_lit import whole_file
from gca_lit.data import shard_format, shard_reader, verify
from gca_lit.data.prepare import main
from gca_lit.data.shard_format import INDEX, ColumnFile, read_manifest, shard_name, write_manifest
from gca_lit.data.shards import ShardReader

PIECE = 512


@pytest.fixture
def directory(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of 1000, 1000 and 101 tokens whose files have pieces of 512 bytes."""
    for module in (verify, whole_file):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    return Path(write())


@pytest.fixture
def large(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for one too large to be read through."""
    monkeypatch.setattr(shard_reader, "VERIFY_BYTES", 0)
    return directory


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def only(directory: Path) -> str:
    """The one thing that is wrong; a reader that opens the directory raises it too."""
    (message,) = verify.verify(directory)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        ShardReader(directory, verify=True)
    assert str(caught.value) == message
    return message.replace(f"{directory}/", "")


def test_whole(directory: Path, large: Path) -> None:
    assert verify.verify(directory) == []
    assert ShardReader(large).total == 2101


@pytest.mark.parametrize("name", ["tokens-00001.arrow", "documents.arrow"])
def test_flipped_bits_are_named_with_their_bytes(directory: Path, name: str) -> None:
    size = (directory / name).stat().st_size
    flip(directory / name, PIECE + 5)
    stop = min(2 * PIECE, size)
    assert only(directory).startswith(f"shard {name} is damaged in bytes {PIECE} to {stop - 1};")


@pytest.mark.parametrize("find", [bytes.index, bytes.rindex])
def test_flipped_bits_in_metadata_are_damage_too(directory: Path, find: Callable[[bytes, bytes], int]) -> None:
    shard = directory / "tokens-00000.arrow"
    place = find(shard.read_bytes(), b"tokenizer")
    flip(shard, place)
    assert f"is damaged in bytes {place // PIECE * PIECE} to " in only(directory)


def test_neighbouring_pieces_are_one_place(directory: Path) -> None:
    for place in (700, 1100, 2600):
        flip(directory / "tokens-00000.arrow", place)
    assert [message.partition("damaged ")[2].partition(";")[0] for message in verify.verify(directory)] == [
        "in bytes 512 to 1535",
        "in bytes 2560 to 3071",
    ]


def test_truncated_replaced_missing_foreign(directory: Path, write: Callable[..., str]) -> None:
    shard = directory / "tokens-00001.arrow"
    good = shard.read_bytes()
    shard.write_bytes(good[:-9])
    assert "tokens-00001.arrow is truncated: it has" in only(directory)
    shard.write_bytes(good + b"more")
    assert "tokens-00001.arrow was replaced: it has" in only(directory)
    shard.unlink()
    assert only(directory).startswith("shard tokens-00001.arrow is missing: prepare ")
    other = Path(write("other", sizes=(800, 1300, 1)))
    shutil.copy(other / shard.name, shard)
    assert shard.stat().st_size == len(good)
    assert "tokens-00001.arrow was replaced: it belongs to another data set" in only(directory)
    shutil.copy(directory / "tokens-00000.arrow", shard)
    assert "tokens-00001.arrow was replaced" in only(directory)
    shard.write_bytes(good)
    shutil.copy(other / "tokens-00001.arrow", directory / "tokens-00007.arrow")
    assert only(directory).startswith("shard tokens-00007.arrow is foreign: index.json does not name it")


def test_all_damages_are_listed_and_end_with_code_1(
    directory: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write("whole")
    flip(directory / "tokens-00000.arrow", 600)
    (directory / "tokens-00002.arrow").unlink()
    with pytest.raises(SystemExit) as caught:
        main(["--verify", whole, str(directory)])
    first, second, *damages = capsys.readouterr().out.splitlines()
    assert caught.value.code == 1
    assert (first, second) == (f"{whole}: whole", f"{directory}: damaged")
    assert [line.split()[1] for line in damages] == [
        f"{directory}/tokens-00000.arrow",
        f"{directory}/tokens-00002.arrow",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["--verify", whole])
    assert caught.value.code == 0


def test_damaged_manifest(directory: Path) -> None:
    content = (directory / INDEX).read_text(encoding="utf-8")
    (directory / INDEX).write_text(content.replace('"byte"', '"bite"'), encoding="utf-8")
    assert only(directory) == "index.json is damaged: its content does not fit its crc32; prepare the data set again"


def rewrite(directory: Path, number: int, name: str, values: np.ndarray, **counts: int) -> None:
    """Put a file in the place of another one, with its entry in the manifest."""
    manifest = read_manifest(directory)
    file = ColumnFile(directory / name, "end" if name == "documents.arrow" else "tokens", values.dtype, manifest)
    file.append_batch(values)
    manifest["files"][number] = file.commit(**counts)
    write_manifest(directory, manifest)


@pytest.mark.parametrize(
    "ends, message",
    [
        ([700, 600, 1601, 2101], "documents.arrow is damaged: the ends of its documents do not increase"),
        ([0, 700, 1601, 2101], "the ends of its documents do not increase"),
        ([700, 701, 1601, 2000], "documents.arrow ends at token 2000, but the shards hold 2101"),
    ],
)
def test_document_ends(large: Path, ends: list[int], message: str) -> None:
    rewrite(large, 3, "documents.arrow", np.array(ends), tokens=0, documents=4)
    assert message in only(large)
    reader = ShardReader(large)
    with pytest.raises(ValueError, match=message):
        reader.documents  # noqa: B018


def test_ids_and_number_of_tokens(directory: Path) -> None:
    rewrite(directory, 2, shard_name(2), np.full(101, 300, np.uint16), tokens=101, documents=1)
    assert "tokens-00002.arrow holds id 300, outside the vocabulary of 257 ids" in only(directory)
    rewrite(directory, 2, shard_name(2), np.full(90, 3, np.uint16), tokens=101, documents=1)
    assert "tokens-00002.arrow does not hold the tokens that index.json says" in only(directory)


def test_large_data_sets_are_sampled(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pieces of all when it is opened, the last one and another one of a shard when it is first read."""
    monkeypatch.setattr(shard_reader, "SAMPLES", 2)
    shard = large / "tokens-00001.arrow"
    good = shard.read_bytes()
    flip(shard, 5 * PIECE)
    assert ShardReader(large).tokens(1000, 1010).shape == (10,)
    flip(shard, len(good) - 1)
    reader = ShardReader(large)
    reader.tokens(0, 1000)
    with pytest.raises(ValueError, match=r"tokens-00001\.arrow is damaged in bytes 3072 to"):
        reader.tokens(999, 1001)
    shard.write_bytes(good)
    flip(large / "tokens-00000.arrow", 0)
    with pytest.raises(ValueError, match=r"tokens-00000\.arrow is damaged in bytes 0 to 511"):
        ShardReader(large)


def test_opening_a_large_data_set_reads_few_files(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "SAMPLES", 2)
    read: list[str] = []
    looked_at = verify.read_column
    monkeypatch.setattr(verify, "read_column", lambda path: read.append(path.name) or looked_at(path))
    ShardReader(large)
    assert read == ["tokens-00000.arrow", "documents.arrow"]


def test_shard_that_goes_while_it_is_open(large: Path) -> None:
    reader = ShardReader(large)
    (large / "tokens-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00002\.arrow is missing"):
        reader.tokens(2050, 2060)


def test_batches_stay_as_they_were_recorded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_format, "BATCH", 100)
    monkeypatch.setattr(verify, "BATCH", 100)
    assert "does not hold the tokens" in verify.verify(directory)[0]
