"""A run that goes on has the momenta of its checkpoint and the optimizer's settings of its own flags."""

import torch

from gca_lit.cli import main
from tests.resume.conftest import Run

LAST = ("--ckpt_path", "last")


def groups(run: Run, step: int) -> list[dict]:
    state = torch.load(run.folder / "checkpoints" / f"last-step={step}.ckpt", weights_only=True)
    return state["optimizer_states"][0]["param_groups"]


def test_flags_win_over_what_a_checkpoint_remembers(make_run) -> None:
    run = make_run("run")
    main(run.arguments("--trainer.max_steps", "6", "--model.optimizer.lr", "0.01"))
    own = ("--model.optimizer.lr", "0.002", "--model.optimizer.weight_decay", "0.3", "--model.schedule.decay", "none")
    main(run.arguments("--trainer.max_steps", "8", *own, *LAST))
    matrices, embeddings, vectors = groups(run, 8)
    assert (matrices["name"], embeddings["name"], vectors["name"]) == ("matrices", "embeddings", "vectors")
    assert matrices["initial_lr"] == matrices["lr"] == vectors["lr"] == 0.002
    assert matrices["weight_decay"] == embeddings["weight_decay"] == 0.3 and vectors["weight_decay"] == 0


def test_another_optimizer_is_refused(make_run) -> None:
    run = make_run("run")
    main(run.arguments("--trainer.max_steps", "2"))
    code, errors = run.finish("--trainer.max_steps", "4", "--model.optimizer", "gca_lit.muon.Muon", *LAST)
    assert code == 2 and "Traceback" not in errors
    assert "the checkpoint was trained with AdamW, but model.optimizer is Muon: keep AdamW, or start anew" in errors
    assert run.checkpoints() == ["last-step=2.ckpt"]
