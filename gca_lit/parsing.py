"""Short errors from jsonargparse: those of its parser, and those of the classes that it makes."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gca_lit.usage import UsageError, explain

T = TypeVar("T")


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


class Refused(BaseException):
    """What a class says of its settings, on its way past jsonargparse: where a setting can have several types, that
    would try the others too and complain about all of them."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def make(cls: type[T], *args: Any, applied_instantiation_links: Any, **settings: Any) -> T:
    """An instantiator for jsonargparse. Raises Refused for settings that `cls` refuses."""
    try:
        return cls(*args, **settings)
    except (ValueError, OSError, MisconfigurationException) as error:
        raise Refused(error) from error


def make_optimizer(cls: type[T], *args: Any, applied_instantiation_links: Any, **settings: Any) -> T:
    """Like `make`, for model.optimizer, which is made when training is set up and not by jsonargparse."""
    try:
        return cls(*args, **settings)
    except ValueError as error:
        raise ValueError(f"model.optimizer: {error}") from error
