"""Whether a length fits: asked before a point starts, answered in numbers."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch

from gca_lit.host_memory import available_bytes
from gca_lit.memory.host_store import HostStore
from gca_lit.units import size

if TYPE_CHECKING:
    from gca_lit.memory.base import ChunkStore

SHARE_OF_HOST = 0.8


def free_host_bytes() -> int | None:
    """80 % of the memory that this host has available, or None where the system does not tell."""
    available = available_bytes()
    return None if available is None else int(available * SHARE_OF_HOST)


def device_bytes(device: torch.device) -> int:
    """All memory of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def shortage(
    model: Any, length: int, batch_size: int, store: ChunkStore, device: torch.device, host: int | None, ranks: int = 1
) -> str | None:
    """Why `batch_size` episodes of `length` tokens cannot be held, or None when they can.

    host: bytes that all `ranks` processes of this host may hold together, None for no limit.
    """
    if model.max_length is not None and length > model.max_length:
        return f"max_length: this backend takes at most {model.max_length:,} tokens, not {length:,}"
    needs = model.kv_bytes(length, batch_size)
    held = {"host": 0, "device": needs["state"], "disk": 0}
    for tier, more in store.needs(needs["store"]).items():
        held[tier] += more
    if device.type == "cpu":
        held["host"] += held.pop("device")
    if host is not None and ranks * held["host"] > host:
        helps = type(store) is HostStore and ranks * (held["host"] - needs["store"]) <= host
        remedy = "; --model.store DiskStore needs less" if helps else ""
        return f"needs {size(ranks * held['host'])} of host memory, has {size(host)}{remedy}"
    if held["disk"]:
        folder = store.directory  # type: ignore[attr-defined]
        free = shutil.disk_usage(folder).free
        if ranks * held["disk"] > free:
            return f"needs {size(ranks * held['disk'])} of disk, {folder} has {size(free)} free"
    if device.type == "cuda":
        total = device_bytes(device)
        if held["device"] > total:
            return f"needs {size(held['device'])} of device memory, has {size(total)}"
    return None


def refuse_shortage(model: Any, length: int, store: ChunkStore, device: torch.device) -> None:
    """Raise ValueError when one text of `length` tokens cannot be held."""
    if reason := shortage(model, length, 1, store, device, free_host_bytes()):
        raise ValueError(f"{length:,} tokens: {reason}")
