"""How near generated targets come to the references, and how probable the references are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torchmetrics.functional.text.rouge import rouge_score

from gca_lit.callbacks.occasions import AtEvaluation, sharded
from gca_lit.callbacks.rows import shared_columns
from gca_lit.generation.sampling import Sampling, check_length, generate, read
from gca_lit.memory.base import ChunkStore
from gca_lit.memory.host_store import HostStore
from gca_lit.results.file import ResultsFile
from gca_lit.scoring import score

KEYS = ("rouge1", "rouge2", "rougeL")


class Rouge(AtEvaluation):
    """Generates the targets of data.pairs greedily and compares them with the references, in validate, test and fit.

    Logs val_rouge1, val_rouge2 and val_rougeL (test_... in test): F-measures, the mean over the pairs; and
    val_pairs_loss: nats per token of the references, end of text included. A line of `output` in the trainer's
    default_root_dir has split, step, pair, these measures of the pair, the number of tokens of its reference,
    prediction, reference, and whose they are: sha256 of the checkpoint, commit and command. A prediction ends before
    end of text. Lines are only added: the same command given again adds the same lines.

    Ranks divide the pairs among them; with sharded weights (FSDP) all ranks generate all of them together.

    Args:
        pairs: how many, from the first; null takes all.
        max_new_tokens: the longest prediction.
        stemmer: compare stems of words, as published results do; needs the package nltk.
        during_fit_every: run in every n-th validation of fit; null never.
        segment: text tokens of a prompt in one forward.
        output: name of the file.
    """

    def __init__(
        self,
        pairs: int | None = 100,
        max_new_tokens: int = 128,
        stemmer: bool = False,
        during_fit_every: int | None = 1,
        segment: int = 16_384,
        output: str = "rouge.jsonl",
    ) -> None:
        super().__init__(during_fit_every)
        for name, value in {"pairs": pairs, "max_new_tokens": max_new_tokens, "segment": segment}.items():
            if value is not None and value < 1:
                raise ValueError(f"Rouge: {name} must be at least 1, got {value}")
        if stemmer and find_spec("nltk") is None:
            raise ModuleNotFoundError("Rouge: stemmer needs the package nltk: pip install nltk, or set it to false")
        self.pairs, self.stemmer, self.segment, self.output = pairs, stemmer, segment, output
        self.sampling = Sampling(max_new_tokens, temperature=0)
        self.store: ChunkStore = HostStore()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse pairs that are not there or too long for the attention, before anything runs."""
        if self.works_in(stage):
            pairs = self._pairs(trainer, "test" if stage == "test" else "val")
            check_length(pl_module, pairs.longest_prompt, self.sampling)  # type: ignore[arg-type]
            check_length(pl_module, pairs.longest, Sampling(max_new_tokens=0))  # type: ignore[arg-type]

    def _pairs(self, trainer: Trainer, split: str) -> Any:
        return trainer.datamodule.pairs(split)  # type: ignore[attr-defined]

    def run(self, trainer: Trainer, model: Any, split: str) -> None:
        pairs = self._pairs(trainer, split)
        rank, ranks = (0, 1) if sharded(trainer) else (trainer.global_rank, trainer.world_size)
        count = len(pairs) if self.pairs is None else min(self.pairs, len(pairs))
        with trainer.precision_plugin.val_step_context():
            rows = [self._row(trainer, model, pairs, number) for number in range(rank, count, ranks)]
        self.store.close()
        if ranks > 1:
            parts: list[Any] = [None] * ranks
            torch.distributed.all_gather_object(parts, rows)
            rows = sorted((row for part in parts for row in part), key=lambda row: row["pair"])
        means = {key: sum(row[key] for row in rows) / count for key in KEYS}
        tokens = sum(row["tokens"] for row in rows)
        means["pairs_loss"] = sum(row["loss"] * row["tokens"] for row in rows) / tokens
        model.log_dict({f"{split}_{key}": mean for key, mean in means.items()}, sync_dist=True)
        said = ", ".join(f"{key} {mean:.4f}" for key, mean in means.items())
        rank_zero_info(f"step {self.step(trainer)}, {count} pairs of {split}: {said}")
        about = shared_columns(trainer, model, trainer.datamodule, self.loaded_step)  # type: ignore[attr-defined]
        origin = {name: about[name] for name in ("checkpoint_sha256", "commit", "command")}
        if trainer.is_global_zero:
            file = ResultsFile(Path(trainer.default_root_dir) / self.output)
            for row in rows:
                file.append({"split": split, "step": self.step(trainer), **row, **origin})

    def _row(self, trainer: Trainer, model: Any, pairs: Any, number: int) -> dict[str, Any]:
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        prompt = pairs.prompt(number)[None]
        state, logits = read(model, prompt, model.new_state(1, self.store), self.segment)
        prediction = tokenizer.decode(list(generate(model, state, logits, self.sampling, {tokenizer.eos})))
        reference = tokenizer.decode(pairs.target(number).tolist())
        found = rouge_score(prediction, reference, use_stemmer=self.stemmer, rouge_keys=KEYS)
        scores = {key: round(float(found[f"{key}_fmeasure"]), 4) for key in KEYS}
        tokens, targets = pairs.asked(number)
        nll = score(model, tokens, targets, self.segment, self.store).nll
        scores |= {"loss": round(float(nll.mean()), 4), "tokens": len(nll)}
        return {"pair": number, **scores, "prediction": prediction, "reference": reference}
