"""Rows of a sweep: the columns that all of them share, and what a person watching reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gca_lit import provenance
from gca_lit.results.file import Row


def shared_columns(trainer: Trainer, model: Any, data: Any, loaded_step: int | None) -> Row:
    """The model, its weights and where the numbers come from.

    The weights are identified by the checkpoint file that was loaded, and its optimizer step is `loaded_step`; inside
    fit, and without a file, by the parameters themselves.
    """
    about = model.describe()
    checkpoint = trainer.ckpt_path if trainer.state.fn != TrainerFn.FITTING else None
    if checkpoint is not None and Path(checkpoint).is_file():
        sha256, step = provenance.file_sha256(checkpoint), loaded_step
    else:
        sha256, step = provenance.weights_sha256(model.named_parameters()), trainer.global_step
    return {
        "backend": about["backend"],
        "window": about["window"],
        "k": about["k"],
        "params": about["params"],
        "checkpoint_sha256": sha256,
        "global_step": step,
        "precision": str(trainer.precision),
        "tokenizer": f"{data.tokenizer.name} {data.tokenizer.identity[:12]}",
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def summary(row: Row) -> str:
    """One line: the point, its result, and why it is not complete."""
    where = [row["task"], row["placement"], f"{row['eval_length']:,} tokens ({row['factor']:g}x)"]
    where.append(None if row["depth"] is None else f"depth {row['depth']:.2f}")
    result = ""
    if row["accuracy"] is not None:
        result = f"{row['correct']} of {row['n']} right = {row['accuracy']:.2f}"
        result += f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    elif row.get("perplexity") is not None:
        result = f"perplexity {row['perplexity']:.2f}"
    reason = f"{row['status']}: {row['reason']}" if row["reason"] else ""
    return ", ".join(filter(None, where)) + ": " + "; ".join(filter(None, (result, reason)))
