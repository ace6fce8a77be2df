"""A mistake ends with one line that names it, the nearest right name, and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from gca_lit.checkpoints.weights import write_weights
from gca_lit.cli import main
from gca_lit.module import CausalLM

Refused = Callable[..., str]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model.attentoin", "SlidingWindow"], "no setting model.attentoin; did you mean model.attention?"),
        (["--trainer.max_step", "3"], "no setting trainer.max_step; did you mean trainer.max_steps?"),
        (["--model.attention", "SlidingWindows"], "no class SlidingWindows; did you mean SlidingWindow?"),
        (["--model.attention", "gca_lit.attention.FulAttention"], "did you mean FullAttention?"),
        (["--model.attention", "torch.nn.Linear"], "torch.nn.Linear is not a subclass of AttentionBackend"),
        (["--model.attention", "nowhere.Attention"], "nowhere"),
        (["--model.attention.windows", "4"], "no setting windows; did you mean window?"),
        (["--model.attention.window", "eight"], "model.attention.window: expected int, got eight"),
        (["--model.attention.score", "cosin"], "expected 'dot', 'cosine', got cosin"),
        (
            ["--model.attention", "Nope"],
            "no class Nope; gca_lit has FullAttention, GroupedCrossAttention, SlidingWindow",
        ),
        (["--model.store", "Nope"], "no class Nope; gca_lit has DeviceStore, DiskStore, HostStore"),
        (
            ["--data.tasks", "[Nope]"],
            "MultiHop, MultiKey, MultiQuery, Perplexity, Recitation, SingleNeedle, Variable",
        ),
        (["--trainer.callbacks+=Nope"], "RetrievalProbe, RetrievalTrace, Rouge, Samples, SkipNonFinite, Throughput"),
        (["--data.tasks", "MultiKey"], "data.tasks: expected a list, such as [MultiKey], got MultiKey"),
        (["--data.tasks", "{class_path: MultiKey}"], "expected a list, such as [{'class_path': 'MultiKey'}]"),
        (["--model.store", "HostStor"], "no class HostStor; did you mean HostStore?"),
        (["--model.vocab_size", "3"], 'must be given via "data.vocab_size"'),
        (["--config", "configs/demoo.yaml"], "no file configs/demoo.yaml; did you mean configs/demo.yaml?"),
        (["extra"], "an argument too many: extra"),
    ],
)
def test_flags(tiny: str, refused: Refused, flags: list[str], message: str) -> None:
    assert message in refused("fit", "--config", tiny, *flags)


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {attentoin: {class_path: FullAttention}}", "did you mean model.attention?"),
        ("model: {decoder: {widht: 3}}", "did you mean model.decoder.width?"),
        ("model: {decoder: {width: wide}}", "x.yaml: model.decoder.width: expected int, got wide"),
        ("model: {attention: {class_path: FulAttention}}", "x.yaml: model.attention: there is no class FulAttention"),
        ("data: {tasks: [{class_path: SingleNedle}]}", "did you mean SingleNeedle?"),
        ("data: {tasks: [{class_path: SingleNeedle, init_args: {digit: 3}}]}", "did you mean digits?"),
        ("lenght_generalization: {factors: [1]}", "did you mean length_generalization.factors?"),
        ("trainer: {callbacks: [pytorch_lightning.callbacks.Timer]}", "use lightning.pytorch.callbacks.Timer"),
        ("trainer:\n  max_steps: 3\n  max_steps: 4\n", "x.yaml: Problems parsing config: key 'max_steps' stands twice"),
        ("data:\n  tasks:\n  - {class_path: SingleNeedle, class_path: MultiKey}\n", "key 'class_path' stands twice"),
        ("model: [1,\n", "x.yaml: Problems parsing config"),
        ("only words", "x.yaml: Unexpected config: only words"),
        ("", "x.yaml: there are no settings in it"),
        ("# only words", "x.yaml: there are no settings in it"),
    ],
)
def test_files(tiny: str, tmp_path: Path, refused: Refused, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert message in refused("fit", "--config", tiny, "--config", str(tmp_path / "x.yaml"))


def test_the_command_itself(tiny: str, refused: Refused) -> None:
    assert refused() == "name a subcommand: fit, validate, test, predict, generate"
    assert "no subcommand fti" in refused("fti")
    assert refused("--config", tiny, "fit") == "put --config behind the subcommand: fit --config FILE"
    assert "configs/base.yaml" in refused("fit")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model.attention.window", "9"], "must cover two blocks"),
        (["--model.decoder.width", "15"], "width 15 is not a multiple of heads 2"),
        (["--data.align", "8"], "set data.align to 4"),
        (["--data.train", "nowhere"], "data set nowhere does not exist"),
        (["--data.train", "README.md"], "data set README.md is a file, not a directory of shards"),
        (["--data.stages", "[[0, -5]]"], "data.stages: length -5 must be positive and divide train_length 64"),
        (["--data.growth", "{start: 16, threshold: 5}"], "growth.threshold is an accuracy, 0 to 1, not 5"),
        (["--length_generalization.segment", "0"], "LengthGeneralization: segment must be at least 1, got 0"),
        (["--model.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (["--trainer.default_root_dir", ""], "trainer.default_root_dir is empty: name the directory of the run"),
        (["--trainer.default_root_dir", "null"], "trainer.default_root_dir is empty: name the directory of the run"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must not be negative, got -1"),
        (["--data.tokenizer", "nowhere.json"], "tokenizer file nowhere.json does not exist"),
        (["--data.train_length", "999999"], "too few for one block"),
        (["--trainer.precision", "12"], "12"),
        (["--trainer.strategy", "fast"], "fast"),
    ],
)
def test_settings_that_cannot_work(tiny: str, refused: Refused, flags: list[str], message: str) -> None:
    assert message in refused("fit", "--config", tiny, *flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--trainer.callbacks+=RetrievalProbe", "--trainer.callbacks.every_n_steps", "0"], "at least 1, got 0"),
        (["--trainer.callbacks", "{class_path: SkipNonFinite, init_args: {max_in_a_row: 0}}"], "at least 1, got 0"),
        (["--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: x, mode: most}}]"], "got most"),
        (["--model.store", "{class_path: HostStore, init_args: {slab_mib: 0}}"], "slab_mib must be at least 1, got 0"),
        (["--data.pairs", "{train: x, val: y, separator: ''}"], "pairs.separator must not be empty"),
    ],
)
def test_what_a_class_says_of_its_settings_is_all_that_is_said(
    tiny: str, refused: Refused, flags: list[str], message: str
) -> None:
    """Though the setting can have another type: a list, or null."""
    said = refused("fit", "--config", tiny, *flags)
    assert message in said and "Union" not in said and "Expected" not in said


def test_a_setting_is_named_by_its_path(tiny: str, refused: Refused) -> None:
    said = refused("fit", "--config", tiny, "--model.schedule", "{decay: cosin}")
    assert said == "model.schedule.decay: expected 'cosine', 'linear', 'none', got cosin"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("mun", "there is no class mun; did you mean gca_lit.muon.Muon?"),
        ("gca_lit.muon.Mun", "there is no class Mun; did you mean gca_lit.muon.Muon?"),
        ("adamw", "there is no class adamw; did you mean AdamW?"),
        ("Nope", "there is no class Nope; gca_lit has gca_lit.muon.Muon"),
        ("nowhere.Muon", "nowhere.Muon cannot be imported: No module named 'nowhere'"),
        ("Muon", "several classes are called Muon: name one by its path, such as gca_lit.muon.Muon"),
        (
            "{class_path: gca_lit.muon.Muon, init_args: {nesterov: true}}",
            "there is no setting nesterov; Muon takes lr, momentum, betas, eps, weight_decay, iterations",
        ),
        (
            "{class_path: gca_lit.muon.Muon, init_args: {moment: 0.9}}",
            "there is no setting moment; did you mean momentum?",
        ),
    ],
)
def test_optimizers(tiny: str, refused: Refused, flags: str, message: str) -> None:
    """Muon is the name of a class of torch, too."""
    assert refused("fit", "--config", tiny, "--model.optimizer", flags) == f"model.optimizer: {message}"


def test_a_setting_of_an_optimizer(tiny: str, refused: Refused) -> None:
    muon = ["--model.optimizer", "gca_lit.muon.Muon", "--model.optimizer.lr", "fast"]
    assert refused("fit", "--config", tiny, *muon) == "model.optimizer.lr: expected float, got fast"
    said = refused("fit", "--config", tiny, "--model.attention.nothing_like_it", "3")
    assert "no setting nothing_like_it; GroupedCrossAttention takes chunk_size, window, top_k," in said


def test_a_list_is_shown(tiny: str, refused: Refused) -> None:
    said = refused("generate", "--config", tiny, "--prompt", "x", "--sampling.stop", "x")
    assert said == "sampling.stop: expected a list, such as [x], got x"
    said = refused("fit", "--config", tiny, "--data.tasks", "null")
    assert said == "data.tasks: expected a list, [] for an empty one, got None"


def test_without_a_gpu(tiny: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: False))
    said = refused("fit", "--config", tiny, "--trainer.accelerator", "gpu")
    assert "trainer.accelerator" in said and "--config configs/trainer/cpu.yaml" in said


def test_a_refused_run_leaves_no_configuration(
    tiny: str, run_dir: Path, run: Callable[..., None], refused: Refused
) -> None:
    assert "learning rate" in refused("fit", "--config", tiny, "--model.optimizer.lr", "-1")
    assert not list(run_dir.glob("config_*"))
    run("fit")
    for subcommand in ("fit", "validate"):
        wider = [subcommand, "--config", tiny, "--ckpt_path", "last", "--model.decoder.width", "32"]
        assert "another architecture" in refused(*wider)
    assert [path.name for path in run_dir.glob("config_*")] == ["config_fit.yaml"]


def test_what_a_callback_refuses_when_training_starts(tiny: str, run_dir: Path, refused: Refused) -> None:
    samples = "{class_path: Samples, init_args: {every_n_steps: 1, prompts: [long enough]}}"
    full = ["--model.attention", "FullAttention", "--model.attention.max_length"]
    said = refused("fit", "--config", tiny, *full, "70", f"--trainer.callbacks+={samples}")
    assert "at most max_length = 70 tokens" in said and not list(run_dir.glob("config_*"))
    assert "at most max_length = 9 tokens, but data.train_length is" in refused("fit", "--config", tiny, *full, "9")


def test_evaluation_that_cannot_work(tiny: str, tmp_path: Path, run: Callable[..., None], refused: Refused) -> None:
    run("fit")
    validate = ["validate", "--config", tiny, "--ckpt_path", "last"]
    assert "no task nothing" in refused(*validate, "--length_generalization.tasks", "[nothing]")
    assert "needs data.align" in refused(*validate, "--data.align", "null")
    predict = ["predict", "--config", tiny, "--ckpt_path", "last", "--data.predict.source", "file"]
    assert "nowhere.txt does not exist" in refused(*predict, "--data.predict.file", "nowhere.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "empty.txt has 0 tokens, at least 2 are needed" in refused(*predict, "--data.predict.file", str(empty))


def test_checkpoints(tiny: str, tmp_path: Path, run_dir: Path, run: Callable[..., None], refused: Refused) -> None:
    validate = ["validate", "--config", tiny]
    assert "validate needs --ckpt_path" in refused(*validate)
    assert "there is no last checkpoint in" in refused(*validate, "--ckpt_path", "last")
    run("fit")
    folder = run_dir / "checkpoints"
    assert "last-step=2.ckpt" in refused(*validate, "--ckpt_path", str(folder / "lost.ckpt"))
    assert "is not a checkpoint of gca_lit" in refused(*validate, "--ckpt_path", tiny)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "is not a checkpoint of gca_lit" in refused(*validate, "--ckpt_path", str(tmp_path / "other.ckpt"))

    file = folder / "last-step=2.ckpt"
    for command in ("fit", "validate"):
        for place, hint in ((run_dir, f" such as {file}"), (folder, f" such as {file}"), (tmp_path / "empty", "")):
            place.mkdir(exist_ok=True)
            said = refused(command, "--config", tiny, "--ckpt_path", str(place))
            assert said == f"{place} is a folder, not a checkpoint: name a file{hint}, or last"

    last = ["--ckpt_path", str(file)]
    message = refused(*validate, *last, "--model.attention", "FullAttention")
    assert "another architecture; attention.backend: " in message
    assert "gca.GroupedCrossAttention in the checkpoint" in message and "full.FullAttention in this run" in message
    message = refused(*validate, *last, "--model.decoder.layers", "4")
    assert message.endswith("decoder.layers: 2 in the checkpoint, 4 in this run")
    fit = ["fit", "--config", tiny, "--trainer.max_steps", "4", *last]
    assert "seed was 1, now 2" in refused(*fit, "--data.seed", "2")


def test_errors_of_a_run_keep_their_traceback(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(CausalLM, "training_step", fail)
    with pytest.raises(ValueError, match="a bug"):
        run("fit")


def test_the_traceback_can_be_asked_for(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCA_LIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="not a multiple"):
        main(["fit", "--config", tiny, "--model.decoder.width", "15"])


def test_lightning_still_has_what_is_overridden() -> None:
    assert callable(LightningCLI._parse_ckpt_path)
    assert callable(LightningCLI._run_subcommand)
    assert callable(LightningCLI._prepare_subcommand_kwargs)
    assert callable(ModelCheckpoint._save_last_checkpoint)


def test_training_cannot_go_on_from_weights_alone(refused, tiny, run_dir):
    file = run_dir / "weights.safetensors"
    file.parent.mkdir()
    write_weights({"state_dict": {"w": torch.rand(3)}, "gca_lit": {}, "global_step": 1}, file, torch.float32)
    said = refused("fit", "--config", tiny, "--ckpt_path", str(file))
    assert str(file) in said and "model.init_from" in said


def test_a_dead_worker_is_told_whatever_hides_it(tiny, monkeypatch, capsys):
    """Its death is raised wherever training is, there inside of code that raises an error of its own instead."""

    def die(*_):
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise TypeError("unsupported callable") from error

    monkeypatch.setattr(CausalLM, "training_step", die)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", tiny])
    assert stop.value.code == 1 and "data-loader worker with pid 7 is killed" in capsys.readouterr().err
