"""Where a run's curves go: the overlays of configs/logger."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from gca_lit.cli import CLI

LOGGERS = Path(__file__).parents[2] / "configs" / "logger"


def test_the_default_comes_back(tiny: str, run_dir: Path, instantiate: Callable[..., CLI]) -> None:
    overlay = str(LOGGERS / "tensorboard.yaml")
    loggers = instantiate("fit", "--config", tiny, "--trainer.logger", "false", "--config", overlay).trainer.loggers
    assert [type(logger) for logger in loggers] == [CSVLogger, TensorBoardLogger]
    assert all(Path(str(logger.save_dir)).is_relative_to(run_dir) for logger in loggers)


class Elsewhere(DummyLogger):
    """Keeps where it was told to write."""

    def __init__(self, save_dir: str | None = "files", tracking_uri: str | None = None) -> None:
        super().__init__()
        self.places = (save_dir, tracking_uri)


def test_relative_places_are_in_the_run_directory(
    tiny: str, tmp_path: Path, run_dir: Path, instantiate: Callable[..., CLI]
) -> None:
    given: dict[tuple[str | None, str | None], tuple[str | None, str | None]] = {
        ("here", "sqlite:///here.db"): (f"{run_dir}/here", f"sqlite:///{run_dir}/here.db"),
        ("/there", "sqlite:////there.db"): ("/there", "sqlite:////there.db"),
        (None, "http://localhost:5000"): (None, "http://localhost:5000"),
    }
    loggers = [
        {"class_path": f"{__name__}.Elsewhere", "init_args": {"save_dir": folder, "tracking_uri": uri}}
        for folder, uri in given
    ]
    path = tmp_path / "loggers.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"logger": loggers}}), encoding="utf-8")
    cli = instantiate("fit", "--config", tiny, "--config", str(path))
    assert [logger.places for logger in cli.trainer.loggers] == [*given.values()]  # type: ignore[attr-defined]
    assert cli.config.fit.trainer.logger[0].init_args.save_dir == "here"  # saved as it was written


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named(tiny: str, refused: Callable[..., str], name: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    line = refused("fit", "--config", tiny, "--config", str(LOGGERS / f"{name}.yaml"))
    assert "Logger needs a package that is not installed: " in line and f"pip install -U '{package}" in line
    assert len(line) < 200


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_csv_stays(name: str) -> None:
    first, _ = yaml.safe_load((LOGGERS / f"{name}.yaml").read_text(encoding="utf-8"))["trainer"]["logger"]
    assert first["class_path"] == "lightning.pytorch.loggers.CSVLogger"
    assert first["init_args"] == {"save_dir": ".", "name": "csv"}
