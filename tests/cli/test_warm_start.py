"""Training from weights whose chunks had another size, or that were published alone."""

from pathlib import Path

import pytest
import torch

from gca_lit.checkpoints.export import main as export
from gca_lit.checkpoints.files import read_checkpoint


def test_another_chunk_size_is_told_and_trained(run, run_dir: Path, tmp_path: Path):
    run("fit")
    published, other = tmp_path / "weights.safetensors", tmp_path / "other"
    export([str(run_dir / "checkpoints" / "last-step=2.ckpt"), "--output", str(published), "--dtype", "float32"])
    longer = (
        "--model.attention.chunk_size",
        "5",
        "--model.attention.window",
        "12",
        "--data.align",
        "5",
        "--data.train_length",
        "40",
    )
    with pytest.warns(UserWarning, match="attention.chunk_size: 4 in the checkpoint, 5 in this run"):
        run(
            *("fit", *longer, "--model.init_from", str(published), "--model.optimizer.lr", "0"),
            *("--trainer.default_root_dir", str(other)),
        )
    before, after = read_checkpoint(published), read_checkpoint(other / "checkpoints" / "last-step=2.ckpt")
    assert all(torch.equal(after["state_dict"][name], w) for name, w in before["state_dict"].items())
    assert after["gca_lit"]["architecture"]["attention.chunk_size"] == 5
    assert after["gca_lit"]["train_length"] == 64  # the longest row that these weights were ever trained on
