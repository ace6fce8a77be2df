"""Page-locked host memory from torch, made by several threads."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SETTING = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def lock_pages_in_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Ask torch's allocator for it, before anything uses CUDA; what the user asks of the allocator stays."""
    name = next((name for name in NAMES if environment.get(name)), NAMES[-1])
    given = environment.get(name)
    if not given:
        environment[name] = SETTING
    elif "pinned_" not in given:
        environment[name] = f"{given},{SETTING}"
