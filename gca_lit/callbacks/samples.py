"""What the model writes while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gca_lit.callbacks.occasions import EverySteps
from gca_lit.generation.sampling import Sampling, check_length, generate, read
from gca_lit.memory.base import ChunkStore
from gca_lit.memory.host_store import HostStore
from gca_lit.results.file import ResultsFile

SEGMENT = 16_384
"""Text tokens of a prompt in one forward."""


class Samples(EverySteps):
    """Continues prompts greedily in training, to `output` in the trainer's default_root_dir and to TensorBoard.

    A line has step, prompt and text, the continuation, which ends before the end of a document. A run that goes on from
    an earlier step writes its lines again. Rank 0 runs it, with sharded weights all ranks together; it draws no random
    numbers, so that training goes on as without it.

    Args:
        every_n_steps: optimizer steps from one time to the next.
        prompts: texts to continue.
        max_new_tokens: the longest continuation.
        output: name of the file.
    """

    def __init__(
        self, every_n_steps: int, prompts: Sequence[str], max_new_tokens: int = 64, output: str = "samples.jsonl"
    ) -> None:
        super().__init__(every_n_steps)
        if max_new_tokens < 1:
            raise ValueError(f"Samples: max_new_tokens must be at least 1, got {max_new_tokens}")
        if isinstance(prompts, str) or not prompts or not all(prompts):
            raise ValueError(f"Samples: prompts must be a list of texts that are not empty, got {prompts!r}")
        self.prompts, self.output = list(prompts), output
        self.sampling = Sampling(max_new_tokens, temperature=0)
        self.store: ChunkStore = HostStore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        for prompt in self.prompts:
            check_length(pl_module, len(tokenizer.encode(prompt)), self.sampling)  # type: ignore[arg-type]
        super().on_train_start(trainer, pl_module)

    def run(self, trainer: Trainer, model: Any, step: int) -> None:
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        texts = []
        with evaluating(model), trainer.precision_plugin.val_step_context():
            for prompt in self.prompts:
                tokens = torch.tensor([tokenizer.encode(prompt)])
                state, logits = read(model, tokens, model.new_state(1, self.store), SEGMENT)
                ids = generate(model, state, logits, self.sampling, {tokenizer.eos})
                texts.append(tokenizer.decode(list(ids)))
        self.store.close()
        if trainer.is_global_zero:
            self._write(trainer, step, texts)

    def _write(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        file = ResultsFile(Path(trainer.default_root_dir) / self.output)
        for number, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True)):
            file.append({"step": step, "prompt": prompt, "text": text})
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    verbatim = "\n".join("    " + line for line in f"{prompt} | {text}".splitlines())
                    logger.experiment.add_text(f"samples/{number}", verbatim, step)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards for each module the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
