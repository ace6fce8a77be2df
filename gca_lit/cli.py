"""The command line: fit, validate, test, predict and generate from YAML files and flags."""

from __future__ import annotations

import codecs
import inspect
import locale
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_module
from torch.optim import Optimizer

from gca_lit.arguments import said
from gca_lit.callbacks import (
    Begun,
    Checkpoints,
    CompileReport,
    ExactResume,
    GracefulStop,
    LengthGeneralization,
    LengthGrowth,
    MemoryReport,
    PredictionWriter,
    SkipNonFinite,
    Throughput,
)
from gca_lit.checkpoints.files import WholeCheckpointIO, check_checkpoint, is_remote, newest, read_record
from gca_lit.checkpoints.weights import SUFFIX
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.exits import MISTAKES, TRACEBACK, end, lost
from gca_lit.module import CausalLM
from gca_lit.parsing import Parser, Refused, make, make_optimizer
from gca_lit.run_directory import KeepConfig, RunLock
from gca_lit.trainer import GeneratingTrainer
from gca_lit.usage import UsageError, load_yaml
from gca_lit.whole_file import refuse_overwriting

WORDS = ("last", "best", "hpc", "registry")
"""What --ckpt_path takes beside a path."""


def main(args: list[str] | None = None) -> None:
    """Run a command line; `args` are those of this process by default.

    What its writer can mend, before the first batch, ends with one line on stderr and exit code 2; a full disk and a
    data-loader worker that died end with one line and exit code 1. The environment variable GCA_LIT_TRACEBACK=1 shows
    the traceback instead. Other errors of a run that has begun keep theirs.
    """
    if args is None:
        _in_utf_8()
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    rank_zero_module.log.addFilter(_no_advertisement)
    for noise in (".*LeafSpec.* is deprecated", "Couldn't infer the batch indices", ".* returned a view tensor"):
        warnings.filterwarnings("ignore", noise)
    begun = Begun()
    try:
        CLI(begun, args)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if message := lost(error):
            end(message, 1, error)
        if begun.at_work or not isinstance(error, MISTAKES):
            raise
        end(said(error), 2, error)


