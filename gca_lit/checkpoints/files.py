"""Checkpoint files: written whole or not at all, checked before they are trusted, the newest found by its step."""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from gca_lit.checkpoints.weights import SUFFIX, read_weights
from gca_lit.whole_file import WholeFile, is_full, saving

LAST = "last-step=*.ckpt"
ZIP = b"PK\3\4"
"""What a checkpoint file begins with."""
META = "meta.pt"
"""The file of everything else in a checkpoint that is a folder of weights in shards."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until it is on the disk, then renames it; a kill at any moment leaves
    the old file or the new one. Loads plain values and tensors only, and .safetensors files of weights. Remote paths go
    Lightning's own way.

    Raises NotSaved when the disk does not take it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if is_remote(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        with saving(f"{path} could not be saved", lambda cause: _remedy(path, checkpoint, cause)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with WholeFile(path) as file:
                torch.save(checkpoint, file)  # type: ignore[arg-type]

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if Path(path).suffix == SUFFIX and not is_remote(path):
            return read_weights(Path(path)) | {"pytorch-lightning_version": lightning.__version__}
        return super().load_checkpoint(path, map_location, True if weights_only is None else weights_only)


def is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def check_checkpoint(path: Path) -> None:
    """Raise FileNotFoundError, IsADirectoryError or ValueError when `path` is missing, is a folder that is not one of
    weights in shards, is damaged, or was not written by gca_lit.
    """
    if not path.exists():
        near = sorted(path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f": {path.parent} has {', '.join(file.name for file in near)}" if near else ""
        raise FileNotFoundError(f"there is no checkpoint {path}{hint}")
    if path.is_dir() and not (path / META).is_file():
        inside = sorted(path.glob("*.ckpt")) or sorted(path.glob("checkpoints/*.ckpt"))
        hint = f" such as {inside[-1]}" if inside else ""
        raise IsADirectoryError(f"{path} is a folder, not a checkpoint: name a file{hint}")
    try:
        ours = "gca_lit" in _read(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of gca_lit, or one that is damaged: {error}") from error
    if not ours:
        raise ValueError(f"{path} is not a checkpoint of gca_lit")
    if found := damage(path):
        raise ValueError(f"{path} is damaged: {found}; take an earlier one")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors mapped from the disk.

    Raises what `check_checkpoint` raises, and ValueError for weights in shards.
    """
    check_checkpoint(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder of weights in shards: name a checkpoint that is one file")
    return _read(path)


def read_record(path: Path) -> dict[str, Any]:
    """What a whole checkpoint keeps of its run. Raises ValueError when it was not written by gca_lit."""
    record: dict[str, Any] | None = _read(path).get("gca_lit")
    if record is None:
        raise ValueError(f"{path} is not a checkpoint of gca_lit")
    return record


def newest(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step that `folder` keeps for going on, None when it has none.

    The step is the one stored inside. Warns when a damaged one is passed over. Raises ValueError when all are damaged.
    """
    steps: dict[Path, int] = {}
    damaged: dict[Path, str] = {}
    for path in folder.glob(LAST):
        try:
            steps[path] = _read(path)["global_step"]
        except (ValueError, KeyError) as error:
            damaged[path] = str(error)
    whole = None
    for path in sorted(steps, key=lambda path: steps[path], reverse=True):
        if (found := damage(path)) is None:
            whole = path
            break
        damaged[path] = found
    listed = "; ".join(f"{path} is damaged: {found}" for path, found in damaged.items())
    if listed and whole is None:
        raise ValueError(f"no checkpoint is whole: {listed}; name another one, or start without --ckpt_path")
    if listed:
        rank_zero_warn(f"{listed}. {whole}, of step {steps[whole]}, is used instead.")  # type: ignore[index]
    return whole


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None when every part of it has the checksum it was written with.

    A folder (weights in shards) and a .safetensors file have no checksums.
    """
    if path.is_dir() or path.suffix == SUFFIX:
        return None
    try:
        with ZipFile(path) as archive:
            wrong = archive.testzip()
    except (BadZipFile, OSError, EOFError) as error:
        return str(error)
    return None if wrong is None else f"{wrong} has another checksum than was written"


def _read(path: Path) -> dict[str, Any]:
    """The values of a checkpoint, of weights in shards all but these; tensors stay on the disk.

    Raises ValueError for a file that cannot be read.
    """
    if path.is_dir():
        path = path / META
    if path.suffix == SUFFIX:
        return read_weights(path)
    if not is_zipfile(path):
        with path.open("rb") as file:
            head = file.read(len(ZIP))
        kind = "a file of another kind" if head != ZIP else "cut off"
        raise ValueError(f"it is {kind if head else 'empty'}")
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, OSError) as error:
        raise ValueError(str(error).partition(". ")[0].partition("\n")[0]) from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _remedy(path: Path, checkpoint: dict[str, Any], cause: OSError) -> str:
    """What to do about a checkpoint that the disk did not take, and where training can go on."""
    said = "set trainer.default_root_dir to another disk."
    if is_full(cause):
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        said = f"it takes {_Size(checkpoint).bytes:,} bytes, and {free:,} are free there: make room, or {said}"
    earlier = " Earlier checkpoints are whole; --ckpt_path last goes on from there."
    return said + (earlier if any(path.parent.glob(LAST)) else "")


class _Size:
    """A file that only counts."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.bytes = 0
        torch.save(checkpoint, self)  # type: ignore[arg-type]

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None: ...
