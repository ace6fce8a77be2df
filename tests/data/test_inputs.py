"""How inputs are cut into parts, and how parts become ids."""

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gca_lit.data import inputs as module
from gca_lit.data import prepare as preparing
from gca_lit.data.inputs import Part, inspect, read_part
from gca_lit.data.prepare import encode_part, prepare
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer

PART_BYTES = 128 * 10  # a part may then end with a line up to 10 bytes behind that


@pytest.fixture(params=["byte", "file"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    vocabulary = {"<eos>": 0, "[UNK]": 1, "one": 2, "two": 70_000}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    return FileTokenizer(str(tmp_path / "tokenizer.json"))


def test_batches_are_the_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = ["one two", "", "été 漢字", "two\n" * 40_000, "one"] * 4
    ids, sizes = tokenizer.encode_batch(texts)
    assert ids.dtype == (np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    assert [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])] == [tokenizer.encode(t) for t in texts]
    ids, sizes = tokenizer.encode_batch([])
    assert len(ids) == len(sizes) == 0


def cut(path: Path, content: bytes) -> list[Part]:
    path.write_bytes(content)
    parts = inspect(str(path), ["text"], PART_BYTES)
    assert parts[0].start == 0 and parts[-1].stop == len(content)
    assert all(one.stop == other.start and not one.last for one, other in pairwise(parts)) and parts[-1].last
    return parts


def test_book_is_cut_behind_lines(tmp_path: Path) -> None:
    content = b"a line.\n" * 1000
    parts = cut(tmp_path / "a.txt", content)
    assert len(parts) == 7 and all(part.stop % 8 == 0 for part in parts)
    assert "".join(text for part in parts for text in read_part(part, ["text"])).encode() == content


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="aé漢🙂", min_size=1, max_size=40), times=st.integers(1, 60))
def test_book_without_lines_is_cut_between_characters(tmp_path_factory, text: str, times: int) -> None:
    content = (text * times).encode()
    parts = cut(tmp_path_factory.mktemp("book") / "a.txt", content)
    assert "".join(text for part in parts for text in read_part(part, ["text"])).encode() == content
    assert all(PART_BYTES - 3 <= part.size <= PART_BYTES + 10 for part in parts[:-1])


def test_parts_are_known_by_their_content(tmp_path: Path) -> None:
    lines = [f"{i:07d}\n" for i in range(1000)]
    before = cut(tmp_path / "a.txt", "".join(lines).encode())
    lines[500] = "changed\n"
    after = cut(tmp_path / "a.txt", "".join(lines).encode())
    same = [one.digest == other.digest for one, other in zip(before, after, strict=True)]
    assert same == [True, True, True, False, True, True, True]
    longer = cut(tmp_path / "a.txt", "".join(lines).encode() + b"more")
    assert longer[-1].digest != after[-1].digest


def test_part_that_became_the_last_one_is_another(tmp_path: Path) -> None:
    long = cut(tmp_path / "a.txt", b"a line.\n" * 161 * 2)
    short = cut(tmp_path / "a.txt", (b"a line.\n" * 161 * 2)[: long[0].stop])
    assert short[0].digest != long[0].digest


@pytest.mark.parametrize("workers", [1, 2])
def test_document_larger_than_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """One document of many parts, encoded by any number of workers, is one document."""
    monkeypatch.setattr(preparing, "PART_BYTES", PART_BYTES)
    text = "été, \n" * 5000
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(b"short")
    prepare([str(tmp_path / "*.txt")], str(tmp_path / "out"), workers=workers, shard_tokens=7000)
    reader = ShardReader(tmp_path / "out")
    starts, ends = reader.documents
    assert ends.tolist() == [len(text.encode()) + 1, len(text.encode()) + 7]
    assert ByteTokenizer().decode(reader.tokens(int(starts[0]), int(ends[0])).tolist()) == text


def test_a_part_of_small_documents_is_one_array(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "x" * (i % 4)}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (part,) = inspect(str(tmp_path / "a.jsonl"), ["text"], 1 << 20)
    ids, ends = encode_part(part, "byte", ["text"])
    assert ids.dtype == np.uint16 and np.diff(ends, prepend=0).tolist() == [i % 4 + 1 for i in range(100)]
    assert (ids[ends - 1] == 256).all() and (np.delete(ids, ends - 1) == ord("x")).all()


@pytest.mark.parametrize("separator", ["\n", "\r\n"])
def test_lines_of_json(tmp_path: Path, separator: str) -> None:
    texts = ["a\u2028b", "carriage\rreturn", "\x85", "plain"]
    lines = [json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":\r")) for text in texts * 100]
    (tmp_path / "a.jsonl").write_bytes(separator.join(lines).encode())
    parts = inspect(str(tmp_path / "a.jsonl"), ["text"], 500)
    assert len(parts) > 5 and [text for part in parts for text in read_part(part, ["text"])] == texts * 100


def test_row_groups_are_read_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{i:06d}" * 20 for i in range(3000)]
    pq.write_table(pa.table({"n": range(3000), "text": texts}), tmp_path / "a.parquet", row_group_size=2000)
    parts = inspect(str(tmp_path / "a.parquet"), ["text"], 60_000)
    assert len(parts) == 8 and {part.group for part in parts} == {0, 1}
    assert [text for part in parts for text in read_part(part, ["text"])] == texts
    assert max(part.stop - part.start for part in parts) <= 500
    monkeypatch.setattr(module, "ROWS", 100)
    assert len(inspect(str(tmp_path / "a.parquet"), ["text"], 60_000)) == 30


def test_parquet_column_of_another_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 0 of row group 0: 'text' holds int, not text"):
        prepare([str(tmp_path / "a.parquet")], str(tmp_path / "out"))
    (tmp_path / "a.jsonl").write_text('{"text": null}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="'text' holds NoneType, not text"):
        prepare([str(tmp_path / "a.jsonl")], str(tmp_path / "out"))


def test_memory_does_not_grow_with_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PART_BYTES", 1 << 20)
    (tmp_path / "a.txt").write_bytes(b"A line of a long book.\n" * (1 << 21))
    tracemalloc.start()
    try:
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.txt").stat().st_size > 48e6 and peak < 16e6


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, kind: str) -> None:
    """It marks the encoding at the start of a file; further on it is a character."""
    text = "é\ufeff, the rest"
    path = tmp_path / f"a.{kind}"
    path.write_text("\ufeff" + (text if kind == "txt" else json.dumps({"text": text})), encoding="utf-8")
    assert [read_part(part, ["text"]) for part in inspect(str(path), ["text"], PART_BYTES)] == [[text]]
    path.write_text("\ufeff", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        inspect(str(path), ["text"], PART_BYTES)
