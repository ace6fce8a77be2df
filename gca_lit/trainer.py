"""Lightning's trainer with one method more: to continue a text."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm import tqdm

from gca_lit.callbacks.begun import Begun
from gca_lit.callbacks.budget import refuse_shortage
from gca_lit.callbacks.graceful_stop import GracefulStop
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.tokenizers import Tokenizer
from gca_lit.generation.prompting import encode_prompt
from gca_lit.generation.sampling import Sampling, check_length, generate, read
from gca_lit.generation.saved_state import check_new, identity, load, save, saved_tokens
from gca_lit.generation.text_stream import TextStream, text_of, until_stop
from gca_lit.model import ModelState, cast_once
from gca_lit.module import CausalLM
from gca_lit.whole_file import saving

T = TypeVar("T")
CONTEXT = 16
"""Tokens of the prompt behind which the first new one is decoded."""
ECHO = 1 << 16
"""Tokens of the prompt that are decoded at once when it is printed."""
_SAMPLING = Sampling()


class GeneratingTrainer(Trainer):
    """A trainer that can also continue a text with the model."""

    _stage: Callable[[], None] | None = None
    """What runs in the place of a loop, once device, model and checkpoint are ready."""

    def generate(
        self,
        model: CausalLM,
        datamodule: ArrowDataModule,
        prompt: str,
        ckpt_path: str | None = None,
        sampling: Sampling = _SAMPLING,
        segment: int = 16_384,
        load_state: str | None = None,
        save_state: str | None = None,
        output: str | None = None,
        show_prompt: bool = False,
    ) -> None:
        """Continue a text, and print it as it comes.

        It ends before an end-of-text token or a stop text. Only the text goes to standard output. Of the data settings
        the tokenizer alone counts; chunk K/V go to the model's store.

        Args:
            prompt: A UTF-8 text file, or - for standard input.
            ckpt_path: The path of a checkpoint, or last.
            sampling: How the next token is chosen.
            segment: Text tokens of one forward while the prompt is read.
            load_state: Directory of a saved state; the prompt goes on behind what was read for it.
            save_state: New directory, for the state behind the prompt.
            output: File for the text, instead of standard output.
            show_prompt: Print the prompt before its continuation.

        Raises ValueError or FileNotFoundError, before anything runs, for what cannot work.
        """
        self._check(segment, load_state, save_state, output)
        before = 0 if load_state is None else saved_tokens(Path(load_state))
        tokenizer = datamodule.tokenizer
        ids = encode_prompt(prompt, tokenizer)
        check_length(model, before + len(ids), sampling)

        def stage() -> None:
            model.eval()
            about = {}
            if load_state is not None or save_state is not None:
                about = identity(model, tokenizer.identity, str(self.precision))
            refuse_shortage(model, before + len(ids), model.store, self.strategy.root_device)
            device = self.strategy.root_device.type
            with torch.no_grad(), self.precision_plugin.forward_context(), cast_once(model, device):
                if load_state is None:
                    state = model.new_state(1, model.store)
                else:
                    state = load(Path(load_state), model, model.store, about)
                self._begin(model)
                reading, writing = TokenMeter(), TokenMeter()
                state, logits = self._read(model, ids, state, segment, reading)
                if save_state is not None:
                    save(state, Path(save_state), about)
                tokens = writing.timed(generate(model, state, logits, sampling, {tokenizer.eos}))
                stream = TextStream(tokenizer.decode, ids[-CONTEXT:].tolist())
                text = until_stop(text_of(([token] for token in tokens), stream), sampling.stop)
                _write(chain(_echo(ids, tokenizer) if show_prompt else (), text), output)
            model.store.close()
            sys.stderr.write(f"read {reading} of the prompt, generated {writing}\n")

        self._stage = stage
        try:
            self.predict(model, dataloaders=[], ckpt_path=ckpt_path)
        finally:
            self._stage = None

    def _run_stage(self) -> Any:
        return super()._run_stage() if self._stage is None else self._stage()

    def _check(self, segment: int, load_state: str | None, save_state: str | None, output: str | None) -> None:
        if (devices := self.num_devices * self.num_nodes) > 1:
            raise ValueError(f"generate runs on one device, not on {devices}: set trainer.devices and num_nodes to 1")
        if segment < 1:
            raise ValueError(f"segment must be at least 1 token, got {segment}")
        for name, path in {"load_state": load_state, "save_state": save_state, "output": output}.items():
            if path == "":
                raise ValueError(f"{name} is an empty text: give a path, or leave it out")
        if save_state is not None:
            check_new(Path(save_state))
        if output is not None and (Path(output).is_dir() or output == save_state):
            raise ValueError(f"output {output} is a directory: give the name of a file")
        if output is not None and not Path(output).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no directory {Path(output).absolute().parent} for the output: make it")

    def _begin(self, model: CausalLM) -> None:
        """From here on, what fails is no mistake in the settings, and signals end the process at once."""
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Begun | GracefulStop):
                callback.on_predict_start(self, model)

    def _read(
        self, model: CausalLM, ids: np.ndarray, state: ModelState, segment: int, meter: TokenMeter
    ) -> tuple[ModelState, Tensor]:
        device = self.strategy.root_device
        tokens = torch.from_numpy(ids.astype(np.int32))[None]
        silent = None if self.progress_bar_callback else True
        with tqdm(total=len(ids), desc="prompt", unit="token", unit_scale=True, disable=silent) as bar:

            def progress(count: int) -> None:
                meter.add(count)
                bar.update(count)

            done = read(model, tokens, state, segment, progress)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            meter.add(0)
            return done


class TokenMeter:
    """Tokens, and the seconds from the start of the first to the end of the last."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self._start = time.perf_counter()

    def __str__(self) -> str:
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} tokens ({rate:,.1f} tokens/s)"

    def add(self, count: int) -> None:
        self.tokens += count
        self.seconds = time.perf_counter() - self._start

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        self._start = time.perf_counter()
        for item in items:
            self.add(1)
            yield item


def _echo(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    parts = (ids[at : at + ECHO].tolist() for at in range(0, len(ids), ECHO))
    return text_of(parts, TextStream(tokenizer.decode))


def _write(text: Iterable[str], output: str | None) -> None:
    """To standard output without an `output`, as long as somebody reads it."""
    with nullcontext(sys.stdout) if output is None else open(output, "w", encoding="utf-8") as file:
        for piece in text:
            with saving(f"the text could not be written to {output or 'standard output'}"):
                try:
                    file.write(piece)
                    file.flush()
                except BrokenPipeError:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # or Python fails to flush it at the end
                    break
        if file.isatty():
            file.write("\n")
