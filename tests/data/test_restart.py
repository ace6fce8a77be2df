"""Preparing that ended before its end: the same command goes on, and gives what an unbroken run gives."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Thread

import pytest

from gca_lit import whole_file
from gca_lit.data import prepare as module
from gca_lit.data.journal import Journal
from gca_lit.data.prepare import main, prepare
from gca_lit.data.shards import ShardReader, ShardWriter
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.whole_file import WholeFile

SHARD_TOKENS = 500


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Some 5,000 bytes: two books and many small documents, in parts of 600 bytes."""
    monkeypatch.setattr(module, "PART_BYTES", 600)
    (tmp_path / "a.txt").write_text("".join(f"Line {i} of a book: été.\n" for i in range(60)), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(lines([f"document {i}" * (i % 5) for i in range(60)]), encoding="utf-8")
    (tmp_path / "c.txt").write_text("é" * 1000, encoding="utf-8")
    return [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.txt")]


@pytest.fixture
def unbroken(inputs: list[str], tmp_path: Path) -> dict[str, bytes]:
    prepare(inputs, str(tmp_path / "unbroken"), shard_tokens=SHARD_TOKENS)
    found = content(tmp_path / "unbroken")
    assert len(found) == 12 and "tokens-00009.arrow" in found
    return found


def states_of(inputs: list[str], output: Path) -> list[Path]:
    """What the disk holds after every step of a run, from the first to the last."""
    found: list[Path] = []
    unlink = Path.unlink

    def keep() -> None:
        found.append(output.with_name(f"{output.name}-{len(found)}"))
        shutil.copytree(output, found[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_file.os, "fsync", lambda _: keep())
        patch.setattr(Path, "unlink", lambda path, **given: (unlink(path, **given), keep()))
        prepare(inputs, str(output), shard_tokens=SHARD_TOKENS)
    return found


@pytest.fixture
def states(inputs: list[str], unbroken: dict[str, bytes], tmp_path: Path) -> list[Path]:
    return states_of(inputs, tmp_path / "stepwise")


@pytest.mark.parametrize("shard, workers", [(0, 1), (7, 2), (60, 1), (None, 1)])
def test_sigkill(tmp_path: Path, shard: int | None, workers: int) -> None:
    (tmp_path / "a.txt").write_text("A line of a book.\n" * 9000, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(lines([f"document {i}" for i in range(9000)]), encoding="utf-8")
    run = ["--input", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), "--shard-tokens", "2000", "--output"]
    output = tmp_path / "out"
    awaited = output / ("prepare.journal" if shard is None else f"tokens-{shard:05d}.arrow")
    command = [sys.executable, "-m", "gca_lit.data.prepare", *run, str(output), "--workers", str(workers)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    while not awaited.exists() and process.poll() is None:
        time.sleep(0.0005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers_of = children.read_text(encoding="utf-8").split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "index.json").exists()
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing, so .* is no finished data set"):
        ShardReader(output)
    there = {path: path.stat().st_mtime_ns for path in sorted(output.glob("tokens-*.arrow"))[:shard]}
    main([*run, str(output)])
    if shard is not None:
        assert there == {path: path.stat().st_mtime_ns for path in there}
    main([*run, str(tmp_path / "unbroken")])
    assert content(output) == content(tmp_path / "unbroken")
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers_of):
        assert time.monotonic() < deadline, "workers outlive the process that was killed"
        time.sleep(0.01)


def test_killed_after_any_step(inputs: list[str], unbroken: dict[str, bytes], states: list[Path]) -> None:
    whole = [len(list(state.glob("prepare.journal"))) and (state / "prepare.journal").read_bytes().count(b"\n") - 1
             for state in states]  # fmt: skip
    assert len(states) > 40 and set(whole) >= set(range(11))
    for state, shards in zip(states, whole, strict=True):
        finished = (state / "index.json").exists()
        said = prepare(inputs, str(state), shard_tokens=SHARD_TOKENS)
        assert content(state) == unbroken
        if finished:
            assert "is up to date" in said
        elif shards > 0:
            assert f"the first {shards} shards were there from an earlier run" in said
        else:
            assert "earlier run" not in said


def test_killed_while_damaged_shards_are_written_anew(
    inputs: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    prepare(inputs, str(tmp_path / "out"), shard_tokens=SHARD_TOKENS)
    (tmp_path / "out" / "tokens-00003.arrow").write_bytes(b"damaged")
    for state in states_of(inputs, tmp_path / "out"):
        prepare(inputs, str(state), shard_tokens=SHARD_TOKENS)
        assert content(state) == unbroken


def test_torn_journal(inputs: list[str], unbroken: dict[str, bytes], states: list[Path], tmp_path: Path) -> None:
    state = next(state for state in states if (state / "tokens-00005.arrow").exists())
    for name in ("prepare.journal", "ends.journal"):
        for cut in (1, 9, 90, 300):
            torn = shutil.copytree(state, tmp_path / f"{name}{cut}")
            (torn / name).write_bytes((torn / name).read_bytes()[:-cut])
            prepare(inputs, str(torn), shard_tokens=SHARD_TOKENS)
            assert content(torn) == unbroken


@pytest.mark.parametrize("number, left", [(0, 0), (3, 3)])
def test_whole_shards_are_compared(
    inputs: list[str], unbroken: dict[str, bytes], states: list[Path], number: int, left: int
) -> None:
    state = next(state for state in states if (state / "tokens-00006.arrow").exists())
    shard = state / f"tokens-{number:05d}.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[900] ^= 1
    shard.write_bytes(damaged)
    said = prepare(inputs, str(state), shard_tokens=SHARD_TOKENS)
    assert content(state) == unbroken
    assert ("earlier run" in said) == (left > 0) and (not left or f"the first {left} shards" in said)


def test_other_settings_are_refused(
    inputs: list[str], unbroken: dict[str, bytes], states: list[Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"</s>": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    state = next(state for state in states if (state / "tokens-00005.arrow").exists())
    before = content(state)
    other = "holds unfinished shards of other inputs or settings: choose another --output or remove it"
    with pytest.raises(ValueError, match=other) as caught:
        prepare(inputs, str(state), shard_tokens=SHARD_TOKENS + 1)
    with pytest.raises(ValueError, match=other):
        prepare(inputs[1:], str(state), shard_tokens=SHARD_TOKENS)
    with pytest.raises(ValueError, match=r"holds shards of tokenizer byte \w{12}, not of .*: choose another --output"):
        prepare(inputs, str(state), tokenizer=str(tmp_path / "tokenizer.json"), shard_tokens=SHARD_TOKENS)
    assert content(state) == before
    prepare(inputs, str(state), shard_tokens=SHARD_TOKENS)
    assert content(state) == unbroken and caught.value.__traceback__, "who was refused holds no lock"


def test_foreign_shards_are_left_alone(inputs: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokens-00000.arrow").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds shards of another run: choose another --output or remove it"):
        prepare(inputs, str(tmp_path / "out"))
    assert content(tmp_path / "out") == {"tokens-00000.arrow": b"mine"}


def test_bad_input_in_the_middle_is_mended(inputs: list[str], unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """Only the shards behind the mended place are made again, within one file too."""
    good = Path(inputs[1]).read_text(encoding="utf-8")
    Path(inputs[1]).write_text(good.replace("{", "[", 40).replace("[", "{", 39), encoding="utf-8")
    run = inputs, str(tmp_path / "out"), "byte", "text", 1, SHARD_TOKENS
    with pytest.raises(ValueError, match=r"b\.jsonl, line at byte \d+: not valid JSON"):
        prepare(*run)
    assert sorted(content(tmp_path / "out")) == [
        "ends.journal",
        "prepare.journal",
        *(f"tokens-{i:05d}.arrow" for i in range(4)),
    ]
    Path(inputs[1]).write_text(good, encoding="utf-8")
    assert "the first 4 shards were there" in prepare(*run)
    assert content(tmp_path / "out") == unbroken


def test_inputs_that_grew_behind_the_last_shard(inputs: list[str], states: list[Path], tmp_path: Path) -> None:
    """The last shard of an unfinished run may be short: more text goes into it, not behind it."""
    state = next(state for state in states if (state / "documents.arrow").exists())
    (tmp_path / "d.txt").write_text("more " * 100, encoding="utf-8")
    more = [*inputs, str(tmp_path / "d.txt")]
    said = prepare(more, str(state), shard_tokens=SHARD_TOKENS)
    assert "the first 9 shards were there" in said
    prepare(more, str(tmp_path / "grown"), shard_tokens=SHARD_TOKENS)
    assert content(state) == content(tmp_path / "grown")


def fails_at(number: int, works: Callable) -> Callable:
    """`works`, but its call `number` meets a full disk."""
    calls = count()

    def call(*arguments: object) -> object:
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return works(*arguments)

    return call


def places(total: int) -> list[int]:
    """The first ones, the last ones, and some between."""
    return sorted({*range(min(total, 12)), *range(12, total, 7), *range(max(0, total - 6), total)})


@pytest.mark.parametrize("target, name", [(os, "fsync"), (WholeFile, "write"), (Path, "rename"), (Path, "mkdir")])
def test_full_disk(inputs: list[str], unbroken: dict[str, bytes], tmp_path: Path, target: type, name: str) -> None:
    works = getattr(target, name)
    calls = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, lambda *given, **named: (next(calls), works(*given, **named))[1])
        prepare(inputs, str(tmp_path / "counted"), shard_tokens=SHARD_TOKENS)
    total = next(calls)
    assert total > 0
    for number in places(total):
        output = tmp_path / f"full{number}"
        run = inputs, str(output), "byte", "text", 1, SHARD_TOKENS
        with pytest.MonkeyPatch.context() as patch:
            broken = fails_at(number, works)
            patch.setattr(target, name, lambda *given, _broken=broken, **_: _broken(*given))
            with pytest.raises(OSError, match=f"the disk of {output} is full .*: .* the same command again") as caught:
                prepare(*run)
        assert "whole shards of" in str(caught.value) and "takes up to 1000 bytes" in str(caught.value)
        assert not list(output.glob("*.part"))
        prepare(*run)
        assert content(output) == unbroken


def test_full_disk_by_the_system(inputs: list[str], unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the journal grows beyond it."""
    run = inputs, str(tmp_path / "out"), "byte", "text", 1, SHARD_TOKENS
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        with pytest.raises(OSError, match=r"out is full \(File too large\): \d whole shards of \d+ bytes"):
            prepare(*run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "earlier run" in prepare(*run)
    assert content(tmp_path / "out") == unbroken


def test_one_process_at_a_time(inputs: list[str], states: list[Path], unbroken: dict[str, bytes]) -> None:
    state = next(state for state in states if (state / "tokens-00005.arrow").exists())
    run = inputs, str(state), "byte", "text", 1, SHARD_TOKENS
    before = content(state)
    journal = Journal(state)
    journal.lock()
    with pytest.raises(ValueError, match=r"another process is writing to .*: wait for its end, or choose another"):
        prepare(*run)
    assert content(state) == before
    journal.unlock()
    prepare(*run)
    assert content(state) == unbroken


def test_a_writer_keeps_others_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "out", ByteTokenizer()) as writer:
        writer.add([1, 256])
        with (
            pytest.raises(ValueError, match="another process is writing to"),
            ShardWriter(tmp_path / "out", ByteTokenizer()),
        ):
            pass
    assert ShardReader(tmp_path / "out").total == 2


def test_damaged_journal(inputs: list[str], states: list[Path]) -> None:
    state = next(state for state in states if (state / "tokens-00005.arrow").exists())
    (state / "prepare.journal").write_bytes(b"damaged\n")
    with pytest.raises(ValueError, match=r"prepare\.journal is damaged or .*: choose another --output or remove it"):
        prepare(inputs, str(state), shard_tokens=SHARD_TOKENS)


def test_full_disk_on_the_command_line(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WholeFile, "write", fails_at(5, WholeFile.write))
    with pytest.raises(SystemExit) as caught:
        main(["--input", *inputs, "--output", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        f"error: the disk of {tmp_path}/out is full (No space left on device): 0 whole shards"
    )


def test_killed_worker(inputs: list[str], tmp_path: Path) -> None:
    def kill() -> None:
        while len(children := multiprocessing.active_children()) < 2:
            time.sleep(0.001)
        children[0].kill()

    killer = Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(RuntimeError, match=r"a worker process was killed, .* fewer --workers"):
        prepare(inputs, str(tmp_path / "out"), workers=2)
    killer.join()
