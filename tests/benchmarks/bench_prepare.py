"""How fast prepare is, and in how much memory.

    python tests/benchmarks/bench_prepare.py --text DIR --bytes 1e9 --workers 1 2 --output FILE.jsonl

Text of the asked size is made from the .txt files in DIR, again and again, in three shapes: many books, one document,
and small documents in one .jsonl file. Each is prepared in a process of its own; a JSON line each is appended to FILE.
Seconds count the whole command, its start included. Memory is the sum of the resident memory of all its processes,
pages that they share counted in each, the largest of the samples taken every 50 ms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

from gca_lit import provenance
from gca_lit.data.shards import ShardReader

BOOK = 1_000_000
DOCUMENT = 300


def books(folder: Path, text: bytes, size: int) -> None:
    """Files of about the size of a book."""
    for number, start in enumerate(range(0, size, BOOK)):
        (folder / f"{number:06d}.txt").write_bytes(b"".join(pieces(text, BOOK, min(BOOK, size - start))))


def one_document(folder: Path, text: bytes, size: int) -> None:
    """One file."""
    with (folder / "document.txt").open("wb") as file:
        file.writelines(pieces(text, BOOK, size))


def small_documents(folder: Path, text: bytes, size: int) -> None:
    """One .jsonl file; a document is some lines of text."""
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for piece in pieces(text, DOCUMENT, size):
            file.write(json.dumps({"text": piece.decode()}, ensure_ascii=False) + "\n")


SHAPES: dict[str, Callable[[Path, bytes, int], None]] = {
    "books": books,
    "one document": one_document,
    "small documents": small_documents,
}


def pieces(text: bytes, length: int, size: int) -> Iterator[bytes]:
    """Whole lines, at least `length` bytes at once as far as the text goes, until there are `size` bytes."""
    made = 0
    for piece in cycle(whole_lines(text, length)):
        yield piece
        made += len(piece)
        if made >= size:
            return


def whole_lines(text: bytes, length: int) -> list[bytes]:
    found = []
    start = 0
    while start < len(text):
        stop = text.find(b"\n", start + length) + 1 or len(text)
        found.append(text[start:stop])
        start = stop
    return found


def resident(pid: int) -> int:
    """Bytes of resident memory of a process and its descendants; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return 0
    own = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")]
    return sum(own) + sum(resident(int(child)) for child in children)


def measure(source: Path, output: Path, workers: int) -> tuple[float, int]:
    """Seconds and the largest memory in bytes of one command."""
    files = [str(source / f"*.{suffix}") for suffix in ("txt", "jsonl") if any(source.glob(f"*.{suffix}"))]
    command = [sys.executable, "-m", "gca_lit.data.prepare", "--input", *files, "--output", str(output)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--workers", str(workers)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return time.perf_counter() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, metavar="DIR", help="folder of .txt files")
    parser.add_argument("--bytes", type=float, default=1e9, help="size of each shape (default: 1e9)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines are appended to it")
    given = parser.parse_args()
    text = b"".join(path.read_bytes() for path in sorted(given.text.glob("*.txt")))
    if not text:
        raise SystemExit(f"there is no .txt file in {given.text}")
    for shape, make in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "source"
            source.mkdir()
            make(source, text, int(given.bytes))
            size = sum(path.stat().st_size for path in source.iterdir())
            for workers in given.workers:
                output = Path(name) / f"workers{workers}"
                seconds, peak = measure(source, output, workers)
                manifest = ShardReader(output).manifest
                result = {
                    "shape": shape,
                    "files": len(list(source.iterdir())),
                    "bytes": size,
                    "workers": workers,
                    "seconds": round(seconds, 2),
                    "bytes_per_second_and_worker": round(size / seconds / workers),
                    "peak_memory_bytes": peak,
                    "tokens": manifest["tokens"],
                    "documents": manifest["documents"],
                    "shards": len(manifest["files"]) - 1,
                    "command": provenance.command(),
                    "commit": provenance.commit(),
                    "hardware": provenance.hardware(),
                    "versions": provenance.versions(),
                }
                print(json.dumps(result))
                given.output.parent.mkdir(parents=True, exist_ok=True)
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
