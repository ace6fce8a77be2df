"""Text that comes token by token is the text of all tokens, in whole characters and without stop texts."""

import json
from pathlib import Path

import pytest
import torch

from gca_lit.data.tokenizers import ByteTokenizer, FileTokenizer
from gca_lit.generation.text_stream import UNKNOWN, TextStream, text_of, until_stop

TEXT = "naïve 漢字 and 🙂🙃, e\u0301 \u2013 \u05d0\u05d1. The end"


def singly(ids):
    return [[i] for i in ids]


def test_characters_come_whole() -> None:
    tokenizer = ByteTokenizer()
    pieces = list(text_of(singly(tokenizer.encode(TEXT)), TextStream(tokenizer.decode)))
    assert "".join(pieces) == TEXT
    assert all(UNKNOWN not in piece and len(piece) <= 1 for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_bytes_that_are_no_text(size: int) -> None:
    """The stream never waits for more than the rest of one character."""
    tokenizer = ByteTokenizer()
    for seed in range(30):
        ids = torch.randint(0, 257, (60,), generator=torch.Generator().manual_seed(seed)).tolist()
        stream, given = TextStream(tokenizer.decode), ""
        for at in range(0, 60, size):
            given += stream.push(ids[at : at + size])
            assert len(stream._ids) <= 4 * size + 8
        given += stream.end()
        whole = tokenizer.decode(ids)
        assert given.replace(UNKNOWN, "") == whole.replace(UNKNOWN, "")


def test_what_is_cut_at_the_end_is_given_at_the_end() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("a漢")[:-1]
    stream = TextStream(tokenizer.decode)
    assert [stream.push([i]) for i in ids] == ["a", "", ""]
    assert stream.end() == UNKNOWN


@pytest.fixture
def words(tmp_path: Path) -> FileTokenizer:
    """A tokenizer that writes a blank before every word but the first, and letters it lacks as bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<eos>": 0, "<unk>": 1, "▁one": 2, "▁two": 3} | {f"<0x{i:02X}>": i + 4 for i in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    content = json.loads(tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return FileTokenizer(str(tmp_path / "tokenizer.json"))


def test_blanks_and_byte_tokens(words: FileTokenizer) -> None:
    ids = [2, 3, *(byte + 4 for byte in "你好".encode()), 2, 2]
    assert words.decode(ids) == "one two你好 one one"
    pieces = list(text_of(singly(ids), TextStream(words.decode)))
    assert "".join(pieces) == words.decode(ids) and all(UNKNOWN not in piece for piece in pieces)


def test_the_context_is_not_given_but_counts(words: FileTokenizer) -> None:
    assert TextStream(words.decode).push([3]) == "two"
    assert TextStream(words.decode, context=[2]).push([3]) == " two"


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["four"], "one two three"),
        ("one two three", ["three", "two"], "one "),
        ("aab", ["ab"], "a"),
        ("aaab", ["aab", "b"], "a"),
        ("abac", ["abab"], "abac"),
        ("ends with a beginning: sto", ["stop"], "ends with a beginning: sto"),
        ("stop", ["stop"], ""),
        ("anything", [], "anything"),
    ],
)
def test_stop_texts_may_span_pieces_and_are_not_given(text: str, stop: list[str], expected: str) -> None:
    for size in (1, 2, 3, 100):
        pieces = (text[at : at + size] for at in range(0, len(text), size))
        assert "".join(until_stop(pieces, stop)) == expected


def test_nothing_is_held_back_without_need() -> None:
    given = []
    stream = until_stop(iter(["x", "y", "a", "b", "z"]), ["abc"])
    for piece in stream:
        given.append(piece)
    assert given == ["x", "y", "abz"]


def test_after_a_stop_text_no_token_is_asked_for() -> None:
    def pieces():
        yield "one stop"
        raise AssertionError("asked for more")

    assert list(until_stop(pieces(), ["stop"])) == ["one "]
