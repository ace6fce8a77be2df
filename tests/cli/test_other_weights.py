"""Weights whose file is whole but whose tensors are not those of the model: one line names file, tensor and shapes."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gca_lit.checkpoints.export import main as export

TENSOR = "network.lower.0.mlp.gate_up.weight"
SHARED = "network.embed.weight"
Refused = Callable[..., str]
Changed = Callable[[dict[str, Tensor]], None]


def cut(weights: dict[str, Tensor]) -> None:
    weights[TENSOR] = weights[TENSOR][:, :8].contiguous()


def turn(weights: dict[str, Tensor]) -> None:
    weights[TENSOR] = weights[TENSOR].T.contiguous()


def lose(weights: dict[str, Tensor], name: str = TENSOR) -> None:
    del weights[name]


def add(weights: dict[str, Tensor]) -> None:
    weights["network.more"] = torch.zeros(3)


def change(file: Path, how: Changed) -> None:
    """Another tool has changed the tensors, and kept the rest of the metadata."""
    with safe_open(file, framework="pt") as whole:
        about = json.loads(whole.metadata()["gca_lit"])
        weights = {name: whole.get_tensor(name) for name in whole.keys()}  # noqa: SIM118
    del about["crc32"]
    how(weights)
    save_file(weights, file, metadata={"gca_lit": json.dumps(about)})


@pytest.fixture
def trained(run: Callable[..., None], run_dir: Path) -> Path:
    """A checkpoint."""
    run("fit", "--trainer.max_steps", "1")
    return run_dir / "checkpoints" / "last-step=1.ckpt"


def test_the_tensor_and_its_shapes_are_named(tiny: str, tmp_path: Path, trained: Path, refused: Refused) -> None:
    wanted = {
        cut: f"{TENSOR} has shape [32, 8], the model [32, 16]",
        turn: f"{TENSOR} has shape [16, 32], the model [32, 16]",
        lose: f"{TENSOR} is missing",
        add: "network.more of shape [3] is not in the model",
    }
    for how, message in wanted.items():
        file = tmp_path / f"{how.__name__}.safetensors"
        export([str(trained), "--output", str(file)])
        change(file, how)
        assert refused("validate", "--config", tiny, "--ckpt_path", str(file)) == f"{file} does not fit: {message}"
        start = ["--model.init_from", str(file), "--trainer.default_root_dir", str(tmp_path / "other")]
        assert refused("fit", "--config", tiny, *start) == f"model.init_from: {file} does not fit: {message}"


def test_many_are_counted(tiny: str, tmp_path: Path, trained: Path, refused: Refused) -> None:
    content = torch.load(trained, weights_only=True)
    expected = len(content["state_dict"])
    content["state_dict"] = {f"{name}.other": weight for name, weight in content["state_dict"].items()}
    file = tmp_path / "other.ckpt"
    torch.save(content, file)
    message = refused("validate", "--config", tiny, "--ckpt_path", str(file))
    assert message.endswith(f"and {2 * expected - 3} more") and message.count(";") == 3


def test_a_tensor_under_two_names_is_missed(tiny: str, tmp_path: Path, trained: Path, refused: Refused) -> None:
    file = tmp_path / "lost.safetensors"
    export([str(trained), "--output", str(file)])
    change(file, partial(lose, name=SHARED))
    message = refused("validate", "--config", tiny, "--ckpt_path", str(file))
    assert str(file) in message and message.endswith(f"{SHARED} is missing, which is network.head.weight too")
