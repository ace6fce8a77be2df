import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gca_lit.data import prepare as module
from gca_lit.data.prepare import main, prepare
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import ByteTokenizer

TEXTS = [f"Document {i}: \u00e9t\u00e9\n" * (i + 1) for i in range(12)]


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.txt").write_text(TEXTS[1])
    lines = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS[2:8])) + "\n\n"
    (tmp_path / "c.jsonl").write_text(lines)
    pq.write_table(pa.table({"text": TEXTS[8:]}), tmp_path / "d.parquet", row_group_size=3)
    return [str(tmp_path / "*.txt"), str(tmp_path / "c.jsonl"), str(tmp_path / "d.parquet")]


def texts_of(directory: Path) -> list[str]:
    reader = ShardReader(directory)
    ids = [reader.tokens(start, stop).tolist() for start, stop in zip(*reader.documents, strict=True)]
    assert all(document[-1] == 256 for document in ids)
    return [ByteTokenizer().decode(document) for document in ids]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_all_kinds_any_workers(inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 64)
    said = prepare(inputs, str(tmp_path / "one"), shard_tokens=500)
    assert "12 documents" in said and texts_of(tmp_path / "one") == TEXTS
    prepare(inputs, str(tmp_path / "two"), shard_tokens=500, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_second_run_does_nothing(inputs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(inputs, str(output))
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert prepare(inputs, str(output)) == f"{output} is up to date"
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(ValueError, match="shards of other inputs"):
        prepare(inputs[:1], str(output))


def test_other_tokenizer_in_output(inputs: list[str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    prepare(inputs, str(tmp_path / "out"))
    Tokenizer(models.WordLevel({"</s>": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"holds shards of tokenizer byte \w{12}, not of .*tokenizer\.json \w{12}:"):
        prepare(inputs, str(tmp_path / "out"), tokenizer=str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    "name, bad, message",
    [
        ("x.txt", b"", "is empty"),
        ("x.txt", b"abc\0def", "a NUL byte at byte 3"),
        ("x.txt", b"a" * 2_000_000 + b"\xff", "is not UTF-8: .* at byte 2000000"),
        ("x.txt", b"a" * ((1 << 20) - 1) + "é".encode()[:1], "is not UTF-8: .* at byte 1048575"),
        ("x.txt", b"a" * ((1 << 20) - 1) + b"\xc3(", "is not UTF-8: .* at byte 1048575"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line at byte 14: no field 'text', only txt"),
        ("x.jsonl", b"[]\n", "line at byte 0: no field 'text', the line is no object"),
        ("x.jsonl", b'{"text": "a"}\n{"text"\n', "line at byte 14: not valid JSON"),
        ("x.jsonl", b'{"text": 3}\n', "'text' holds int, not text"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "not valid Unicode"),
        ("x.jsonl", b"\n\n", "there is no document"),
        ("x.parquet", b"PAR1 no", "is not a Parquet file"),
        ("x.csv", b"a,b", r"none of \.txt, \.jsonl, \.parquet"),
    ],
)
def test_bad_input_leaves_no_output(tmp_path: Path, name: str, bad: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(bad)
    with pytest.raises(ValueError, match=message):
        prepare([str(tmp_path / name)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_missing_column_and_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a", None]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column 'text', only body"):
        prepare([str(tmp_path / "x.parquet")], str(tmp_path / "out"))
    with pytest.raises(ValueError, match="row 1 of row group 0: 'body' holds NoneType"):
        prepare([str(tmp_path / "x.parquet")], str(tmp_path / "out"), text_column="body")


def test_command_line(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--input", *inputs, "--output", str(tmp_path / "out")])
    assert "12 documents" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--input", str(tmp_path / "none*.txt"), "--output", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: no input matches {tmp_path}/none*.txt\n"


def test_a_long_document_stays_whole(tmp_path: Path) -> None:
    texts = ["first", "x" * 100 + "\n" + "a line\n" * 450_000, "last"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for kind in ("parquet", "jsonl"):
        prepare([str(tmp_path / f"x.{kind}")], str(tmp_path / kind), shard_tokens=1 << 20)
        assert texts_of(tmp_path / kind) == texts


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_pairs_are_two_documents_a_row(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 64)
    rows = [{"summary": f"s{i}", "id": i, "document": text} for i, text in enumerate(TEXTS)]
    path, output = tmp_path / f"x.{kind}", tmp_path / "out"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    prepare([str(path)], str(output), text_column="document", target_column="summary")
    assert texts_of(output) == [text for row in rows for text in (row["document"], row["summary"])]
    assert ShardReader(output).manifest["target_column"] == "summary"
    with pytest.raises(ValueError, match="shards of other inputs or settings"):
        prepare([str(path)], str(output), text_column="document")
    with pytest.raises(ValueError, match=r"no (column|field) 'target'"):
        prepare([str(path)], str(tmp_path / "other"), text_column="document", target_column="target")


def test_text_files_have_no_pairs(inputs: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.txt has no columns text, summary: give \.jsonl or \.parquet"):
        prepare(inputs, str(tmp_path / "out"), target_column="summary")


def test_a_pair_has_two_columns(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "summary": "b"}\n')
    said = prepare([str(tmp_path / "x.jsonl")], str(tmp_path / "out"), target_column="summary")
    assert "1 pairs (2 documents)" in said
    with pytest.raises(ValueError, match="are both 'text': a pair needs two columns"):
        prepare([str(tmp_path / "x.jsonl")], str(tmp_path / "other"), target_column="text")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]])
def test_damaged_shards_are_written_anew(tmp_path, damage):
    (tmp_path / "a.txt").write_text("some text " * 100)
    run = [str(tmp_path / "a.txt")], str(tmp_path / "out")
    prepare(*run)
    shard = tmp_path / "out" / "tokens-00000.arrow"
    good = shard.read_bytes()
    shard.write_bytes(damage(good))
    assert "up to date" not in prepare(*run)
    assert shard.read_bytes() == good and "up to date" in prepare(*run)


@pytest.mark.parametrize("place", ["file", "file/sub"])
def test_an_output_that_cannot_be_a_folder(inputs: list[str], tmp_path: Path, place: str, capsys) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(SystemExit) as stop:
        main(["--input", *inputs, "--output", str(tmp_path / place)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"error: --output {tmp_path / place} cannot be used: ")
    assert "Errno" not in line and (tmp_path / "file").read_text() == "here"


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.txt").write_text(name)
    prepare(["b.txt", "*.txt", "./a.txt", str(tmp_path / "b.txt")], "out")
    assert ShardReader("out").tokens(0, 4).tolist() == [98, 256, 97, 256]


def test_an_interrupt_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "prepare", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["--input", "a.txt", "--output", "out"])
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "interrupted, the same command goes on behind the last whole shard\n")


INTERRUPT = """
import os, signal, sys
if any("spawn_main" in argument for argument in sys.orig_argv):
    os.kill(os.getpid(), signal.SIGINT)
    try:
        os.mkdir({once!r})
        os.kill(os.getppid(), signal.SIGINT)
    except FileExistsError:
        pass
"""


def test_an_interrupt_while_workers_start_ends_in_one_line(tmp_path: Path) -> None:
    """A terminal interrupts all processes: here each worker before its first import, and the command at the first."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.format(once=str(tmp_path / "once")))
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("some text")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "gca_lit.data.prepare", "--input", f"{tmp_path}/*.txt", "--workers", "2"]
    command += ["--output", str(tmp_path / "out")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not hear it
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, preexec_fn=heard)
    assert (tmp_path / "once").exists()
    said = "interrupted, the same command goes on behind the last whole shard\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)
