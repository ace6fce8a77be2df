import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gca_lit.data import shards
from gca_lit.data.shards import INDEX, ShardReader, ShardWriter
from gca_lit.data.tokenizers import ByteTokenizer, Tokenizer


def tokenizer_of(vocab_size: int, name: str = "other") -> Tokenizer:
    return SimpleNamespace(name=name, vocab_size=vocab_size, eos=0, identity=name * 8)  # type: ignore[return-value]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("vocab_size, dtype", [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
@pytest.mark.parametrize("shard_tokens", [7, 100, 1000])
def test_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int, dtype: str, shard_tokens: int
) -> None:
    monkeypatch.setattr(shards, "BATCH", 16)
    random = np.random.default_rng(0)
    documents = [random.integers(0, vocab_size, size) for size in (1, 50, 13, 100, 6)]
    with ShardWriter(tmp_path, tokenizer_of(vocab_size), shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    reader = ShardReader(tmp_path)
    everything = np.concatenate(documents)
    assert reader.total == len(everything) == 170 and reader.manifest["dtype"] == dtype
    for start in range(0, 170, 3):
        for stop in (start, start + 1, start + 20, 170):
            np.testing.assert_array_equal(reader.tokens(start, min(170, stop)), everything[start:stop])
    for document, start, stop in zip(documents, *reader.documents, strict=True):
        np.testing.assert_array_equal(reader.tokens(start, stop), document)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).tokens(0, 170), everything)
    with pytest.raises(IndexError, match="outside"):
        reader.tokens(0, 171)


def test_identity_is_that_of_the_content(write: Callable[..., str]) -> None:
    same = {ShardReader(write(str(size), shard_tokens=size)).identity for size in (300, 1000)}
    assert len(same) == 1 and ShardReader(write("c", sizes=(700, 2, 899, 500))).identity not in same


def test_truncated(write: Callable[..., str]) -> None:
    shard = Path(write()) / "tokens-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"tokens-00001\.arrow is truncated .* bytes"):
        ShardReader(shard.parent)


@pytest.mark.parametrize("name", ["tokens-00000.arrow", "documents.arrow"])
def test_flipped_bit(write: Callable[..., str], name: str) -> None:
    directory = Path(write())
    flip(directory / name, (directory / name).stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        ShardReader(directory)


def test_large_data_sets_are_sampled(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(write(sizes=(2_000_000,), shard_tokens=10_000_000))
    monkeypatch.setattr(shards, "VERIFY_BYTES", 0)
    assert ShardReader(directory).total == 2_000_000
    flip(directory / "tokens-00000.arrow", 200_000)
    ShardReader(directory)
    with pytest.raises(ValueError, match="damaged"):
        ShardReader(directory, verify=True)
    flip(directory / "tokens-00000.arrow", 2_000)
    with pytest.raises(ValueError, match="damaged"):
        ShardReader(directory)


def test_missing(tmp_path: Path, write: Callable[..., str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist: run python -m gca_lit\.data\.prepare"):
        ShardReader(tmp_path / "none")
    directory = Path(write())
    (directory / "tokens-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00002\.arrow is missing"):
        ShardReader(directory)
    (directory / INDEX).write_text("[]")
    with pytest.raises(ValueError, match="is not a manifest"):
        ShardReader(directory)
    (directory / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        ShardReader(directory)


def test_other_tokenizer_is_refused_by_both_names(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"made with tokenizer byte \(.*, but tokenizer other \(.*\) is asked for"):
        ShardReader(write(), tokenizer_of(257))
    ShardReader(write(), ByteTokenizer())


def test_manifest_of_another_data_set(write: Callable[..., str]) -> None:
    directory = Path(write())
    manifest = json.loads((directory / INDEX).read_text())
    manifest["tokenizer"]["name"] = "else"
    (directory / INDEX).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="belongs to another data set"):
        ShardReader(directory)


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
    manifest = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps({**manifest, "vocab_size": 200}))
    with pytest.raises(ValueError, match="holds id 256, outside the vocabulary of 200 ids"):
        ShardReader(directory)
