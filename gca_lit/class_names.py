"""The classes that a configuration can name: what to call them, and which settings they take."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any, get_args

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from gca_lit import attention, callbacks, memory, muon, tasks
from gca_lit.attention import AttentionBackend
from gca_lit.memory import ChunkStore
from gca_lit.tasks import Task

PACKAGES = (attention, memory, tasks, callbacks, muon)
BASES = (AttentionBackend, ChunkStore, Task, Optimizer, Callback, Logger)


def known_classes() -> list[type]:
    """Classes that have been imported and that a configuration can name."""
    found: list[type] = []
    bases: list[type] = list(BASES)
    while bases:
        subclasses: list[type] = bases.pop().__subclasses__()
        found += [c for c in subclasses if not inspect.isabstract(c) and not c.__name__.startswith("_")]
        bases += subclasses
    return list(dict.fromkeys(found))


def call_names() -> dict[str, str]:
    """What to call the known classes, by their bare names: by its path, our own first, where several have the name."""
    called: dict[str, list[type]] = {}
    for cls in sorted(known_classes(), key=lambda cls: not _ours(cls)):
        called.setdefault(cls.__name__, []).append(cls)
    return {name: name if len(classes) == 1 else f"{classes[0].__module__}.{name}" for name, classes in called.items()}


def own_classes(path: str, parser: ArgumentParser) -> list[str]:
    """What to call those of this package that suit the setting at `path`."""
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == path]
    bases = {base for base in BASES if any(base in _parts(hint) for hint in hints)}
    suitable = {c.__name__ for c in known_classes() if _ours(c) and bases.intersection(c.__mro__)}
    called = call_names()
    return [called[name] for package in PACKAGES for name in package.__all__ if name in suitable]


def settings_of(class_path: str) -> list[str]:
    """What the class takes in a configuration."""
    parameters = inspect.signature(resolve_name(class_path)).parameters.values()
    names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [name for name in names if name != "params"]  # which an optimizer gets when it is made


def all_settings() -> set[str]:
    """What the known classes take, callbacks and loggers aside."""
    some = (cls for cls in known_classes() if not issubclass(cls, Callback | Logger))
    return {name for cls in some for name in inspect.signature(cls).parameters}


def _ours(cls: type) -> bool:
    return cls.__module__.startswith("gca_lit.")


def _parts(hint: Any) -> list[Any]:
    """A type and the types within it."""
    return [hint, *(part for inner in get_args(hint) for part in _parts(inner))]
