"""Where a result comes from: the command, the commit, the hardware, the versions, the weights."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor


def command() -> str:
    """The command line of this process, as it can be typed again."""
    interpreter, *arguments = sys.orig_argv
    return shlex.join([Path(interpreter).name, *arguments])


def commit() -> str | None:
    """The checked-out commit of this package, with "+dirty" when files differ from it; None outside a checkout.

    For a tree that was copied without its history, the environment variable GCA_LIT_COMMIT says it.
    """
    if told := os.environ.get("GCA_LIT_COMMIT"):
        return told

    def git(*arguments: str) -> str:
        folder = str(Path(__file__).resolve().parent)
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> str:
    """The GPUs' name and number, or the CPU's model and cores."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}" if count > 1 else torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a number; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "lightning", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of the names, types, shapes and bytes of named parameters, in order of name.

    Each is copied to the CPU once. Of a sharded parameter only this rank's part counts.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        tensor = tensor.detach().to("cpu", copy=True).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
