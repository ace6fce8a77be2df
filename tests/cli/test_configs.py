"""Every configuration that ships, alone and in pairs, and the ways to swap a part of it."""

import inspect
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

import gca_lit.attention
from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.callbacks import (
    Checkpoints,
    ExactResume,
    GracefulStop,
    LengthGeneralization,
    LengthGrowth,
    MemoryReport,
    PredictionWriter,
    SkipNonFinite,
    Throughput,
)
from gca_lit.cli import CLI
from gca_lit.data.tokenizers import load_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
AXES = ("attention", "model", "data", "trainer", "eval")
OVERLAYS = [path for axis in AXES for path in sorted((CONFIGS / axis).glob("*.yaml"))]
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
NEEDLE, NEEDLES = CONFIGS / "experiment" / "needle_16k_6m.yaml", sorted((CONFIGS / "experiment/needle").glob("*.yaml"))
FOUR_TASKS = CONFIGS / "experiment" / "needle" / "four_tasks.yaml"
BEHIND_FOUR_TASKS = ("hops", "longer_chunks", "numbers", "other_rows", "more_numbers", "hard")
PAIRS = [pair for pair in combinations(OVERLAYS, 2) if pair[0].parent != pair[1].parent]
DEMO = sorted((CONFIGS / "demo").glob("*.yaml"))
BASE, DEMO_BASE = CONFIGS / "base.yaml", CONFIGS / "demo.yaml"
STACKS = [
    (BASE,),
    (DEMO_BASE,),
    *((BASE, one) for one in OVERLAYS),
    *((BASE, one) for one in EXPERIMENTS),
    *((NEEDLE, one) for one in NEEDLES if one.stem not in BEHIND_FOUR_TASKS),
    *((NEEDLE, FOUR_TASKS, FOUR_TASKS.with_name(f"{stage}.yaml")) for stage in BEHIND_FOUR_TASKS),
    *((DEMO_BASE, one) for one in [*DEMO, *OVERLAYS] if one.parent.name in ("demo", "trainer", "eval")),
]
SLOW_STACKS = [pytest.param((BASE, *pair), marks=pytest.mark.slow) for pair in PAIRS]
ALWAYS = (
    LengthGeneralization,
    LengthGrowth,
    SkipNonFinite,
    PredictionWriter,
    MemoryReport,
    Throughput,
    ExactResume,
    LearningRateMonitor,
    GracefulStop,
    Checkpoints,
)
Instantiate = Callable[..., CLI]


def flags(*paths: Path) -> list[str]:
    return [flag for path in paths for flag in ("--config", str(path))]


def name(stack: tuple[Path, ...]) -> str:
    return " ".join(str(path.relative_to(CONFIGS).with_suffix("")) for path in stack)


