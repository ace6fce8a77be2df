"""A byte-level BPE from files: what it learns, that it loses nothing, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gca_lit.data.prepare import prepare
from gca_lit.data.tokenizers import PIECE, load_tokenizer
from gca_lit.data.train_tokenizer import main, train_tokenizer

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat, and the other cat sat there too.\n" * 40


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "a.txt"
    path.write_text(TEXT + "naïve 漢字 漢字\n", encoding="utf-8")
    return str(path)


def learn(text: str, folder: Path, vocab_size: int = 280) -> Path:
    path = folder / "out" / "tokenizer.json"
    train_tokenizer([text], str(path), vocab_size)
    return path


def test_frequent_words_become_tokens(text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(learn(text, tmp_path)))
    assert (tokenizer.vocab_size, tokenizer.eos) == (280, 0)
    assert len(tokenizer.encode(" the cat")) == 2 and len(tokenizer.encode(" zq")) == 3


@pytest.mark.parametrize(
    "odd",
    [
        "naïve 漢字 \U0001f469\u200d\U0001f680 e\u0301 \u00e9",  # an e with a combining accent is not é
        " two spaces  before and after  ",
        "\r\n\t\x00\x7f\u2028\ufeff\ufffd\uffff\U0010ffff",
        "ﬁ Å Å ½ İ ß \u017f",  # what a normalization would change
        "x" * (PIECE + 5) + "é" * PIECE,
        "".join(map(chr, range(1, 0x2000))),
        "a<|endoftext|>b",
        "",
    ],
)
def test_any_text_comes_back(text: str, tmp_path: Path, odd: str) -> None:
    tokenizer = load_tokenizer(str(learn(text, tmp_path)))
    assert tokenizer.decode(tokenizer.encode(odd)) == odd


def test_split_digits(tmp_path: Path) -> None:
    """However often a number stands in the text, with or without a space or a letter before it."""
    (tmp_path / "a.txt").write_text("in 1984 and 1984, v1984 or 19.84: 1984 1984 1984\n" * 50)
    for split, count in ((False, 2), (True, 10)):
        path = tmp_path / str(split) / "tokenizer.json"
        train_tokenizer([str(tmp_path / "a.txt")], str(path), 300, split_digits=split)
        tokenizer = load_tokenizer(str(path))
        assert len(tokenizer.encode(" 1984 1984")) == count
        assert tokenizer.decode(tokenizer.encode("٣٤ ½ 2²x10\n")) == "٣٤ ½ 2²x10\n"


def test_end_of_document_is_left_out_of_text(text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(learn(text, tmp_path)))
    assert tokenizer.decode([*tokenizer.encode("the cat"), tokenizer.eos]) == "the cat"


def test_every_process_learns_the_same(text: str, tmp_path: Path) -> None:
    first = learn(text, tmp_path).read_bytes()
    for threads in ("1", "4"):
        other = tmp_path / threads / "tokenizer.json"
        command = [sys.executable, "-m", "gca_lit.data.train_tokenizer", "--input", text]
        command += ["--output", str(other), "--vocab-size", "280"]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "RAYON_NUM_THREADS": threads}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert other.read_bytes() == first


def test_the_same_text_in_other_files(text: str, tmp_path: Path) -> None:
    lines = TEXT.splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in lines), encoding="utf-8")
    pq.write_table(pa.table({"body": lines}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text(TEXT, encoding="utf-8")
    for name in ("a.jsonl", "a.parquet", "b.txt"):
        train_tokenizer([str(tmp_path / name)], str(tmp_path / f"{name}.json"), 280, text_column="body")
    jsonl, parquet, txt = ((tmp_path / f"{name}.json").read_bytes() for name in ("a.jsonl", "a.parquet", "b.txt"))
    assert jsonl == parquet == txt


def test_pieces_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gathers 256 of them."""
    (tmp_path / "a.txt").write_text("ab cd\n" * 100_000, encoding="utf-8")
    lengths = []

    def note(texts, vocab_size, split_digits):
        lengths.extend(map(len, texts))
        return b"{}", vocab_size

    monkeypatch.setattr("gca_lit.data.train_tokenizer._train", note)
    learn(str(tmp_path / "a.txt"), tmp_path)
    assert sum(lengths) == 600_000 and max(lengths) <= PIECE


def test_a_small_text_says_how_many_tokens_it_gives(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    said = train_tokenizer([text], str(path), 5000)
    size = load_tokenizer(str(path)).vocab_size
    assert size < 5000 and said.startswith(f"{path}: {size} tokens, not 5000")


def test_an_output_that_is_there_stays(text: str, tmp_path: Path) -> None:
    path = learn(text, tmp_path)
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert train_tokenizer([text], str(path), 280) == f"{path} is up to date"
    with pytest.raises(ValueError, match=r"tokenizer\.json is another tokenizer"):
        train_tokenizer([text], str(path), 279)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_it_prepares_data(text: str, tmp_path: Path) -> None:
    path = learn(text, tmp_path)
    assert "tokens of tokenizer out/tokenizer.json" in prepare([text], str(tmp_path / "shards"), tokenizer=str(path))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--vocab-size", "256"], "--vocab-size must be at least 257"),
        (["--output", "tokenizer"], "--output tokenizer is not the name of a .json file"),
        (["--input", "none*.txt"], "no input matches none*.txt"),
    ],
)
def test_wrong_command_lines(text: str, tmp_path: Path, flags: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--input", text, "--output", str(tmp_path / "t.json"), *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"error: {message}")
    assert not (tmp_path / "t.json").exists()
