import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gca_lit.data import shard_format, shard_reader
from gca_lit.data.shard_format import INDEX, read_manifest, write_manifest
from gca_lit.data.shards import ShardReader, ShardWriter
from gca_lit.data.tokenizers import ByteTokenizer, Tokenizer


def tokenizer_of(vocab_size: int, name: str = "other") -> Tokenizer:
    return SimpleNamespace(name=name, vocab_size=vocab_size, eos=0, identity=name * 8)  # type: ignore[return-value]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shard_format, shard_reader):
        monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr("gca_lit.data.verify.BATCH", 16)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    vocab_size = data.draw(st.sampled_from([2, 257, 1 << 16, (1 << 16) + 1, 1 << 32]))
    ids = st.lists(st.sampled_from([0, 1, vocab_size // 2, vocab_size - 1]), min_size=1, max_size=60)
    documents = data.draw(st.lists(ids, min_size=1, max_size=8))
    directory = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard_format", "shard_reader", "verify"):
            patch.setattr(f"gca_lit.data.{module}.BATCH", 16)
        with ShardWriter(directory, tokenizer_of(vocab_size), data.draw(st.integers(1, 100))) as writer:
            for document in documents:
                writer.add(document)
        reader = ShardReader(directory)
        everything = np.concatenate(documents)
        assert reader.total == len(everything)
        assert reader.manifest["dtype"] == ("uint16" if vocab_size <= 1 << 16 else "uint32")
        for document, start, stop in zip(documents, *reader.documents, strict=True):
            assert reader.tokens(start, stop).tolist() == document
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, reader.total)] * 2)))
        assert pickle.loads(pickle.dumps(reader)).tokens(start, stop).tolist() == everything[start:stop].tolist()


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), shard_tokens=st.integers(1, 50), data=st.data())
def test_calls_of_write_leave_no_trace(tmp_path_factory, sizes, shard_tokens, data) -> None:
    """Parts of documents, and many documents at once, give the files that one document after the other gives."""
    documents = [np.full(size + 1, number) for number, size in enumerate(sizes)]
    stream, ends = np.concatenate(documents), np.cumsum([len(document) for document in documents])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    one, other = (tmp_path_factory.mktemp("shards") for _ in range(2))
    with ShardWriter(one, ByteTokenizer(), shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    with ShardWriter(other, ByteTokenizer(), shard_tokens) as writer:
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            writer.write(stream[start:stop], ends[(ends > start) & (ends <= stop)] - start)
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


def test_reads_across_batches_and_shards(tmp_path: Path, small_batches: None) -> None:
    everything = np.arange(170)
    with ShardWriter(tmp_path, ByteTokenizer(), 50) as writer:
        writer.add(everything)
    reader = ShardReader(tmp_path)
    for start in range(0, 170, 3):
        for stop in (start, start + 1, start + 20, 170):
            np.testing.assert_array_equal(reader.tokens(start, min(170, stop)), everything[start:stop])
    with pytest.raises(IndexError, match="outside"):
        reader.tokens(0, 171)


def test_identity_is_that_of_the_content(write: Callable[..., str]) -> None:
    same = {ShardReader(write(str(size), shard_tokens=size)).identity for size in (300, 1000)}
    assert len(same) == 1 and ShardReader(write("c", sizes=(700, 2, 899, 500))).identity not in same


def test_a_reader_travels_without_its_maps(write: Callable[..., str]) -> None:
    reader = ShardReader(write(sizes=(10,) * 3000, shard_tokens=1 << 20))
    reader.tokens(0, 30_000)
    assert len(reader.documents[0]) == 3000
    assert len(pickle.dumps(reader)) < 5_000


def test_missing_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist: run python -m gca_lit\.data\.prepare"):
        ShardReader(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        ShardReader(tmp_path)
    (tmp_path / "book.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"book\.txt is a file, not a directory of shards: run python -m"):
        ShardReader(tmp_path / "book.txt")


def test_other_tokenizer_is_refused_by_both_names(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"made with tokenizer byte \w{12}, but tokenizer other \w{12} is asked for"):
        ShardReader(write(), tokenizer_of(257))
    ShardReader(write("again"), ByteTokenizer())


def test_finished_data_set_is_written_anew(write: Callable[..., str]) -> None:
    directory = Path(write())
    write(sizes=(700,))
    assert sorted(path.name for path in directory.iterdir()) == ["documents.arrow", INDEX, "tokens-00000.arrow"]
    assert ShardReader(directory).total == 700


def test_shards_without_a_manifest_are_left_alone(write: Callable[..., str]) -> None:
    directory = Path(write())
    (directory / INDEX).unlink()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ValueError, match="holds shards of another run: choose another --output or remove it"):
        write()
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}


def test_ids_outside_the_vocabulary(tmp_path: Path, write: Callable[..., str]) -> None:
    with (
        pytest.raises(ValueError, match="id 257 is outside the vocabulary of tokenizer byte"),
        ShardWriter(tmp_path / "new", ByteTokenizer()) as writer,
    ):
        writer.add([1, 257])
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        ShardWriter(tmp_path / "new", tokenizer_of((1 << 32) + 1))
    directory = Path(write())
    write_manifest(directory, {**read_manifest(directory), "vocab_size": 200})
    with pytest.raises(ValueError, match="holds id 256, outside the vocabulary of 200 ids"):
        ShardReader(directory)


@pytest.mark.parametrize(
    "content, message",
    [("[]", "is not a manifest"), ('{"format": 1}', "has format 1, this version reads 2: prepare the data set again")],
)
def test_manifest_of_another_kind(write: Callable[..., str], content: str, message: str) -> None:
    directory = Path(write())
    (directory / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ShardReader(directory)
