"""A prompt becomes the ids of its text, however long; what is no text is refused with its place."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.generation import prompting
from gca_lit.generation.prompting import encode_prompt

TEXT = "Zeile für Zeile\n漢字\n\n  eingerückt\n" * 9 + "ohne Ende 🙂"


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_ids_are_those_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(prompting, "BLOCK", block)
    (tmp_path / "p.txt").write_bytes(TEXT.encode())
    ids = encode_prompt(str(tmp_path / "p.txt"), ByteTokenizer())
    assert ids.dtype == np.uint16 and ids.tolist() == ByteTokenizer().encode(TEXT)


def test_parts_are_cut_behind_lines_and_a_short_text_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []

    class Noting(ByteTokenizer):
        def encode_batch(self, texts):
            parts.extend(texts)
            return super().encode_batch(texts)

    (tmp_path / "p.txt").write_bytes(TEXT.encode())
    encode_prompt(str(tmp_path / "p.txt"), Noting())
    assert parts == [TEXT]
    parts.clear()
    monkeypatch.setattr(prompting, "BLOCK", 64)
    encode_prompt(str(tmp_path / "p.txt"), Noting())
    assert len(parts) > 3 and all(part.endswith("\n") for part in parts[:-1]) and "".join(parts) == TEXT
    assert max(map(len, parts)) <= 2 * 64


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("stdin", [False, True])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, stdin: bool) -> None:
    """It marks the encoding at the start; further on it is a character."""

    def ids(content: bytes) -> list[int]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        (tmp_path / "p.txt").write_bytes(content)
        return encode_prompt("-" if stdin else str(tmp_path / "p.txt"), ByteTokenizer()).tolist()

    monkeypatch.setattr(prompting, "BLOCK", block)
    for text in ("a", "é\ufeff, the rest", "\ufeff"):
        assert ids(("\ufeff" + text).encode()) == list(text.encode())
    assert ids(b"a") == [97]
    with pytest.raises(ValueError, match="the prompt is empty"):
        ids("\ufeff".encode())
    with pytest.raises(ValueError, match=r"at byte 4$"):
        ids("\ufeffa".encode() + b"\xff")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("für".encode())))
    assert encode_prompt("-", ByteTokenizer()).tolist() == list("für".encode())


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_the_byte_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(prompting, "BLOCK", block)
    for content, place in ((b"abc\n\xff", 4), ("gut\nfür".encode() + b"\xc3(", 8), ("a漢".encode()[:-1], 1)):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"the prompt is not UTF-8 \(.*p\.txt\): .* at byte {place}$"):
            encode_prompt(str(tmp_path / "p.txt"), ByteTokenizer())


def test_a_prompt_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"the prompt is empty \(.*empty\.txt\)"):
        encode_prompt(str(tmp_path / "empty.txt"), ByteTokenizer())
    for name in ("nowhere.txt", "."):
        with pytest.raises(FileNotFoundError, match="there is no prompt file"):
            encode_prompt(str(tmp_path / name), ByteTokenizer())