def test_no_configuration_is_left_out() -> None:
    loggers = set((CONFIGS / "logger").glob("*.yaml"))  # in test_loggers.py: they need packages that may be missing
    assert {path for stack in STACKS for path in stack} | loggers == set(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("stack", [*STACKS, *SLOW_STACKS], ids=name)
def test_instantiates(stack: tuple[Path, ...], instantiate: Instantiate) -> None:
    cli = instantiate("fit", *flags(*stack), "--trainer.accelerator", "cpu")
    tokenizer = "byte"
    for path in stack:
        wanted = yaml.safe_load(path.read_text())
        tokenizer = wanted.get("data", {}).get("tokenizer", tokenizer)
        if "attention" in wanted.get("model", {}) and path == stack[-1]:
            attention = wanted["model"]["attention"]
            if "class_path" in attention:
                assert type(cli.model.attention).__name__ == attention["class_path"].rpartition(".")[2]
            settings = attention.get("init_args", {})
            assert {key: getattr(cli.model.attention, key) for key in settings} == settings
    assert cli.model.vocab_size == load_tokenizer(tokenizer).vocab_size


@pytest.mark.parametrize("path", [*sorted((CONFIGS / "attention").glob("*.yaml")), *DEMO, BASE, DEMO_BASE], ids=str)
def test_attention_states_every_setting(path: Path) -> None:
    """Or a swap would keep what the attention before it had under the same name."""
    attention = yaml.safe_load(path.read_text())["model"]["attention"]
    cls = getattr(gca_lit.attention, attention["class_path"].rpartition(".")[2])
    assert set(attention["init_args"]) == set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("overlay, base", [("attention/gca", BASE), ("model/paper", BASE)])
def test_base_is_the_paper(overlay: str, base: Path, instantiate: Instantiate) -> None:
    plain = instantiate("fit", *flags(base)).config.as_dict()["fit"]
    laid = instantiate("fit", *flags(base, CONFIGS / f"{overlay}.yaml")).config.as_dict()["fit"]
    for one in (plain, laid):
        del one["config"]
    assert plain == laid


def test_overlays_of_one_axis_set_the_same_settings() -> None:
    """So that a second one leaves nothing of the first."""

    def keys(tree: Any, at: str = "") -> set[str]:
        leaf = not isinstance(tree, dict) or at.count(".") == 2
        return {at} if leaf else {key for part in tree for key in keys(tree[part], f"{at}.{part}")}

    for axis in set(AXES) - {"attention"}:
        found = [keys(yaml.safe_load(path.read_text())) for path in (CONFIGS / axis).glob("*.yaml")]
        assert all(one == found[0] for one in found), axis


def test_swaps_by_flag(tiny: str, instantiate: Instantiate) -> None:
    cli = instantiate("fit", "--config", tiny, "--model.attention", "FullAttention")
    assert isinstance(cli.model.attention, FullAttention)
    cli = instantiate("fit", "--config", tiny, "--model.attention", "SlidingWindow", "--model.attention.window", "7")
    assert isinstance(cli.model.attention, SlidingWindow) and cli.model.attention.window == 7
    cli = instantiate("fit", "--config", tiny, "--model.attention.window", "12", "--model.optimizer", "torch.optim.SGD")
    assert isinstance(cli.model.attention, GroupedCrossAttention) and cli.model.attention.window == 12


THIRD_PARTY = """
from gca_lit.attention.base import AttentionBackend, LayerPlan
from gca_lit.attention.self_attention import SelfAttention

class Alternating(AttentionBackend):
    name = "alternating"

    def __init__(self, near: int):
        self.near = near

    def plan(self, layers):
        return tuple(LayerPlan(self.near if i % 2 else None) for i in range(layers))

    def mixer(self, dims, plan):
        return SelfAttention(dims, plan.window)
"""


def test_trains_a_class_of_a_third_party(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None], run_dir: Path
) -> None:
    (tmp_path / "their_package.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--model.attention", "their_package.Alternating", "--model.attention.near", "5")
    run("fit", *flags)
    run("validate", *flags, "--ckpt_path", "last")
    assert '"backend": "alternating"' in (run_dir / "length_generalization.jsonl").read_text()


def test_what_must_always_run_survives_overlays(tiny: str, tmp_path: Path, instantiate: Instantiate) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer:\n  callbacks: [{class_path: ModelSummary}, {class_path: PredictionWriter}]\n")
    for more in (
        [],
        flags(overlay),
        ["--trainer.callbacks+=RichModelSummary", "--trainer.enable_model_summary", "true"],
    ):
        callbacks = instantiate("fit", "--config", tiny, *more).trainer.callbacks
        assert [sum(isinstance(one, cls) for one in callbacks) for cls in ALWAYS] == [1] * len(ALWAYS)
    assert isinstance(callbacks[-1], Checkpoints)  # what it saves, the others have done with
    callbacks = instantiate("fit", "--config", tiny, "--trainer.enable_checkpointing", "false").trainer.callbacks
    assert not any(isinstance(one, ModelCheckpoint) for one in callbacks)
    callbacks = instantiate("fit", "--config", tiny, "--trainer.logger", "false").trainer.callbacks
    assert not any(isinstance(one, LearningRateMonitor) for one in callbacks)


def test_everything_lies_in_the_run_directory(tiny: str, tmp_path: Path, instantiate: Instantiate) -> None:
    trainer = instantiate("fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path / "other")).trainer
    places = [trainer.checkpoint_callback.dirpath, *(logger.save_dir for logger in trainer.loggers)]
    assert all(str(place).startswith(str(tmp_path / "other")) for place in places) and len(places) == 3
