"""A validation that is due behind a batch is done once, wherever around it the run was ended."""

import json
from collections.abc import Callable

import pytest

from gca_lit.cli import main
from tests.resume.conftest import Lines, Run, assert_same, fault

LAST = ("--ckpt_path", "last")
RECORD = "--trainer.callbacks+=tests.resume.callbacks.RecordValidations"
EVERY_SECOND_STEP = ("--trainer.max_steps", "7", "--trainer.val_check_interval", "4")
EVERY_EPOCH = ("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "1.0")
EVERY_SECOND_EPOCH = ("--trainer.check_val_every_n_epoch", "2", "--trainer.val_check_interval", "0.5")
SHORT_EPOCHS = ("--trainer.limit_train_batches", "4", "--trainer.max_steps", "9")
MakeRun = Callable[[str], Run]


def validations(run: Run) -> Lines:
    text = (run.folder / "validations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def fault_in_validation(at: int, kind: str, behind: bool = False) -> str:
    settings = {"at": at, "kind": kind, "behind": behind}
    named = {"class_path": "tests.resume.callbacks.FaultInValidation", "init_args": settings}
    return f"--trainer.callbacks+={json.dumps(named)}"


def assert_each_once(make_run: MakeRun, flags: tuple[str, ...], stop: str, after: int) -> None:
    """A run that `stop` ends behind `after` batches validates as the unbroken run does, and has the same losses."""
    unbroken, broken = make_run("unbroken"), make_run("broken")
    main(unbroken.arguments(*flags, RECORD))
    with pytest.raises((RuntimeError, SystemExit)):
        main(broken.arguments(*flags, RECORD, stop))
    assert broken.lines()[-1]["batch"] == after - 1
    main(broken.arguments(*flags, RECORD, *LAST))
    assert after in [line["batches"] for line in validations(unbroken)]
    assert validations(broken) == validations(unbroken)
    assert_same(broken.lines(), unbroken.lines())


@pytest.mark.parametrize("saved_every", [4, 100])
@pytest.mark.parametrize("stop", [fault_in_validation(7, "raise"), fault(8, "raise")])
def test_an_exception_around_a_validation(make_run: MakeRun, stop: str, saved_every: int) -> None:
    """Step 4 ends with batch 7; a checkpoint of it is written before its validation, or by the exception alone."""
    flags = (*EVERY_SECOND_STEP, "--checkpoint.every_n_train_steps", str(saved_every))
    assert_each_once(make_run, flags, stop, after=8)


@pytest.mark.parametrize("behind", [False, True])
def test_a_signal_around_a_validation(make_run: MakeRun, behind: bool) -> None:
    assert_each_once(make_run, EVERY_SECOND_STEP, fault_in_validation(7, "SIGTERM", behind), after=8)


@pytest.mark.parametrize(
    "when, behind",
    [
        (("--trainer.val_check_interval", "4"), False),
        (EVERY_EPOCH, False),
        (EVERY_EPOCH, True),
        (EVERY_SECOND_EPOCH, False),
    ],
)
def test_a_validation_at_the_end_of_an_epoch(make_run: MakeRun, when: tuple[str, ...], behind: bool) -> None:
    """An epoch has 2 steps, 4 batches."""
    assert_each_once(make_run, (*SHORT_EPOCHS, *when), fault_in_validation(7, "SIGTERM", behind), after=8)


@pytest.mark.slow
def test_a_kill_between_a_checkpoint_and_its_validation(make_run: MakeRun) -> None:
    unbroken, broken = make_run("unbroken"), make_run("broken")
    main(unbroken.arguments(*EVERY_SECOND_STEP, RECORD))
    assert broken.finish(*EVERY_SECOND_STEP, RECORD, fault_in_validation(7, "SIGKILL"))[0] == -9
    assert broken.checkpoints() == ["last-step=4.ckpt"]
    main(broken.arguments(*EVERY_SECOND_STEP, RECORD, *LAST))
    assert validations(broken) == validations(unbroken)
    assert_same(broken.lines(), unbroken.lines())


def test_no_validation_where_none_is_due(make_run: MakeRun) -> None:
    """Behind step 4 there is none, with validation or without."""
    run = make_run("run")
    for more in (("--trainer.val_check_interval", "6"), ("--trainer.limit_val_batches", "0")):
        with pytest.raises(SystemExit):
            main(run.arguments("--trainer.max_steps", "6", *EVERY_SECOND_STEP[2:], RECORD, fault(8, "SIGTERM")))
        before = validations(run)
        main(run.arguments("--trainer.max_steps", "5", *more, RECORD, *LAST))
        assert validations(run) == before
