"""Whether several devices train the same as one, and how much faster.

    PYTHONPATH=.:kernels python tests/benchmarks/bench_ranks.py --output DIR
    PYTHONPATH=.:kernels python tests/benchmarks/bench_ranks.py --output DIR --accelerator cpu \\
        --config configs/demo.yaml --batch_size 2 -- --trainer.precision 32-true

Trains four times with `lightning_cli.py fit`, from one seed and on the same rows: `one` device that accumulates the
batches of all; one that takes them as one batch, and so differs from the first by `rounding` alone; `ddp`; `fsdp`
(FSDP2). `--ways` names some of them, and `one` is always made: `--ways rounding` needs one device only. Each ends with
a validation and a sweep of a few episodes at 1 and 4 times the training length. What stands behind `--` goes to all. By
default the model has the paper's size and reads books.

Appends a line for each run to DIR/ranks.jsonl, and draws the losses in DIR/ranks.png:

losses: of every optimizer step, the mean over all rows of all devices.
loss_difference: the largest of a step, relative to the loss of one device.
tokens_per_second: of all devices together, the median of the rates that `Throughput` logs, without the first sixth of
    them; `speedup` is relative to one device.
tokens: trained on in all, the same for all runs.
evaluation: the rows of the sweep.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gca_lit import provenance
from gca_lit.results.file import ResultsFile, Row
from gca_lit.results.plots import pyplot

ROOT = Path(__file__).parents[2]
CONFIGS = ("configs/base.yaml", "configs/model/paper.yaml", "configs/attention/gca.yaml", "configs/data/books.yaml")
TITLES = {"one": "one device", "rounding": "one device, one batch a step", "ddp": "DDP", "fsdp": "FSDP2"}
LOG_EVERY = 5
EVALUATED = ("task", "placement", "eval_length", "status", "reason", "n", "accuracy", "perplexity")


class StepLosses(Callback):
    """Writes the loss of every optimizer step to losses.json in the run directory: the mean over batches and ranks."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"])  # already divided by the batches of a step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = torch.stack(self._losses).double().unflatten(0, (-1, trainer.accumulate_grad_batches))
        losses = trainer.strategy.reduce(batches.sum(1), reduce_op="mean")
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / "losses.json").write_text(json.dumps(losses.tolist()), encoding="utf-8")


class Way(NamedTuple):
    """How a run trains: devices, batches of an optimizer step on each, rows of a batch, flags of its own."""

    devices: int
    batches: int
    rows: int
    flags: list[str]


def ways(devices: int, rows: int) -> dict[str, Way]:
    """What the runs differ in; `one` comes first."""
    one, several = ["--config", "configs/trainer/gpu.yaml"], ["--trainer.devices", str(devices)]
    size = ["--trainer.strategy.init_args.data_parallel_size", str(devices)]
    return {
        "one": Way(1, devices, rows, one),
        "rounding": Way(1, 1, devices * rows, one),
        "ddp": Way(devices, 1, rows, ["--config", "configs/trainer/ddp.yaml", *several]),
        "fsdp": Way(devices, 1, rows, ["--config", "configs/trainer/fsdp.yaml", *several, *size]),
    }


def flags_of(way: Way, options: argparse.Namespace) -> list[str]:
    settings = {
        "trainer.accelerator": options.accelerator,
        "trainer.max_steps": options.steps,
        "trainer.accumulate_grad_batches": way.batches,
        "trainer.val_check_interval": options.steps * way.batches,
        "trainer.limit_val_batches": 2,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": LOG_EVERY,
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "data.batch_size": way.rows,
        "length_generalization.factors": [1, 4],
        "length_generalization.episodes": [[0, options.episodes]],
        "length_generalization.during_fit_every": 1,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [*way.flags, *flags, "--trainer.callbacks+=tests.benchmarks.bench_ranks.StepLosses", *options.flags]


def fit(flags: Sequence[str]) -> Row:
    """Train in processes of their own, and tell what they measured."""
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "lightning_cli.py", "fit", *flags, "--trainer.default_root_dir", name]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths})
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with exit code {done.returncode}")
        return {"fit": shlex.join(["python", "lightning_cli.py", "fit", *flags]), **measured(Path(name))}


