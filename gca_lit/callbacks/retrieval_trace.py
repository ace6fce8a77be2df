"""A page of what the model retrieves in one document of the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gca_lit.callbacks.figures import show
from gca_lit.callbacks.occasions import AtEvaluation, sharded
from gca_lit.callbacks.rows import shared_columns
from gca_lit.memory.base import ChunkStore
from gca_lit.memory.host_store import HostStore
from gca_lit.trace import page as trace_page
from gca_lit.trace.selections import refuse_without_retrieval, trace


class RetrievalTrace(AtEvaluation):
    """Writes `retrieval_trace/step=N.html` in the trainer's default_root_dir, and a .json and .png beside it.

    It runs in validate and, if asked for, inside fit; rank 0 runs it, with sharded weights all ranks together. A
    backend without retrieval is refused before anything runs.

    Args:
        document: number of the document in the validation split.
        length: tokens of it to take; null takes all.
        during_fit_every: run in every n-th validation of fit; null never.
        segment: text tokens of one forward.
        store: where chunk K/V go; null is a HostStore.
    """

    def __init__(
        self,
        document: int = 0,
        length: int | None = 65_536,
        during_fit_every: int | None = None,
        segment: int = 16_384,
        store: ChunkStore | None = None,
    ) -> None:
        super().__init__(during_fit_every)
        for name, value in {"length": length, "segment": segment}.items():
            if value is not None and value < 1:
                raise ValueError(f"RetrievalTrace: {name} must be at least 1, got {value}")
        if document < 0:
            raise ValueError(f"RetrievalTrace: document must be at least 0, got {document}")
        self.document, self.length, self.segment = document, length, segment
        self.store = HostStore() if store is None else store

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a backend or a document that cannot be traced."""
        if self.works_in(stage) and stage != "test":
            refuse_without_retrieval(pl_module)
            self._tokens(trainer)

    def run(self, trainer: Trainer, model: Any, split: str) -> None:
        if split == "test" or not (trainer.is_global_zero or sharded(trainer)):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tokens = self._tokens(trainer)
        with trainer.precision_plugin.val_step_context():
            found = trace(model, tokens, data.tokenizer.decode, self.segment, self.store)
        self.store.close()
        if trainer.is_global_zero:
            about = shared_columns(trainer, model, data, self.loaded_step)
            page = Path(trainer.default_root_dir) / "retrieval_trace" / f"step={about['global_step']}.html"
            trace_page.save(found, f"document {self.document} of the validation split", about, page)
            show(trainer, "retrieval_trace", page.with_suffix(".png"), about["global_step"])
            rank_zero_info(f"what is retrieved: {page}")

    def _tokens(self, trainer: Trainer) -> torch.Tensor:
        """int64 [T]. Raises ValueError for a document that the split does not have."""
        reader = trainer.datamodule.haystack("val", seed=0).reader  # type: ignore[attr-defined]
        starts, ends = reader.documents
        if self.document >= len(starts):
            raise ValueError(
                f"RetrievalTrace: there is no document {self.document}: {reader.place} has 0 to {len(starts) - 1}"
            )
        start, stop = int(starts[self.document]), int(ends[self.document])
        stop = stop if self.length is None else min(stop, start + self.length)
        return torch.from_numpy(reader.tokens(start, stop))
