"""What a run holds: device and process."""

from __future__ import annotations

import resource
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gca_lit.units import GIB


class MemoryReport(Callback):
    """Logs GiB of memory after each validation: the device's peak and the process (RSS).

    Of several ranks the largest number counts.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        report = {"process": resident_bytes()}
        if trainer.strategy.root_device.type == "cuda":
            report["device_peak"] = torch.cuda.max_memory_allocated(trainer.strategy.root_device)
        pl_module.log_dict(
            {f"memory/{name}_gib": held / GIB for name, held in report.items()}, sync_dist=True, reduce_fx="max"
        )


def resident_bytes() -> int:
    """Memory of this process that is resident now, or its peak where the system only tells that."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
