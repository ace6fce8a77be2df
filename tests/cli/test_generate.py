"""generate continues a prompt on standard output, and reads a book once for many questions."""

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gca_lit.callbacks import budget
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.memory import DiskStore
from gca_lit.model import Decoder
from gca_lit.module import CausalLM

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
Generate = Callable[..., str]
BOOK, QUESTION = "Der erste für 漢字. ", "Und dann?"


@pytest.fixture
def trained(run: Callable[..., None], run_dir: Path, capsys: Capture) -> Path:
    """The directory of a run of two steps."""
    run("fit")
    capsys.readouterr()
    return run_dir


@pytest.fixture
def generate(trained: Path, run: Callable[..., None], tmp_path: Path, capsys: Capture) -> Generate:
    """generate(prompt, *flags): standard output of a command that continues the text `prompt`."""

    def command(prompt: str, *flags: str) -> str:
        (tmp_path / "prompt.txt").write_bytes(prompt.encode())
        few = ("--sampling.max_new_tokens", "12")
        run("generate", "--ckpt_path", "last", "--prompt", str(tmp_path / "prompt.txt"), *few, *flags)
        return capsys.readouterr().out

    return command


def write_letters(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Make the model write `text` and then the end of the text, whatever it has read."""
    answer = iter([*text, ByteTokenizer.eos, *b"never"])

    def logits(self: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        wanted = torch.full((*hidden.shape[:-1], self.vocab_size), -9.0)
        wanted[..., next(answer)] = 9.0
        return wanted

    monkeypatch.setattr(Decoder, "logits", logits)


def test_the_text_alone_goes_to_standard_output(
    trained: Path, run: Callable[..., None], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> list[Path]:
        return sorted(trained.rglob("*"))

    before = files()
    (tmp_path / "p.txt").write_bytes(BOOK.encode())
    write_letters(monkeypatch, "für 漢字 🙂".encode())
    run("generate", "--ckpt_path", "last", "--prompt", str(tmp_path / "p.txt"), "--sampling.temperature", "0")
    said = capsys.readouterr()
    assert said.out == "für 漢字 🙂"
    read, written = len(BOOK.encode()), len("für 漢字 🙂".encode())
    rates = rf"read {read} tokens \([\d,.]+ tokens/s\) of the prompt, generated {written} tokens \([\d,.]+ tokens/s\)\n"
    assert re.search(rf"^{rates}$", said.err, re.MULTILINE)
    assert files() == before


def test_a_seed_gives_the_same_text(generate: Generate) -> None:
    seeds = [generate(BOOK, "--sampling.seed", seed) for seed in ("1", "1", "2")]
    assert seeds[0] == seeds[1] != seeds[2]
    assert generate(BOOK, "--segment", "5", "--sampling.seed", "1") == seeds[0]


def test_standard_input_and_output(generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(BOOK)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BOOK.encode())))
    assert generate("", "--prompt", "-") == expected
    assert generate(BOOK, "--show_prompt", "true") == BOOK + expected
    assert generate(BOOK, "--output", str(tmp_path / "out.txt")) == ""
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == expected


def test_a_stop_text_ends_it(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    write_letters(monkeypatch, b"one. two. ")
    assert generate(BOOK, "--sampling.stop", '["wo.", "three"]', "--sampling.temperature", "0") == "one. t"


def test_the_text_comes_as_it_is_made(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    write_letters(monkeypatch, b"abc")
    written: list[str] = []
    flushed: list[int] = []
    monkeypatch.setattr(sys.stdout, "write", lambda text: written.append(text))
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(len(written)))
    generate(BOOK)
    assert [text for text in written if text] == ["a", "b", "c"]
    assert {number for number, text in enumerate(written, 1) if text} <= set(flushed)


def test_a_book_is_read_once_for_many_questions(generate: Generate, tmp_path: Path) -> None:
    greedy = ("--sampling.temperature", "0")
    book = str(tmp_path / "book")
    assert generate(BOOK, "--save_state", book, "--sampling.max_new_tokens", "0") == ""
    for question in (QUESTION, "Was?"):
        expected = generate(BOOK + question, *greedy)
        assert generate(question, "--load_state", book, "--model.store", "DeviceStore", *greedy) == expected
    generate(QUESTION, "--load_state", book, "--save_state", str(tmp_path / "more"))
    expected = generate(BOOK + QUESTION + "?", *greedy)
    assert generate("?", "--load_state", str(tmp_path / "more"), *greedy) == expected


@pytest.mark.parametrize("attention", ["FullAttention", "SlidingWindow --model.attention.window 6"])
def test_other_backends(run: Callable[..., None], tmp_path: Path, capsys: Capture, attention: str) -> None:
    flags = ["--model.attention", *attention.split()]
    run("fit", *flags)
    (tmp_path / "p.txt").write_text(BOOK, encoding="utf-8")
    flags += ["--ckpt_path", "last", "--prompt", str(tmp_path / "p.txt"), "--sampling.max_new_tokens", "4"]
    found = []
    for state in ("--save_state", "--load_state"):
        capsys.readouterr()
        run("generate", *flags, state, str(tmp_path / "state"))
        found.append(re.findall("generated 4 tokens", capsys.readouterr().err))
    assert found == [["generated 4 tokens"]] * 2


def test_it_runs_like_an_evaluation(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trainer's precision, without gradients or dropout, and of the data with the tokenizer alone."""
    modes = set()
    step = CausalLM.step

    def spy(self: CausalLM, *args: object, **kwargs: object) -> object:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        modes.add((dtype, torch.is_grad_enabled(), self.training))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CausalLM, "step", spy)
    nowhere = ("--data.train", "nowhere", "--data.val", "nowhere", "--data.test", "null")
    generate(BOOK, "--trainer.precision", "bf16-mixed", *nowhere)
    assert modes == {(torch.bfloat16, False, False)}