class CLI(LightningCLI):
    """LightningCLI whose configuration and flags beat what a checkpoint remembers.

    Whatever the overlays say, a run has the callbacks of `instantiate_trainer`, and writes to trainer.default_root_dir.
    """

    def __init__(self, begun: Begun, args: list[str] | None) -> None:
        self.begun = begun
        self.lock: RunLock | None = None
        super().__init__(
            CausalLM,
            ArrowDataModule,
            trainer_class=GeneratingTrainer,
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
        predict = commands["predict"] | {"return_predictions"}
        return {**commands, "predict": predict, "generate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.tokenizer_id", "model.tokenizer", apply_on="instantiate")
        parser.add_lightning_class_args(LengthGeneralization, "length_generalization")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.save_on_exception": True})
        adamw = inspect.signature(CausalLM).parameters["optimizer"].default  # a partial, which YAML cannot say
        path = f"{adamw.func.__module__}.{adamw.func.__qualname__}"
        parser.set_defaults({"model.optimizer": {"class_path": path, "init_args": dict(adamw.keywords)}})

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is; the module refuses a checkpoint of another architecture."""

    def before_instantiate_classes(self) -> None:
        path = self._get(self.config, "ckpt_path")
        if path is None and self.subcommand != "fit":
            raise UsageError(f"{self.subcommand} needs --ckpt_path: the path of a checkpoint, or last")
        if _is_here(path):
            try:
                check_checkpoint(Path(path))
            except IsADirectoryError as error:
                raise UsageError(f"{error}, or last") from error
        if self.subcommand == "fit" and path is not None and Path(path).suffix == SUFFIX:
            raise UsageError(f"{path} holds weights alone, training cannot go on from it: set model.init_from instead")
        self.parser.add_instantiator(self._make_logger, Logger, subclasses=True)
        self.parser.add_instantiator(make_optimizer, Optimizer, subclasses=True)
        self.parser.add_instantiator(make, object, subclasses=True)

    def instantiate_classes(self) -> None:
        try:
            return super().instantiate_classes()
        except Refused as refused:
            error = refused.error
        raise error

    def after_instantiate_classes(self) -> None:
        align, chunk_size = self.datamodule.align, self.model.chunk_size
        if align is not None and chunk_size is not None and align != chunk_size:
            raise UsageError(
                f"data.align is {align}, but the chunks of the attention have {chunk_size} tokens: "
                f"set data.align to {chunk_size}, or to null to ask at the end only"
            )

    def before_fit(self) -> None:
        root = self.trainer.default_root_dir
        if self.trainer.global_rank == 0 and not is_remote(root):
            self.lock = RunLock(Path(root))

    def after_fit(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """The arguments of the trainer's method, with the newest whole checkpoint in the place of "last"."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        folder = self._get(self.config_init, "checkpoint").dirpath
        if arguments.get("ckpt_path") == "last" and not is_remote(folder):
            path = newest(Path(folder))
            if path is None and subcommand != "fit":
                raise UsageError(f"there is no last checkpoint in {folder}: train first, or name a checkpoint")
            if path is None:
                rank_zero_info(f"there is no checkpoint in {folder} yet: training starts from step 0")
            arguments["ckpt_path"] = path
        if subcommand == "generate" and arguments["output"] is not None:
            inputs = [arguments["prompt"], arguments["ckpt_path"], *(self._get(self.config, "config") or ())]
            inputs += [self._get(self.config, "data.tokenizer"), *_files_in(arguments["load_state"])]
            refuse_overwriting([Path(arguments["output"])], [Path(str(path)) for path in inputs])
        if subcommand == "fit" and _is_here(arguments.get("ckpt_path")):
            self.model.refuse_other_run(read_record(Path(arguments["ckpt_path"])))  # FSDP2 would load it before it asks
        return arguments

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with loggers and checkpoints in the run directory, and with the callbacks that are always there.

        trainer.callbacks can bring its own instance of one of these instead.
        """
        settings = self._get(self.config_init, "trainer")
        _check(settings)
        root = Path(settings["default_root_dir"])
        checkpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str(root / "checkpoints")
        if settings["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")

        logger: Any = settings["logger"]
        if self.subcommand == "generate":  # a question is no run, and leaves nothing behind
            logger, self.save_config_callback = False, None
        elif logger is None or logger is True:
            logger = [CSVLogger(root, name="csv"), TensorBoardLogger(root, name="tensorboard")]
        given = settings["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        always: list[Callback] = [self.begun, GracefulStop(), ExactResume(), SkipNonFinite()]
        always += [LengthGrowth(), CompileReport(), PredictionWriter(), MemoryReport(), Throughput()]
        if logger:
            always.append(LearningRateMonitor())
        missing = [callback for callback in always if not any(isinstance(one, type(callback)) for one in given)]

        plugins = settings["plugins"] or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(one, CheckpointIO) for one in plugins):
            plugins.append(WholeCheckpointIO())
        return super().instantiate_trainer(logger=logger, callbacks=[*given, *missing], plugins=plugins, **kwargs)

    def _make_logger(self, cls: type[Logger], *args: Any, applied_instantiation_links: Any, **settings: Any) -> Logger:
        """A logger whose relative save_dir, or SQLite file as tracking_uri, lies in the run directory."""
        root = self._get(self.config, "trainer").default_root_dir
        for name, scheme in (("save_dir", ""), ("tracking_uri", "sqlite:///")):
            place = settings.get(name)
            if place is not None and str(place).startswith(scheme):
                settings[name] = scheme + os.path.join(root, str(place).removeprefix(scheme))
        try:
            return make(cls, *args, applied_instantiation_links=applied_instantiation_links, **settings)
        except ModuleNotFoundError as error:
            if os.environ.get(TRACEBACK):
                raise
            end(f"{cls.__name__} needs a package that is not installed: {error}", 2, error)

    def predict(self, **kwargs: Any) -> None:
        """Predictions go to a file, batch by batch."""
        self.trainer.predict(**kwargs, return_predictions=False)


def _files_in(directory: str | None) -> list[Path]:
    return [] if directory is None or not Path(directory).is_dir() else list(Path(directory).iterdir())


def _is_here(path: str | Path | None) -> bool:
    """Whether a --ckpt_path is a path on this machine."""
    return path is not None and str(path).partition(":")[0] not in WORDS and not is_remote(path)


def _in_utf_8() -> None:
    """Start this command again in Python's UTF-8 mode where the locale has another encoding.

    Libraries, jsonargparse for one, open text files in the encoding of the locale.
    """
    encoding = codecs.lookup(locale.getencoding()).name
    if encoding != "utf-8" and not sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})


def _check(trainer: Any) -> None:
    """Raise UsageError for settings of the trainer that Lightning takes silently, or refuses without a remedy."""
    if not trainer["default_root_dir"]:
        raise UsageError("trainer.default_root_dir is empty: name the directory of the run, such as runs/default")
    clip = trainer["gradient_clip_val"]
    if clip is not None and clip < 0:
        raise UsageError(f"trainer.gradient_clip_val must not be negative, got {clip}: null clips nothing")
    if trainer["accelerator"] == "gpu" and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise UsageError(
            "trainer.accelerator is gpu, but torch finds none: set it to cpu, e.g. by --config configs/trainer/cpu.yaml"
        )


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
