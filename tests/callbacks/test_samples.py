"""What is written while training goes on, and that training does not notice."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from gca_lit.attention import GroupedCrossAttention
from gca_lit.callbacks import Samples
from gca_lit.callbacks.samples import evaluating
from gca_lit.cli import main
from gca_lit.model import DecoderConfig
from gca_lit.module import CausalLM
from tests.callbacks.counting_fakes import FakeData, FakeModule, trainer
from tests.cli.conftest import TINY


class Numbers:
    """The text "3 4" is the tokens 3, 4; 9 ends a document."""

    eos = 9

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Data(FakeData):
    tokenizer: Any = Numbers()


class Counting(FakeModule):
    """Counts upwards, as a real network does: it gives the last hidden state for "last"."""

    def step(self, tokens: torch.Tensor, state: Any, read: Any = "all") -> Any:
        assert not self.training and not torch.is_grad_enabled()
        return super().step(tokens, state, slice(-1, None) if read == "last" else read)


class Learned(CausalLM):
    """Learns nothing more."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 0 * self.logits(torch.ones(1, self.config.width)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, samples: Samples, model: Any = None, **settings: Any) -> None:
    settings = {"max_epochs": 4, "limit_val_batches": 0} | settings
    trainer(folder, samples, **settings).fit(model or Counting(), Data())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_lines(tmp_path: Path) -> None:
    """One optimizer step an epoch. A continuation ends at max_new_tokens, or before the end of a document."""
    model = Counting()
    fit(tmp_path, Samples(2, ["1 2", "5 6"], 4), model)
    assert rows(tmp_path) == [
        {"step": step, "prompt": prompt, "text": text}
        for step in (2, 4)
        for prompt, text in (("1 2", "3 4 5 6"), ("5 6", "7 8"))
    ]
    assert model.training


def test_once_a_step_when_gradients_are_accumulated(tmp_path: Path) -> None:
    class Long(Data):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(list(range(8)))

    samples = Samples(1, ["1"], 1)
    trainer(tmp_path, samples, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=4).fit(Counting(), Long())
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_tensorboard(tmp_path: Path) -> None:
    fit(tmp_path, Samples(4, ["1 2"], 2), logger=TensorBoardLogger(tmp_path, name="tensorboard"))
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    ((tag, kept),) = ((tag, events.Tensors(tag)) for tag in events.Tags()["tensors"])
    assert tag == "samples/0/text_summary" and kept[0].step == 4
    assert kept[0].tensor_proto.string_val == [b"    1 2 | 3 4"]


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_it_is_the_networks_own_choice(tmp_path: Path) -> None:
    """Against one forward over everything, token by token."""
    torch.manual_seed(0)
    backend = GroupedCrossAttention(chunk_size=4, window=10, top_k=2, lower_layers=1, encoder_layers=1, noise="none")
    size = DecoderConfig(width=16, heads=2, kv_heads=2, layers=2, mlp_width=16)
    model = Learned(backend, 10, size)
    fit(tmp_path, Samples(1, ["1 2 3"], 20), model, max_epochs=1)
    ids = [1, 2, 3]
    with torch.no_grad():
        while len(ids) < 23:
            new = int(model.eval().logits(model._decoder(torch.tensor([ids])).hidden[:, -1]).argmax())
            if new == Numbers.eos:
                break
            ids.append(new)
    assert rows(tmp_path)[0]["text"] == Numbers().decode(ids[3:])


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def test_training_goes_on_as_without_it(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, with the noise of retrieval."""
    config = tmp_path / "tiny.yaml"
    losses: dict[str, Losses] = {"with": Losses(), "without": Losses()}
    for name, noted in losses.items():
        config.write_text(TINY.format(shards=shards, run=tmp_path / name), encoding="utf-8")
        flags = [] if name == "without" else ["--trainer.callbacks+=Samples", "--trainer.callbacks.every_n_steps=1"]
        flags += [] if name == "without" else ["--trainer.callbacks.prompts=[the, a]"]
        monkeypatch.setattr("gca_lit.cli.MemoryReport", lambda noted=noted: noted)  # one more callback
        with warnings.catch_warnings():
            main(["fit", "--config", str(config), "--trainer.max_steps=4", *flags])
    assert len(losses["with"].values) == 4 and losses["with"].values == losses["without"].values
    written = rows(tmp_path / "with")
    assert [(row["step"], row["prompt"]) for row in written] == [(s, p) for s in range(1, 5) for p in ("the", "a")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"prompts": []}, "prompts must be a list of texts that are not empty"),
        ({"prompts": ["a", ""]}, "prompts must be a list of texts that are not empty"),
        ({"prompts": "abc"}, "prompts must be a list of texts that are not empty"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(**({"every_n_steps": 1, "prompts": ["a"]} | settings))


def test_prompts_that_are_too_long_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most max_length = 4 tokens"):
        fit(tmp_path, Samples(2, ["1 2"], 3), Counting(max_length=4))
    assert not (tmp_path / "samples.jsonl").exists()
