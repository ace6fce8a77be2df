"""Pairs from books: python -m gca_lit.data.book_pairs --input FILES... --output pairs.jsonl"""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from gca_lit.arguments import Arguments, said
from gca_lit.data.inputs import PART_BYTES, find_inputs, inspect, read_part
from gca_lit.whole_file import WholeFile, part_of, refuse_overwriting

NUMBER = r"(?:[IVXLC]+|\d+)"
NAME = r"(?i:chapter|chap\.|book|part|letter|canto)"
HEADING = re.compile(rf"\s*(?:{NAME}\s+(?:{NUMBER}|[A-Z-]{{3,}})\b|{NUMBER}\.?\s*$)")
HEADING_LENGTH = 200  # characters
WORDS = range(30, 201)
PARAGRAPHS = 8  # of a document, at least


def book_pairs(inputs: list[str], output: str, text_column: str = "text") -> str:
    """Write a pair for every chapter of the books in `inputs` (files or globs: .txt, .jsonl, .parquet) to `output`.

    The document is the chapter up to its last paragraph of 30 to 200 words, the target is that paragraph; a line of
    `output` has both as `document` and `target`. Chapters of less than 8 paragraphs before it are left out. Returns one
    sentence that says how many pairs there are, and how many books have no heading that is known.

    Raises ValueError or FileNotFoundError for inputs that cannot be used or have no chapter, and for an output that is
    an input, does not end in .jsonl, or whose directory is not there.
    """
    place, files = Path(output), find_inputs(inputs)
    if place.suffix != ".jsonl":
        raise ValueError(f"--output {output} must end in .jsonl")
    if not place.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no directory {place.absolute().parent} for the output: make it")
    refuse_overwriting([place, part_of(place)], map(Path, files))
    books = without = pairs = 0
    with WholeFile(place) as file:
        for path in files:
            for text in _books(path, text_column):
                found = list(chapter_pairs(text))
                for document, target in found:
                    line = json.dumps({"document": document, "target": target}, ensure_ascii=False)
                    file.write(line.encode() + b"\n")
                books, without, pairs = books + 1, without + (not found), pairs + len(found)
        if not pairs:
            raise ValueError(f"no chapter heading is found in the {books} books of {', '.join(inputs)}")
    return f"{output}: {pairs} pairs from {books - without} books; {without} books have no chapter that is recognized"


def chapter_pairs(text: str) -> Iterator[tuple[str, str]]:
    """The pairs of one book: a chapter up to its last paragraph of some length, and that paragraph."""
    paragraphs = [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    heads = [at for at, part in enumerate(paragraphs) if len(part) <= HEADING_LENGTH and HEADING.match(part)]
    for start, stop in pairwise([*heads, len(paragraphs)]):
        for at in reversed(range(start + PARAGRAPHS, stop)):
            if len(paragraphs[at].split()) in WORDS:
                yield "\n\n".join(paragraphs[start:at]), paragraphs[at]
                break


def _books(path: str, column: str) -> Iterator[str]:
    parts = inspect(path, [column], PART_BYTES)
    if Path(path).suffix == ".txt":
        yield "".join(text for part in parts for text in read_part(part, [column]))
    else:
        for part in parts:
            yield from read_part(part, [column])


def main(arguments: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.data.book_pairs", description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, metavar="FILES", help=".txt, .jsonl, .parquet; or globs")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--text-column", default="text", help="field or column that holds the text (default: text)")
    given = parser.parse_args(arguments)
    try:
        print(book_pairs(given.input, given.output, given.text_column))
    except (ValueError, OSError) as error:
        parser.error(said(error))


if __name__ == "__main__":
    main()
