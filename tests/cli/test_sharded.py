"""FSDP2 on two CPU processes: the same training as one process, and a checkpoint that one process can read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from gca_lit.attention import GroupedCrossAttention
from gca_lit.model import Decoder, DecoderConfig

ROOT = Path(__file__).parents[2]
SHARDED = """
trainer:
  accelerator: cpu
  devices: 2
  strategy:
    class_path: lightning.pytorch.strategies.ModelParallelStrategy
    init_args: {{data_parallel_size: {size}, tensor_parallel_size: {tensor}, save_distributed_checkpoint: false}}
"""


def command(subcommand: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "lightning_cli.py", subcommand, *flags]
    return subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True)


def sharded(folder: Path, size: str, tensor: str) -> str:
    path = folder / "sharded.yaml"
    path.write_text(SHARDED.format(size=size, tensor=tensor))
    return str(path)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last-step=4.ckpt", weights_only=True)
    return {name: weight for name, weight in state["state_dict"].items() if name.startswith("network.")}


@pytest.mark.slow
def test_training_is_that_of_one_process(tiny: str, tmp_path: Path, run_dir: Path) -> None:
    width = ["--model.attention.retrieval_width", "8"]
    steps = ["--trainer.max_steps", "4", "--trainer.gradient_clip_val", "0.5", "--trainer.limit_val_batches", "0"]
    here = ["--data.batch_size", "4", "--trainer.default_root_dir", str(tmp_path / "one")]
    alone = command("fit", "--config", tiny, *width, *steps, *here)
    assert alone.returncode == 0, alone.stderr
    overlay = sharded(tmp_path, "2", "1")
    both = command("fit", "--config", tiny, "--config", overlay, *width, *steps)
    assert both.returncode == 0, both.stderr
    expected, got = weights(tmp_path / "one"), weights(run_dir)
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
    for overlays in (["--config", overlay], []):
        segment = [
            "--length_generalization.segment",
            "4",
            "--length_generalization.factors",
            "[1.04]",
        ]  # the last has no chunk
        done = command("validate", "--config", tiny, *overlays, *width, *segment, "--ckpt_path", "last")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_going_on_from_one_process(tiny: str, tmp_path: Path, run_dir: Path) -> None:
    """Both kinds of checkpoint number the parameters of the optimizer alike, so that momenta find them."""
    steps = ["--trainer.limit_val_batches", "0", "--trainer.max_steps"]
    batch = ["--data.batch_size", "4"]
    for root in (tmp_path / "one", run_dir):
        here = [*batch, "--trainer.default_root_dir", str(root), "--model.schedule.decay", "none"]
        first = command("fit", "--config", tiny, *here, *steps, "2")
        assert first.returncode == 0, first.stderr
    last = ["--model.schedule.decay", "none", "--ckpt_path", "last", *steps, "4"]
    alone = command("fit", "--config", tiny, *batch, "--trainer.default_root_dir", str(tmp_path / "one"), *last)
    assert alone.returncode == 0, alone.stderr
    both = command("fit", "--config", tiny, "--config", sharded(tmp_path, "2", "1"), *last)
    assert both.returncode == 0, both.stderr
    expected, got = weights(tmp_path / "one"), weights(run_dir)
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_mesh_that_leaves_rows_undivided_is_refused(tiny: str, tmp_path: Path) -> None:
    done = command("fit", "--config", tiny, "--config", sharded(tmp_path, "1", "2"))
    assert done.returncode != 0
    assert "set data_parallel_size to 2 and tensor_parallel_size to 1" in done.stderr


def test_another_optimizer_is_refused_before_anything_is_loaded(
    tiny: str, tmp_path: Path, run: Callable[..., None], refused: Callable[..., str]
) -> None:
    run("fit")
    fit = ["fit", "--config", tiny, "--config", sharded(tmp_path, "2", "1"), "--ckpt_path", "last"]
    said = refused(*fit, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1")
    assert said.startswith("the checkpoint was trained with AdamW, but model.optimizer is SGD: keep AdamW, or")


def test_what_sharded_modules_return_is_seen_through() -> None:
    """FSDP looks for tensors in tuples: it would not gather the weights for the backward of any other."""
    backend = GroupedCrossAttention(chunk_size=7, window=16, top_k=2)
    decoder = Decoder(DecoderConfig(width=16, heads=2, kv_heads=2, layers=2, mlp_width=16), backend, 257)
    blocks = torch.randn(1, 3, 8, 16)
    encoded = decoder.upper.encoder(blocks, decoder.upper.encoder.rotation(blocks))  # type: ignore[operator, union-attr]
    assert len(tree_leaves(encoded)) == 3
    step = decoder(torch.zeros(1, 20, dtype=torch.long))
    assert any(leaf is step.hidden for leaf in tree_leaves(step))
