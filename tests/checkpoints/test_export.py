"""Weights that are published: written once, read back, evaluated, and refused where they cannot serve."""

from pathlib import Path

import pytest
import torch

from gca_lit.checkpoints.export import main
from gca_lit.checkpoints.files import WholeCheckpointIO, check_checkpoint, read_checkpoint
from gca_lit.checkpoints.weights import read_weights

ABOUT = {"train_length": 512, "tokenizer": "byte", "architecture": {"decoder.layers": 3}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shared = torch.rand(7, 4)
    weights = {"embed": shared, "head": shared, "norm": torch.rand(3), "steps": torch.tensor(5)}
    path = tmp_path / "last-step=9.ckpt"
    content = {"state_dict": weights, "gca_lit": ABOUT, "global_step": 9, "optimizer_states": [torch.rand(1000)]}
    WholeCheckpointIO().save_checkpoint(content, path)
    return path


def test_weights_come_back_rounded_once(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models" / "small.safetensors"
    main([str(checkpoint), "--output", str(file)])
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size:,} bytes, bfloat16\n"
    check_checkpoint(file)
    saved, found = read_checkpoint(checkpoint), WholeCheckpointIO().load_checkpoint(file)
    assert (found["gca_lit"], found["global_step"]) == (ABOUT, 9)
    assert found["state_dict"].keys() == saved["state_dict"].keys()
    for name, weight in saved["state_dict"].items():
        rounded = weight.bfloat16().float() if weight.is_floating_point() else weight
        assert torch.equal(found["state_dict"][name], rounded) and found["state_dict"][name].dtype == weight.dtype
    assert file.stat().st_size < 4 * 7 * 2 + 1000  # the shared weight is there once, the optimizer not at all


def test_exact_in_fp32(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "exact.safetensors"
    main([str(checkpoint), "--output", str(file), "--dtype", "float32"])
    for name, weight in read_checkpoint(checkpoint)["state_dict"].items():
        assert torch.equal(read_weights(file)["state_dict"][name], weight)


def test_help_says_what_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "default: bfloat16" in said and "float32 rounds nothing" in said


@pytest.mark.parametrize("name", ["there.safetensors", "weights.bin"])
def test_another_output_is_asked_for(
    checkpoint: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit):
        main([str(checkpoint), "--output", str(tmp_path / name)])
    assert name in capsys.readouterr().err and (tmp_path / "there.safetensors").read_bytes() == b"x"


def test_damaged_and_foreign_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "cut.safetensors"
    main([str(checkpoint), "--output", str(file)])
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{file}.*damaged"):
        check_checkpoint(file)
    whole = tmp_path / "whole.safetensors"
    main([str(checkpoint), "--output", str(whole)])
    content = bytearray(whole.read_bytes())
    content[-5] ^= 1
    whole.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{whole}.*is not what was written"):
        check_checkpoint(whole)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.rand(3)}, foreign)
    with pytest.raises(ValueError, match=rf"{foreign}.*not written by gca_lit"):
        check_checkpoint(foreign)


def test_a_file_that_is_no_checkpoint_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# Words")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "README.md"), "--output", str(tmp_path / "a.safetensors")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "README.md is not a checkpoint" in line and "mmap" not in line


def test_folders_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    torch.save({"gca_lit": ABOUT, "global_step": 9}, tmp_path / "shards" / "meta.pt")
    wrong = {
        tmp_path: f"error: {tmp_path} is a folder, not a checkpoint: name a file\n",
        tmp_path
        / "shards": f"error: {tmp_path}/shards is a folder of weights in shards: name a checkpoint that is one file\n",
    }
    for folder, message in wrong.items():
        with pytest.raises(SystemExit):
            main([str(folder), "--output", str(tmp_path / "a.safetensors")])
        assert capsys.readouterr().err == message
