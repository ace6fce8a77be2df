"""The command line: fit, validate, test and predict from YAML files and flags."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from difflib import unified_diff
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import set_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_module

from gca_lit.callbacks import LengthGeneralization, LengthGrowth, MemoryReport, PredictionWriter
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.module import CausalLM
from gca_lit.usage import UsageError, explain, load_yaml

TRACEBACK = "GCA_LIT_TRACEBACK"
WORDS = ("last", "best", "hpc", "registry")
"""What --ckpt_path takes beside a path."""


def main(args: list[str] | None = None) -> None:
    """Run a command line; `args` are those of this process by default.

    What its writer can mend, before the first batch, ends with one line on stderr and exit code 2. The environment
    variable GCA_LIT_TRACEBACK=1 shows the traceback instead. Errors of a run that has begun keep theirs.
    """
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    rank_zero_module.log.addFilter(_no_advertisement)
    for noise in (".*LeafSpec.* is deprecated", "Couldn't infer the batch indices"):
        warnings.filterwarnings("ignore", noise)
    begun = Begun()
    try:
        CLI(begun, args)
    except (UsageError, ValueError, OSError, ImportError, MisconfigurationException) as error:
        if os.environ.get(TRACEBACK) or begun.at_work:
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error


class Parser(LightningArgumentParser):
    """Raises UsageError with a short message instead of printing the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UsageError as error:
            raise UsageError(f"{cfg_path}: {error}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(explain(message, getattr(ex, "subcommand_parser", None) or self)) from ex


class CLI(LightningCLI):
    """LightningCLI whose configuration and flags beat what a checkpoint remembers.

    Whatever the overlays say, a run has the callbacks of `instantiate_trainer`, and writes to trainer.default_root_dir.
    """

    def __init__(self, begun: Begun, args: list[str] | None) -> None:
        self.begun = begun
        super().__init__(
            CausalLM,
            ArrowDataModule,
            save_config_callback=KeepConfig,
            trainer_defaults={"default_root_dir": "runs/default", "use_distributed_sampler": False},
            seed_everything_default=1,
            parser_class=Parser,
            args=args,
            auto_configure_optimizers=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {**commands, "predict": commands["predict"] | {"return_predictions"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.add_lightning_class_args(LengthGeneralization, "length_generalization")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        adamw = inspect.signature(CausalLM).parameters["optimizer"].default  # a partial, which YAML cannot say
        path = f"{adamw.func.__module__}.{adamw.func.__qualname__}"
        parser.set_defaults({"model.optimizer": {"class_path": path, "init_args": dict(adamw.keywords)}})

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is; the module refuses a checkpoint of another architecture."""

    def before_instantiate_classes(self) -> None:
        path = self._get(self.config, "ckpt_path")
        if path is None and self.subcommand != "fit":
            raise UsageError(f"{self.subcommand} needs --ckpt_path: the path of a checkpoint, or last")
        if path is not None and path.partition(":")[0] not in WORDS and "://" not in path:
            check_checkpoint(Path(path))

    def after_instantiate_classes(self) -> None:
        align, chunk_size = self.datamodule.align, self.model.chunk_size
        if align is not None and chunk_size is not None and align != chunk_size:
            raise UsageError(
                f"data.align is {align}, but the chunks of the attention have {chunk_size} tokens: "
                f"set data.align to {chunk_size}, or to null to ask at the end only"
            )
        if self.subcommand != "fit" and self._get(self.config, "ckpt_path") == "last":
            folder = Path(self._get(self.config_init, "checkpoint").dirpath)
            if not any(folder.glob("last*.ckpt")):
                raise UsageError(f"there is no last.ckpt in {folder}: train first, or name a checkpoint")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with loggers and checkpoints in the run directory, and with the callbacks that are always there.

        trainer.callbacks can bring its own instance of one of these instead.
        """
        settings = self._get(self.config_init, "trainer")
        root = Path(settings["default_root_dir"])
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str(root / "checkpoints")
        if settings["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")

        logger: Any = settings["logger"]
        if logger is None or logger is True:
            logger = [CSVLogger(root, name="csv"), TensorBoardLogger(root, name="tensorboard")]
        given = settings["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        always = [self.begun, LengthGrowth(), PredictionWriter(), MemoryReport()]
        if logger:
            always.append(LearningRateMonitor())
        missing = [callback for callback in always if not any(isinstance(one, type(callback)) for one in given)]
        return super().instantiate_trainer(logger=logger, callbacks=[*given, *missing], **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predictions go to a file, batch by batch."""
        self.trainer.predict(**kwargs, return_predictions=False)


class Begun(Callback):
    """Knows whether the run has come to its first batch."""

    at_work = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_work = True

    on_validation_start = on_test_start = on_predict_start = on_train_start


class KeepConfig(SaveConfigCallback):
    """Writes the resolved configuration to the run directory, beside those of earlier runs when it differs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        name = f"config_{TrainerFn(stage).value}"
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        earlier = sorted(folder.glob(f"{name}*.yaml"), key=lambda path: path.stat().st_mtime_ns)
        if any(path.read_text() == text for path in earlier):
            return
        path = folder / (f"{name}.{len(earlier)}.yaml" if earlier else f"{name}.yaml")
        path.write_text(text)
        if earlier:
            changes = unified_diff(earlier[-1].read_text().splitlines(), text.splitlines(), n=0, lineterm="")
            lines = "\n".join(line for line in list(changes)[2:] if not line.startswith("@@"))
            rank_zero_info(f"{path} differs from {earlier[-1].name}:\n{lines}")


def check_checkpoint(path: Path) -> None:
    """Raise UsageError when there is nothing at `path`, or a file that gca_lit did not write."""
    if not path.exists():
        near = sorted(path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f": {path.parent} has {', '.join(file.name for file in near)}" if near else ""
        raise UsageError(f"there is no checkpoint {path}{hint}")
    if path.is_file():
        try:
            ours = "gca_lit" in torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (RuntimeError, UnpicklingError):
            ours = False
        if not ours:
            raise UsageError(f"{path} is not a checkpoint of gca_lit")


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