def measured(run: Path) -> Row:
    (path,) = run.glob("csv/*/metrics.csv")
    with path.open(newline="", encoding="utf-8") as file:
        logged = [row for row in csv.DictReader(file) if row["throughput/tokens_per_second"]]
    rates = [float(row["throughput/tokens_per_second"]) for row in logged]
    evaluation = ResultsFile(run / "length_generalization.jsonl").rows
    return {
        "losses": json.loads((run / "losses.json").read_text(encoding="utf-8")),
        "tokens_per_second": statistics.median(rates[math.ceil(len(rates) / 6) :]),
        "tokens": int(float(logged[-1]["throughput/tokens_seen"])),
        "evaluation": [{name: row.get(name) for name in EVALUATED} for row in evaluation],
    }


def differences(losses: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Of each step, relative to what is expected."""
    return [abs(loss - one) / abs(one) for loss, one in zip(losses, expected, strict=True)]


def summary(row: Row) -> str:
    said = f"{TITLES[row['run']]}: {row['tokens_per_second']:,.0f} tokens/s, {row['speedup']:.3f} times one device, "
    return said + f"losses within {row['loss_difference']:.1e}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """The losses of the runs, the first of which is that of one device, and how far they are from that one's."""
    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 6), layout="constrained")
    for row, style in zip(rows, ("-", "-.", "--", ":"), strict=True):
        steps = range(1, len(row["losses"]) + 1)
        label = f"{TITLES[row['run']]}, {row['tokens_per_second']:,.0f} tokens/s ({row['speedup']:.2f}x)"
        (line,) = above.plot(steps, row["losses"], style, label=label)
        if row is not rows[0]:
            apart = differences(row["losses"], rows[0]["losses"])
            below.plot(steps, apart, ".", color=line.get_color(), label=TITLES[row["run"]])
    above.set_ylabel("loss", fontsize=9)
    below.set_ylabel("difference from one device, relative", fontsize=9)
    below.set_yscale("symlog", linthresh=1e-8)
    below.set_ylim(bottom=0)
    below.set_xlabel("optimizer step", fontsize=9)
    for axes in (above, below):
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(rows[-1]["hardware"], fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of ranks.jsonl and ranks.png")
    parser.add_argument("--ways", nargs="+", choices=TITLES, default=[*TITLES], help="beside one device (default: all)")
    parser.add_argument("--devices", type=int, default=2, help="of DDP and FSDP2 (default: 2)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, at least 10 (default: 60)")
    parser.add_argument("--batch_size", type=int, default=4, help="rows of a batch on each device (default: 4)")
    parser.add_argument("--episodes", type=int, default=5, help="of each point of the sweep (default: 5)")
    parser.add_argument("--accelerator", default="gpu", help="gpu or cpu (default: gpu)")
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="model and data (default: paper's size, books)")
    parser.add_argument("--commit", help="what is measured; git is asked when it is not given")
    parser.add_argument("flags", nargs="*", help="behind --: flags of lightning_cli.py for all runs")
    options = parser.parse_args(arguments)
    if options.steps < 2 * LOG_EVERY or options.devices < 2:
        parser.error(f"--steps must be at least {2 * LOG_EVERY} and --devices at least 2")
    results = ResultsFile(options.output / "ranks.jsonl")
    configs = [part for path in options.config for part in ("--config", path)]
    rows: list[Row] = []
    for name, way in ways(options.devices, options.batch_size).items():
        if name not in ("one", *options.ways):
            continue
        row = fit([*configs, *flags_of(way, options)])
        one = rows[0] if rows else row
        rows.append(
            {
                "run": name,
                "devices": way.devices,
                "speedup": row["tokens_per_second"] / one["tokens_per_second"],
                "loss_difference": max(differences(row["losses"], one["losses"])),
                **row,
                "command": provenance.command(),
                "commit": options.commit or provenance.commit(),
                "hardware": provenance.hardware(),
                "versions": provenance.versions(),
            }
        )
        results.append(rows[-1])
        print(summary(rows[-1]), flush=True)
    draw(rows, options.output / "ranks.png")


if __name__ == "__main__":
    main()
