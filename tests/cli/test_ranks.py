"""Several ranks do the work of one: the same losses, all episodes once, one report, one node's memory."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from gca_lit.callbacks import LengthGeneralization
from gca_lit.callbacks.sweep import Sweep
from gca_lit.memory import HostStore
from gca_lit.units import GIB
from tests.benchmarks import bench_ranks
from tests.callbacks.counting_fakes import FakeData, FakeModule

NODES, RANKS, EPISODES = 2, 2, 5
Ranks = Callable[..., list[Sweep]]


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """ranks(strategy, **settings): the sweep of each rank of two nodes, two ranks a node."""

    def sweep(strategy: type, rank: int, settings: dict[str, object]) -> Sweep:
        fake = create_autospec(strategy, instance=True, root_device=torch.device("cpu"))
        fake.broadcast = lambda value: value
        fake.reduce = lambda tensor, reduce_op: tensor
        trainer = SimpleNamespace(
            strategy=fake,
            global_rank=rank,
            world_size=NODES * RANKS,
            num_devices=RANKS,
            is_global_zero=False,
            datamodule=FakeData(),
            default_root_dir=tmp_path,
            precision_plugin=SimpleNamespace(val_step_context=torch.no_grad),
        )
        plan = LengthGeneralization(episodes=[(0, EPISODES)], batch_tokens=32, tasks=["counting"], **settings).plan  # type: ignore[arg-type]
        return Sweep(plan, trainer, FakeModule(), HostStore(slab_mib=1), "val", None)  # type: ignore[arg-type]

    return lambda strategy, **settings: [sweep(strategy, rank, settings) for rank in range(NODES * RANKS)]


def test_ddp_divides_the_episodes(ranks: Ranks) -> None:
    sweeps = ranks(DDPStrategy, factors=[1], placements=["end"], max_seconds=600)
    done = [sweep._evaluate(next(sweep._points(1)))[0].sums["n"] for sweep in sweeps]
    assert done == [2, 1, 1, 1]


def test_sharded_ranks_take_the_same_steps(ranks: Ranks) -> None:
    """A step gathers weights from all ranks: one that takes fewer would leave the others waiting."""
    sweeps = ranks(ModelParallelStrategy, factors=[1], placements=["end"])
    for sweep in sweeps:
        tally, reason = sweep._evaluate(next(sweep._points(1)))
        assert (tally.sums["n"], reason) == (EPISODES, None)
    assert [sweep.model.steps for sweep in sweeps] == [3] * 4  # batches of 2, 2 and 1 episodes


@pytest.mark.parametrize("strategy", [DDPStrategy, ModelParallelStrategy])
def test_the_host_budget_is_that_of_all_ranks_of_a_node(ranks: Ranks, strategy: type) -> None:
    """One episode at a time, of 1 GiB of K/V, on each of the two ranks of a node."""
    short = "needs 2.0 GiB of host memory, has 2.0 GiB; --model.store DiskStore needs less"
    for limit, reason in ((2 * GIB, None), (2 * GIB - 1, short)):
        sweep, *_ = ranks(strategy, factors=[64], placements=["end"], max_host_bytes=limit)
        sweep.results = SimpleNamespace(finished=lambda *_: False)  # type: ignore[assignment]
        sweep._start_length()
        assert sweep._verdict(next(sweep._points(64))) == reason


@pytest.mark.slow
def test_two_processes_train_as_one(tiny: str, tmp_path: Path) -> None:
    flags = f"--accelerator cpu --devices {RANKS} --steps 10 --batch_size 2 --episodes {EPISODES}".split()
    perplexity = '{"class_path": "Perplexity", "init_args": {"longest": 256, "scored": 32}}'
    data = [f"--data.tasks+={perplexity}", "--data.mixture.weights", '{"perplexity": 0}']
    shared = ["--trainer.precision", "32-true", "--model.attention.init_args.score", "cosine", *data]
    bench_ranks.main(["--output", str(tmp_path), "--config", tiny, *flags, "--", *shared])
    rows = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text(encoding="utf-8").splitlines()]
    runs = [("one", 1), ("rounding", 1), ("ddp", RANKS), ("fsdp", RANKS)]
    assert [(row["run"], row["devices"]) for row in rows] == runs
    one = rows[0]
    points = {(placement, length) for placement in ("chunk", "end", None) for length in (64, 256)}
    perplexities = [point["perplexity"] for point in one["evaluation"] if point["perplexity"]]
    for row in rows:
        assert row["losses"] == pytest.approx(one["losses"], rel=1e-5) and len(set(row["losses"])) == 10
        assert row["loss_difference"] <= 1e-5
        assert row["tokens"] == 10 * RANKS * 2 * 64
        assert row["tokens_per_second"] == pytest.approx(row["speedup"] * one["tokens_per_second"])
        assert len(row["evaluation"]) == len(points)  # rank 0 alone reports
        assert {(point["placement"], point["eval_length"]) for point in row["evaluation"]} == points
        assert {(point["status"], point["n"]) for point in row["evaluation"]} == {("done", EPISODES)}
        found = [point["perplexity"] for point in row["evaluation"] if point["perplexity"]]
        assert found == pytest.approx(perplexities, rel=1e-5) and len(set(found)) == 2  # each episode once
        assert {"command", "commit", "hardware", "versions"} <= row.keys()
    assert (tmp_path / "ranks.png").stat().st_size > 0
