"""The pictures of a sweep and of a trace in TensorBoard, at the step that they show."""

import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gca_lit.callbacks import LengthGeneralization
from gca_lit.cli import main
from tests.callbacks.counting_fakes import FakeData, FakeModule, trainer
from tests.cli.conftest import TINY

SWEEP = {"factors": [1], "episodes": [[0, 2]], "placements": ["end"]}


def images(folder: Path) -> dict[str, list[int]]:
    """The steps of each image."""
    found: dict[str, list[int]] = {}
    for version in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(version)).Reload()
        for name in events.Tags()["images"]:
            assert all(event.width > 100 and event.height > 100 for event in events.Images(name))
            found[name] = found.get(name, []) + [event.step for event in events.Images(name)]
    return found


def test_heat_maps_of_a_sweep(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path, name="tensorboard")]
    callback = LengthGeneralization(**SWEEP, during_fit_every=1)
    trainer(tmp_path, callback, logger=loggers, max_epochs=2, num_sanity_val_steps=0).fit(FakeModule(), FakeData())
    names = ["length_generalization/counting", "length_generalization/perplexity"]
    assert images(tmp_path) == {name: [1, 2] for name in names}
    assert (tmp_path / "length_generalization_counting.png").exists()


def test_the_picture_of_a_trace(tmp_path: Path, shards: Path) -> None:
    """Through the command line, whose loggers it is, in validate."""
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(TINY.format(shards=shards, run=run), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", str(config)])
        trace = ["--trainer.callbacks+=RetrievalTrace", "--trainer.callbacks.length=100"]
        main(["validate", "--config", str(config), "--ckpt_path", "last", *trace])
    assert images(run) == {"length_generalization/single_needle": [2], "retrieval_trace": [2]}
