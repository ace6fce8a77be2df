"""The directory of a run: one training at a time, and the configuration of each."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from difflib import unified_diff
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class RunLock:
    """Makes this process the only one that trains in `folder`, until `release` or the end of the process.

    The lock belongs to the process, not to its data-loader workers, which live some seconds longer after a kill.
    Raises ValueError that names the holder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "run.lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise ValueError(
                f"{folder} is in use by {holder}: wait for it or end it, or set another trainer.default_root_dir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


class KeepConfig(SaveConfigCallback):
    """Writes the resolved configuration to the run directory, beside those of earlier runs when it differs.

    It waits for the loop to start: until then the run can be refused.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the run directory. Raises OSError when it cannot be written."""
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} cannot be written: set another trainer.default_root_dir")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        assert trainer.state.fn is not None
        name = f"config_{trainer.state.fn.value}"
        folder = Path(trainer.default_root_dir)
        text = self.parser.dump(self.config, skip_none=False)
        earlier = sorted(folder.glob(f"{name}*.yaml"), key=_number)
        if any(path.read_text(encoding="utf-8") == text for path in earlier):
            return
        path = folder / (f"{name}.{_number(earlier[-1]) + 1}.yaml" if earlier else f"{name}.yaml")
        path.write_text(text, encoding="utf-8")
        if earlier:
            before = earlier[-1].read_text(encoding="utf-8").splitlines()
            changes = unified_diff(before, text.splitlines(), n=0, lineterm="")
            lines = "\n".join(line for line in list(changes)[2:] if not line.startswith("@@"))
            rank_zero_info(f"{path} differs from {earlier[-1].name}:\n{lines}")

    on_validation_start = on_test_start = on_predict_start = on_train_start


def _number(path: Path) -> int:
    """1 of config_fit.1.yaml, 0 of config_fit.yaml."""
    found = re.search(r"\.(\d+)\.yaml$", path.name)
    return int(found[1]) if found else 0
