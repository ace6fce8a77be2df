"""Tokens per second of whole training steps: grouped cross attention beside a sliding window with two layers more.

    PYTHONPATH=.:kernels python kernels/benchmarks/bench_training.py --output DIR [--tokens 131072] [--profile]

Appends to DIR/bench_training.csv a row for each model, head layout and row length; the tokens of a step are the same in
all. A step is forward, loss, backward and AdamW, layers and loss compiled, products in bf16, no gradient checkpointing;
the model has the paper's size and a vocabulary of 50,304. Times are medians over steps after the compiling ones; tokens
are text tokens. With --profile the kernels of one step that take longest are written to DIR/profile_*.txt.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import command
from gca_lit.attention import GroupedCrossAttention, SlidingWindow
from gca_lit.model import Decoder, DecoderConfig, chunked_cross_entropy

VOCABULARY, LAYERS = 50_304, 12
MORE_LAYERS = 2  # that a sliding window has, here and in the benchmarks of cost and of long contexts
WINDOW, CHUNK, TOP_K = 512, 63, 8
LENGTHS = (16_384, 4_096, 65_536, 131_072)
WARMUP, STEPS = 4, 10


@dataclass(frozen=True)
class Case:
    """One model and row length."""

    model: str
    heads: int
    kv_heads: int
    length: int
    layers: int
    width: int = 768

    def decoder(self) -> Decoder:
        config = DecoderConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            layers=self.layers,
            mlp_width=self.width * 8 // 3,
            position="rotary",
        )
        if self.model == "gca":
            return Decoder(config, GroupedCrossAttention(CHUNK, WINDOW, TOP_K), VOCABULARY)
        return Decoder(config, SlidingWindow(WINDOW), VOCABULARY)


def cases(layouts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Iterator[Case]:
    for heads, kv_heads in layouts:
        for length in lengths:
            yield Case("gca", heads, kv_heads, length, LAYERS)
            yield Case("sliding_window", heads, kv_heads, length, LAYERS + MORE_LAYERS)


def training_step(decoder: Decoder, rows: int, length: int, device: str) -> Callable[[], Tensor]:
    """A function that makes one optimizer step on the same random row each time, and gives the loss."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.vocab_size, (rows, length), generator=random).to(device)
    noise = torch.arange(rows, device=device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            hidden = decoder(tokens, noise=noise).hidden
            loss = chunked_cross_entropy(decoder.token_loss, hidden, tokens.roll(-1, 1)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(
    make: Callable[[], Decoder],
    length: int,
    tokens: int,
    device: str,
    warmup: int = WARMUP,
    steps: int = STEPS,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Times and memory of training what `make` makes, by steps of `tokens` in rows of `length` text tokens.

    Raises ValueError when rows do not fill a step.
    """
    if tokens % length:
        raise ValueError(f"--tokens {tokens} is not a multiple of the row length {length}")
    torch.manual_seed(0)
    torch._dynamo.reset()
    decoder = make().to(device)
    if device == "cuda":
        decoder.compile_parts()
        torch.cuda.reset_peak_memory_stats()
    step = training_step(decoder, tokens // length, length, device)
    begun = time.perf_counter()
    losses = [float(step()) for _ in range(warmup)]
    warmup_s = time.perf_counter() - begun
    times = [_milliseconds(step, device) for _ in range(steps)]
    if profile is not None:
        _profile(step, profile)
    ms = statistics.median(times)
    return {
        "batch": tokens // length,
        "params": sum(p.numel() for p in decoder.parameters()),
        "step_ms": ms,
        "slowest_ms": max(times),
        "tokens_per_s": 1e3 * tokens / ms,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        "warmup_s": warmup_s,
        "first_loss": losses[0],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("Benchmark of whole training steps.", "bench_training.csv")
    parser.add_argument("--tokens", type=int, default=131_072, help="text tokens of a step")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="text tokens of a row")
    parser.add_argument("--layouts", nargs="+", default=["12/12", "12/4"], help="query heads / key/value heads")
    parser.add_argument("--profile", action="store_true", help="write the kernels of one step, by time")
    options = parser.parse_args(arguments)
    layouts = [(int(heads), int(kv_heads)) for heads, kv_heads in (layout.split("/") for layout in options.layouts)]
    common = command.begin(parser, options)
    options.output.mkdir(parents=True, exist_ok=True)
    for case in cases(layouts, options.lengths):
        name = f"{case.model}_{case.heads}_{case.kv_heads}_{case.length}"
        profile = options.output / f"profile_{name}.txt" if options.profile else None
        row = {**common, **vars(case), "note": ""}
        try:
            row |= measure(case.decoder, case.length, options.tokens, "cuda", profile=profile)
        except (torch.OutOfMemoryError, ValueError) as error:
            row["note"] = str(error).splitlines()[0]
        said = f"{name}: {row.get('tokens_per_s', 0):,.0f} tokens/s {row['note']}"
        command.record(options.output / "bench_training.csv", row, COLUMNS, said)


COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "model", "heads", "kv_heads", "layers", "width", "length"),
    *("batch", "params", "step_ms", "slowest_ms", "tokens_per_s", "peak_gb", "warmup_s", "first_loss", "note"),
)


def _milliseconds(step: Callable[[], Tensor], device: str) -> float:
    begun = time.perf_counter()
    float(step())  # waits for the device
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def _profile(step: Callable[[], Tensor], path: Path) -> None:
    """Write the kernels of one step, the longest first: ms in all, calls, shortest and longest call in us."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("## Call", "Torch-Compiled")):
            kernels.setdefault(event.name, []).append(event.device_time)
    longest = sorted(kernels.items(), key=lambda named: -sum(named[1]))
    lines = [f"{sum(us) / 1e3:9.3f} {len(us):5} {min(us):9.1f} {max(us):9.1f}  {name[:150]}" for name, us in longest]
    path.write_text("\n".join([f"{sum(map(sum, kernels.values())) / 1e3:9.3f} ms in all", *lines, ""]))


if __name__ == "__main__":
    main()
