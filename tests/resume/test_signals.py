"""SIGTERM and SIGINT save, end with their exit code, and the run goes on exactly."""

from collections.abc import Callable

import pytest
import torch

from gca_lit.cli import main
from tests.resume.conftest import Run, assert_same, fault

LAST = ("--ckpt_path", "last")
SHORT = ("--trainer.max_steps", "9")
MakeRun = Callable[[str], Run]


@pytest.mark.parametrize("name, code, at", [("SIGTERM", 143, 12), ("SIGINT", 130, 11)])
def test_a_signal_in_training(make_run: MakeRun, name: str, code: int, at: int) -> None:
    """In this process: the trainer's handlers end with it."""
    unbroken = make_run("unbroken")
    main(unbroken.arguments(*SHORT))
    run = make_run("broken")
    with pytest.raises(SystemExit) as stop:
        main(run.arguments(*SHORT, fault(at, name)))
    assert stop.value.code == code
    assert run.checkpoints() == ["last-step=4.ckpt", "last-step=6.ckpt"]
    assert torch.load(run.folder / "checkpoints" / "last-step=6.ckpt", weights_only=True)["global_step"] == 6
    main(run.arguments(*SHORT, *LAST))
    assert_same(run.lines(), unbroken.lines())


def test_workers_live_until_training_has_stopped(make_run: MakeRun) -> None:
    """Schedulers signal all processes of a job."""
    run = make_run("broken")
    with pytest.raises(SystemExit) as stop:
        main(run.arguments(*SHORT, "--data.num_workers", "2", fault(12, "SIGTERM to all")))
    assert stop.value.code == 143
    assert run.checkpoints() == ["last-step=4.ckpt", "last-step=6.ckpt"]


def test_a_second_signal_ends_at_once(make_run: MakeRun) -> None:
    run = make_run("broken")
    with pytest.raises(SystemExit) as stop:
        main(run.arguments(*SHORT, fault(12, "SIGTERM"), fault(12, "SIGINT")))
    assert stop.value.code == 130
    assert len(run.lines()) == 12
    assert run.checkpoints() == ["last-step=4.ckpt", "last-step=6.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ranks(make_run: MakeRun, rank: int) -> None:
    ddp = ("--config", "configs/trainer/ddp_cpu.yaml", *SHORT, "--data.batch_size", "2")
    unbroken = make_run("unbroken")
    assert unbroken.finish(*ddp)[0] == 0
    run = make_run("broken")
    code, errors = run.finish(*ddp, fault(12, "SIGTERM", rank=rank))
    assert code == 143, errors
    assert run.checkpoints() == ["last-step=4.ckpt", "last-step=6.ckpt"]
    assert run.finish(*ddp, *LAST)[0] == 0
    for number in (0, 1):
        assert_same(run.lines(number), unbroken.lines(number))


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began_and_back(make_run: MakeRun) -> None:
    """Two ranks of one batch a step and one rank of two compute the same losses."""
    two = ("--config", "configs/trainer/ddp_cpu.yaml", "--trainer.accumulate_grad_batches", "1")
    unbroken = make_run("unbroken")
    assert unbroken.finish(*SHORT)[0] == 0
    run = make_run("broken")
    assert run.finish(*two, *SHORT, fault(3, "SIGTERM"))[0] == 143
    begun = [pair for pair in zip(run.lines(0), run.lines(1), strict=True)]
    assert run.finish(*SHORT, *LAST, fault(12, "SIGTERM"))[0] == 143
    middle = run.lines()[len(begun) :]
    assert run.finish(*two, *SHORT, *LAST)[0] == 0
    ended = list(zip(run.lines(0)[len(begun) + len(middle) :], run.lines(1)[len(begun) :], strict=True))
    lines = [line for pair in begun for line in pair] + middle + [line for pair in ended for line in pair]
    assert [len(begun), len(middle), len(ended)] == [4, 5, 3]  # 4 steps, 2 and a half, 3
    expected = unbroken.lines()
    expected.insert(13, expected[12])  # the batch of half a step is repeated
    for name in ("rows", "tokens", "targets", "loss"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
