"""A run that was interrupted and goes on computes what the unbroken run computes, to the last bit."""

import contextlib
import json
from collections.abc import Callable

import pytest

from gca_lit.cli import main
from tests.resume.conftest import Lines, Run, assert_same, fault

LAST = ("--ckpt_path", "last")
MakeRun = Callable[[str], Run]


def fit(run: Run, *flags: str) -> Lines:
    main(run.arguments(*flags))
    return run.lines()


def fail(run: Run, *flags: str) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        main(run.arguments(*flags))


@pytest.mark.parametrize(
    "at, kind", [(10, "raise"), (21, "raise"), (23, "raise in transfer"), (22, "raise in transfer")]
)
def test_an_exception_in_an_accumulation_window(make_run: MakeRun, at: int, kind: str) -> None:
    """An epoch has 11 steps, 22 batches; batches with odd numbers end a window."""
    unbroken = fit(make_run("unbroken"), "--trainer.max_steps", "15")
    run = make_run("broken")
    fail(run, "--trainer.max_steps", "15", fault(at, kind))
    assert f"last-step={at // 2}.ckpt" in run.checkpoints()
    assert_same(fit(run, "--trainer.max_steps", "15", *LAST), unbroken)


@pytest.mark.slow
def test_many_interruptions(make_run: MakeRun) -> None:
    unbroken = fit(make_run("unbroken"))
    run = make_run("broken")
    for at in (0, 3, 4, 9, 22, 24, 43, 44, 45):
        fail(run, *LAST, fault(at, "raise"))
    assert_same(fit(run, *LAST), unbroken)
    assert run.checkpoints() == ["last-step=24.ckpt", "last-step=25.ckpt"]


def test_growing_rows(make_run: MakeRun) -> None:
    growth = ("--data.stages", "null", "--data.growth", "{start: 16, check_every: 3, threshold: 0.0, window: 3}")
    unbroken = fit(make_run("unbroken"), *growth)
    assert {len(line["rows"]) for line in unbroken} == {16, 8}
    assert max(len(line["growth"]["recent"]) for line in unbroken) == 2
    run = make_run("broken")
    for at in (9, 10, 14, 25, 39):
        fail(run, *LAST, *growth, fault(at, "raise"))
    assert_same(fit(run, *LAST, *growth), unbroken)


def test_nothing_is_saved_inside_of_an_optimizer_step(make_run: MakeRun) -> None:
    unbroken = fit(make_run("unbroken"), "--trainer.max_steps", "8")
    run = make_run("broken")
    with pytest.warns(UserWarning, match="RuntimeError came inside of an optimizer step: nothing is saved"):
        fail(run, "--trainer.max_steps", "8", fault(11, "raise in step"))
    assert run.checkpoints() == ["last-step=4.ckpt"]
    assert_same(fit(run, "--trainer.max_steps", "8", *LAST), unbroken)


@pytest.mark.parametrize("workers", [(0, 2), (2, 0)])
def test_another_number_of_workers(make_run: MakeRun, workers: tuple[int, int]) -> None:
    short = ("--trainer.max_steps", "14", "--data.num_workers")
    unbroken = fit(make_run("unbroken"), *short, "0")
    run = make_run("broken")
    fail(run, *short, str(workers[0]), fault(17, "raise"))
    assert_same(fit(run, *short, str(workers[1]), *LAST), unbroken)


def test_other_accumulation(make_run: MakeRun) -> None:
    """Half as many blocks a batch, twice as many batches a step: the same rows a step, and nearly the same losses."""
    short = ("--trainer.max_steps", "14")
    unbroken = fit(make_run("unbroken"), *short)
    run = make_run("broken")
    fail(run, *short, fault(15, "raise"))
    fit(run, *short, *LAST, "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "4")
    before, after = unbroken[2 * 7 :], run.lines()[-4 * 7 :]
    assert [line["step"] for line in after][-5:] == [13, 13, 13, 13, 14]
    assert [row for line in after for row in line["rows"]] == [row for line in before for row in line["rows"]]
    for step in range(7):
        losses = [float(line["loss"]) for line in after[4 * step : 4 * step + 4]]
        assert sum(losses) / 4 == pytest.approx(
            sum(float(line["loss"]) for line in before[2 * step :][:2]) / 2, rel=1e-5
        )


@pytest.mark.slow
def test_kill_at_any_moment(make_run: MakeRun) -> None:
    """SIGKILL in the middle of a window, right behind a step, and inside of the writing of a checkpoint."""
    unbroken = make_run("unbroken")
    assert unbroken.finish()[0] == 0
    run = make_run("broken")
    assert run.finish(*LAST, fault(19, "SIGKILL"))[0] == -9
    assert run.finish(*LAST, fault(34, "SIGKILL"))[0] == -9
    in_save = {"class_path": "tests.resume.callbacks.KillInSave", "init_args": {"step": 20}}
    assert run.finish(*LAST, f"--trainer.callbacks+={json.dumps(in_save)}")[0] == -9
    assert run.checkpoints() == ["last-step=12.ckpt", "last-step=16.ckpt", "last-step=20.ckpt.part"]
    code, errors = run.finish(*LAST)
    assert code == 0, errors
    assert_same(run.lines(), unbroken.lines())
    assert run.checkpoints() == ["last-step=24.ckpt", "last-step=25.ckpt"]


def test_counts_of_lightning_are_those_of_an_unbroken_run(make_run: MakeRun) -> None:
    """At the end of an epoch too, and with limit_train_batches."""
    limited = ("--trainer.limit_train_batches", "6", "--trainer.max_steps", "12")
    unbroken = fit(make_run("unbroken"), *limited)
    assert [line["epoch"] for line in unbroken] == [n // 6 for n in range(24)]
    run = make_run("broken")
    for at in (5, 6, 13):
        with contextlib.suppress(RuntimeError):
            main(run.arguments(*LAST, *limited, fault(at, "raise")))
    assert_same(fit(run, *LAST, *limited), unbroken)
