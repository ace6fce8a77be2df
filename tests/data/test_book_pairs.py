"""Chapters of books, each with the paragraph that comes next."""

import json
from pathlib import Path

import pytest

from gca_lit.data.book_pairs import book_pairs, chapter_pairs, main

SHORT = [f"Short paragraph number {i}." for i in range(12)]


def long(word: str) -> str:
    return "\n".join([f"{word} " * 10] * 4).strip()


def book(*headings: str) -> str:
    chapters = ["\n\n".join([heading, *SHORT, long(f"w{i}"), "The end."]) for i, heading in enumerate(headings)]
    return "A title\n\n\n" + "\n\n".join(chapters) + "\n"


def test_a_chapter_and_its_next_paragraph() -> None:
    headings = ["CHAPTER I.\nOf what is told first", "Chapter 2", "IV.", "BOOK THE-THIRD"]
    found = list(chapter_pairs(book(*headings)))
    assert [target for _, target in found] == [long(f"w{i}") for i in range(4)]
    assert [document for document, _ in found] == ["\n\n".join([heading, *SHORT]) for heading in headings]


@pytest.mark.parametrize(
    "text",
    [
        book("A chapter of accidents", "Part of the way"),  # no headings
        "CHAPTER I\n\n" + long("too-early") + "\n\n" + "\n\n".join(SHORT),
        "CHAPTER I\n\n" + "\n\n".join([*SHORT, "word " * 201]),
        "",
    ],
)
def test_no_pair(text: str) -> None:
    assert not list(chapter_pairs(text))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [book("CHAPTER I", "CHAPTER II"), "nothing", book("CHAPTER é", "CHAPTER 1")]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.txt").write_text(texts[0])
    output = tmp_path / "pairs.jsonl"
    main(["--input", str(tmp_path / "b.jsonl"), str(tmp_path / "b.txt"), "--output", str(output)])
    assert capsys.readouterr().out == f"{output}: 5 pairs from 3 books; 1 books have no chapter that is recognized\n"
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5 and all(set(row) == {"document", "target"} for row in rows)
    (tmp_path / "none.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no chapter heading is found in the 1 books of"):
        book_pairs([str(tmp_path / "none.txt")], str(tmp_path / "none.jsonl"))
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.jsonl", "own.jsonl is an input"),
        ("link.jsonl", "link.jsonl is an input"),
        ("own.txt", "own.txt must end in .jsonl"),
        ("none/x.jsonl", "there is no directory {}/none for the output: make it\n"),
    ],
)
def test_outputs_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    content = json.dumps({"text": book("CHAPTER I")})
    (tmp_path / "own.jsonl").write_text(content)
    (tmp_path / "link.jsonl").symlink_to("own.jsonl")
    with pytest.raises(SystemExit) as stop:
        main(["--input", str(tmp_path / "*wn.jsonl"), "--output", str(tmp_path / name)])
    (line,) = capsys.readouterr().err.splitlines(keepends=True)
    assert stop.value.code == 2 and message.format(tmp_path) in line
    assert (tmp_path / "own.jsonl").read_text() == content and len(list(tmp_path.iterdir())) == 2
