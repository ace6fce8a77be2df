"""What goes wrong around a run ends it with a message, and loses nothing."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gca_lit.cli import main
from gca_lit.run_directory import RunLock
from tests.resume.conftest import ROOT, Run, assert_same, fault

LAST = ("--ckpt_path", "last")
SHORT = ("--trainer.max_steps", "9")
MakeRun = Callable[[str], Run]


def test_a_worker_that_dies(make_run: MakeRun, capfd: pytest.CaptureFixture[str]) -> None:
    unbroken = make_run("unbroken")
    main(unbroken.arguments(*SHORT))
    run = make_run("broken")
    with pytest.raises(SystemExit) as stop:
        main(run.arguments(*SHORT, "--data.num_workers", "1", fault(10, "kill worker")))
    assert stop.value.code == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    message = (
        r"error: the data-loader worker with pid \d+ .*\. Most likely the host ran out of memory: take fewer workers"
    )
    assert len(lines) == 1 and re.match(message, lines[0]), lines
    main(run.arguments(*SHORT, *LAST))
    assert_same(run.lines(), unbroken.lines())


def test_a_skipped_step_resumes_exactly(make_run: MakeRun) -> None:
    """Steps 2 and 3 are skipped, the second one after resuming: the count goes on."""
    skip = fault(5, "nan", until=7)
    unbroken = make_run("unbroken")
    main(unbroken.arguments(*SHORT, skip))
    run = make_run("broken")
    with pytest.raises(SystemExit):
        main(run.arguments(*SHORT, skip, fault(6, "SIGTERM")))
    main(run.arguments(*SHORT, *LAST, skip))
    assert_same(run.lines(), unbroken.lines())


@pytest.mark.slow
def test_both_ranks_skip_what_one_cannot_use(make_run: MakeRun) -> None:
    run = make_run("run")
    ddp = ("--config", "configs/trainer/ddp_cpu.yaml", "--trainer.accumulate_grad_batches", "1", *SHORT)
    code, errors = run.finish(*ddp, fault(3, "nan loss", rank=1))
    assert code == 0, errors
    assert errors.count("step 3 is skipped: loss or gradients are not finite") == 1
    weights = [[line["weights"] for line in run.lines(rank)] for rank in (0, 1)]
    assert weights[0] == weights[1]
    assert weights[0][3] == weights[0][2] and len(set(weights[0])) == 8


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_fails_ends_both_and_spoils_nothing(make_run: MakeRun, rank: int) -> None:
    unbroken, run = make_run("unbroken"), make_run("broken")
    ddp = ("--config", "configs/trainer/ddp_cpu.yaml", "--data.batch_size", "2", *SHORT)
    assert unbroken.finish(*ddp)[0] == 0
    code, errors = run.finish(*ddp, fault(12, "raise", rank=rank))  # returns when both processes have ended
    assert code not in (0, 2) and "stopped on purpose" in errors
    assert run.checkpoints() == ["last-step=4.ckpt"]
    assert run.finish(*ddp, *LAST)[0] == 0
    for number in (0, 1):
        assert_same(run.lines(number), unbroken.lines(number))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_those_that_a_scheduler_has_started(make_run: MakeRun, rank: int) -> None:
    run = make_run("run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    ddp = ("--config", "configs/trainer/ddp_cpu.yaml", *SHORT, fault(12, "raise", rank=rank))
    ranks = [run.start(*ddp, LOCAL_RANK=str(number), **place) for number in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert ["RuntimeError: stopped on purpose" in text for text in errors] == [rank == 0, rank == 1]
    assert run.checkpoints() == ["last-step=4.ckpt"]


def test_two_runs_in_one_directory(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("run")
    code = "import sys, time; from pathlib import Path; from gca_lit.run_directory import RunLock\n"
    code += "lock = RunLock(Path(sys.argv[1])); print('taken', flush=True); time.sleep(60)"
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, encoding="utf-8") as first:
        assert first.stdout is not None and first.stdout.readline() == "taken\n"
        with pytest.raises(SystemExit) as stop:
            main(run.arguments(*SHORT))
        assert stop.value.code == 2
        message = rf"error: {run.folder} is in use by pid {first.pid} on {os.uname().nodename}: .*default_root_dir"
        assert re.search(message, capsys.readouterr().err)
        assert not (run.folder / "batches.0.jsonl").exists()
        first.send_signal(signal.SIGKILL)
        first.wait()
    main(run.arguments("--trainer.max_steps", "1"))


def test_the_lock_is_not_held_by_workers(tmp_path: Path) -> None:
    """They outlive a killed run for some seconds, and a restart must not wait for them."""
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        lock.release()
        with (tmp_path / "run.lock").open("r+", encoding="utf-8") as file:
            code = "from fcntl import *; lockf(0, LOCK_EX | LOCK_NB); flock(0, LOCK_EX | LOCK_NB)"
            assert subprocess.run([sys.executable, "-c", code], stdin=file).returncode == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.slow
def test_text_is_utf_8_whatever_the_locale(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "büch.txt").write_text("Größe, 大きさ, μέγεθος. " * 400, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "gca_lit.data.prepare", "--input", str(tmp_path / "büch.txt")]
    for split in ("train", "val"):
        prepared = subprocess.run(
            [*command, "--output", str(tmp_path / split)], env=os.environ | locale, cwd=ROOT, capture_output=True
        )
        assert prepared.returncode == 0, prepared.stderr.decode()
    run = make_run("lauf-ü")
    needle = "--data.tasks=[{class_path: SingleNeedle, init_args: {needle: '|{value}', question: '¿', digits: 2}}]"
    flags = ("--data.train", str(tmp_path / "train"), "--data.val", str(tmp_path / "val"), needle, *SHORT)
    code, errors = run.finish(*flags, **locale)
    assert code == 0, errors
    code, errors = run.finish(*flags, "--trainer.log_every_n_steps", "2", **locale)
    assert code == 0, errors
    assert "¿" in (run.folder / "config_fit.1.yaml").read_text(encoding="utf-8")