def test_mistakes_end_with_one_line(
    generate: Generate, tiny: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.txt").write_text(BOOK, encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    book = tmp_path / "book"
    generate(BOOK, "--save_state", str(book))

    def message(*flags: str, prompt: str = "good.txt") -> str:
        command = ("generate", "--config", tiny, "--ckpt_path", "last", "--prompt", str(tmp_path / prompt))
        return refused(*command, *flags)

    assert "there is no prompt file" in message(prompt="nowhere.txt")
    assert "the prompt is empty" in message(prompt="empty.txt")
    assert "latin.txt): invalid start byte at byte 1" in message(prompt="latin.txt")
    assert "there is no saved state in" in message("--load_state", str(tmp_path / "nowhere"))
    assert "book exists already" in message("--save_state", str(book))
    assert "there is no directory" in message("--output", str(tmp_path / "nowhere" / "out.txt"))
    assert "good.txt is an input" in message("--output", str(tmp_path / "good.txt"))
    assert (tmp_path / "good.txt").read_text(encoding="utf-8") == BOOK
    assert "tiny.yaml is an input" in message("--output", tiny)
    record = str(book / "state.json")
    assert "state.json is an input" in message("--load_state", str(book), "--output", record)
    assert "book is a directory" in message("--output", str(book))
    assert "new is a directory" in message("--save_state", str(tmp_path / "new"), "--output", str(tmp_path / "new"))
    assert "load_state is an empty text" in message("--load_state", "")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("last-*")
    assert f"{checkpoint} is an input" in message("--output", str(checkpoint))
    assert "runs on one device, not on 2" in message("--trainer.devices", "2")
    assert "sampling.top_p must be above 0" in message("--sampling.top_p", "0")
    assert "segment must be at least 1" in message("--segment", "0")
    assert "no setting sampling.temprature" in message("--sampling.temprature", "0")
    full = ("--model.attention", "FullAttention", "--model.attention.max_length", "30")
    assert "at most max_length = 30 tokens" in message(*full)
    assert "another architecture" in message("--model.attention", "FullAttention")
    assert "attention.window: 10 in the state, 12" in message(
        "--load_state", str(book), "--model.attention.window", "12"
    )
    (book / "chunks.bin").write_bytes((book / "chunks.bin").read_bytes()[:-1] + b"x")
    assert f"{book / 'chunks.bin'} is damaged" in message("--load_state", str(book))
    assert "needs --ckpt_path" in refused("generate", "--config", tiny, "--prompt", "-")


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_read(
    generate: Generate, tiny: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_on_disk(self: DiskStore, size: int) -> dict[str, int]:
        return {"host": 0, "disk": size}

    book = str(tmp_path / "book")
    generate(BOOK, "--save_state", book)
    monkeypatch.setattr(CausalLM, "step", None)  # nothing is read
    question = ("generate", "--config", tiny, "--ckpt_path", "last", "--prompt", str(tmp_path / "prompt.txt"))
    (tmp_path / "prompt.txt").write_bytes(BOOK.encode() * 100)
    disk = ("--model.store", "DiskStore", "--model.store.directory", str(tmp_path))
    tokens = 100 * len(BOOK.encode())
    monkeypatch.setattr(budget, "available_bytes", lambda: 1000)
    assert re.match(f"{tokens:,} tokens: needs .* of host memory, has 800 B", refused(*question))
    more = tokens + len(BOOK.encode())
    assert refused(*question, "--load_state", book).startswith(f"{more:,} tokens: needs ")
    monkeypatch.setattr(budget, "available_bytes", lambda: None)
    monkeypatch.setattr(DiskStore, "needs", all_on_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert re.match(f"{tokens:,} tokens: needs .* of disk, {tmp_path} has 0 B free", refused(*question, *disk))


def test_a_disk_that_fills_ends_in_one_line(
    trained: Path, run: Callable[..., None], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "p.txt").write_bytes(BOOK.encode() * 1000)
    monkeypatch.setattr(os, "pwrite", full)
    disk = f"{{class_path: DiskStore, init_args: {{slab_mib: 1, host_mib: 2, directory: {tmp_path}}}}}"
    with pytest.raises(SystemExit) as stop:
        run("generate", "--ckpt_path", "last", "--prompt", str(tmp_path / "p.txt"), "--model.store", disk)
    assert stop.value.code == 1
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert f"chunk K/V could not be written to {tmp_path}" in said and "make room" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_an_output_that_takes_nothing_ends_in_one_line(
    trained: Path, run: Callable[..., None], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "p.txt").write_text(BOOK, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run("generate", "--ckpt_path", "last", "--prompt", str(tmp_path / "p.txt"), "--output", "/dev/full")
    assert stop.value.code == 1
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "the text could not be written to /dev/full" in said


def test_errors_of_a_generation_keep_their_traceback(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(CausalLM, "step", fail)
    with pytest.raises(ValueError, match="a bug"):
        generate(BOOK)


@pytest.mark.parametrize("end, code", [("nobody reads on", 0), (signal.SIGTERM, 143)])
def test_ends_from_outside(trained: Path, tiny: str, tmp_path: Path, end: object, code: int) -> None:
    """A reader like `head` that has enough is no error; a signal ends it at once."""
    (tmp_path / "p.txt").write_text(BOOK, encoding="utf-8")
    flags = ["--config", tiny, "--ckpt_path", "last", "--prompt", str(tmp_path / "p.txt")]
    flags += ["--sampling.max_new_tokens", "1000000", "--sampling.temperature", "0"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "lightning_cli.py", "generate", *flags]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.read(1)
        run.stdout.close() if end == "nobody reads on" else run.send_signal(signal.SIGTERM)
        said = run.stderr.read().decode()
    assert run.returncode == code and "Traceback" not in said
    assert ("generated" in said) == (code == 0)
