"""The models of benchmarks are those that the command line makes of the same files."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))

import bench_context
from gca_lit.checkpoints.architecture import architecture
from gca_lit.cli import CLI, Begun
from gca_lit.usage import load_yaml
from recipe import recipe_model, sliding_window

ROOT = Path(__file__).parents[2]
OVERLAY = "configs/experiment/needle/sliding_window.yaml"


@pytest.fixture
def from_command_line(monkeypatch, tmp_path):
    """What the model is that a command line makes of these files."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(CLI, "_run_subcommand", lambda *_: None)
    flags = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    return lambda *files: about(CLI(Begun(), ["fit", *(f"--config={file}" for file in files), *flags]).model)


def about(model):
    return architecture(model.attention, model.config, model.vocab_size) | vars(model.attention)


@pytest.mark.parametrize("recipe", bench_context.RECIPES, ids=lambda path: path.stem)
def test_a_model_is_that_of_its_file(from_command_line, recipe):
    assert about(recipe_model(recipe)) == from_command_line(recipe)
    assert load_yaml(recipe.read_text())["length_generalization"]["segment"] == bench_context.SEGMENT


def test_beside_it_stands_the_sliding_window_of_the_experiments(from_command_line):
    recipe = bench_context.RECIPES[0]
    assert about(sliding_window(recipe_model(recipe))) == from_command_line(recipe, OVERLAY)


def test_what_cannot_be_measured_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"sliding_window.yaml is no whole configuration: it needs"):
        recipe_model(Path(OVERLAY))
    path = tmp_path / "window.yaml"
    path.write_text("model: {attention: {class_path: SlidingWindow}}\ndata: {tokenizer: byte}")
    with pytest.raises(ValueError, match=r"window.yaml has sliding_window: give the configuration of grouped cross"):
        recipe_model(path)
