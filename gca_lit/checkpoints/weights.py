"""Weights alone, as a .safetensors file: what is published of a training run, and can be evaluated by anybody."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gca_lit.whole_file import WholeFile, saving

SUFFIX = ".safetensors"
ABOUT = "gca_lit"


def write_weights(checkpoint: dict[str, Any], path: Path, dtype: torch.dtype) -> None:
    """Write the weights of a checkpoint to a new file, floating ones as `dtype`, and what makes them mean something.

    A tensor that stands under two names is written once. Raises NotSaved when the disk does not take it.
    """
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    for name, tensor in checkpoint["state_dict"].items():
        twin = next((other for other, seen in checkpoint["state_dict"].items() if _same(seen, tensor)), name)
        if twin != name:
            shared[name] = twin
        else:
            tensors[name] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
    checks = {name: _crc32(tensor) for name, tensor in tensors.items()}
    about = checkpoint[ABOUT] | {"global_step": checkpoint["global_step"], "shared": shared, "crc32": checks}
    with saving(f"{path} could not be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with WholeFile(path) as file:
            file.write(save(tensors, metadata={ABOUT: json.dumps(about)}))


def read_weights(path: Path) -> dict[str, Any]:
    """What a checkpoint of these weights holds beside the states of training, the weights in fp32.

    Raises ValueError for a file that is damaged or that `write_weights` did not write.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"not a whole .safetensors file: {error}") from error
    if about is None:
        raise ValueError("it was not written by gca_lit: it has no record of its architecture")
    checks = about.pop("crc32", {})  # a file may have none
    if damaged := [name for name, check in checks.items() if name not in weights or _crc32(weights[name]) != check]:
        raise ValueError(f"{', '.join(damaged)} is not what was written")
    weights = {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}
    shared = about.pop("shared")
    if lost := [f"{twin} is missing, which is {name} too" for name, twin in shared.items() if twin not in weights]:
        raise ValueError("; ".join(lost))
    weights |= {name: weights[twin] for name, twin in shared.items()}
    step = about.pop("global_step")
    return {"state_dict": weights, ABOUT: about, "global_step": step, "epoch": 0, "callbacks": {}}


def _crc32(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.numel() > 0
    )
