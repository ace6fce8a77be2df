"""What training costs by backend, size and row length: speed, memory, and the share of the device's peak.

    PYTHONPATH=.:kernels python kernels/benchmarks/bench_cost.py --output DIR [--sizes 25m] [--lengths 4096 16384]
    PYTHONPATH=.:kernels python kernels/benchmarks/bench_cost.py --plot DIR/bench_cost.csv

Appends to DIR/bench_cost.csv a row for each size, row length and model, prints the table of all rows of that file and
draws DIR/bench_cost.png; --plot prints and draws alone. Models are grouped cross attention with one and with two
retrieval groups, as in configs/experiment/lm_25m.yaml, a sliding window with two layers more, and full attention. A
step is that of bench_training.py; its tokens are the same in all rows. The largest size recomputes its layers in the
backward pass (gradient checkpointing), whatever the model. MFU is three analytic forwards of `Decoder.flops` by step
time and the device's dense bfloat16 peak; what is recomputed does not count. Ratios are between rows of one run, so
measure the sliding window in each.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

import command
from bench_training import MORE_LAYERS, measure
from cost_figure import draw, table
from gca_lit.attention import AttentionBackend, FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.callbacks.throughput import dense_peak
from gca_lit.model import Decoder, DecoderConfig
from report import read

LENGTHS = (4_096, 16_384, 65_536, 131_072)
WINDOW = 128
GCA = partial(
    GroupedCrossAttention,
    chunk_size=63,
    window=WINDOW,
    top_k=32,
    lower_layers=2,
    score="cosine",
    residual="add",
    softmax_offset=64.0,
    smear_keys=True,
    recency=True,
    noise="none",
)
BACKENDS: dict[str, AttentionBackend] = {
    "sliding_window": SlidingWindow(WINDOW),
    "gca_1_group": GCA(groups=1),
    "gca_2_groups": GCA(groups=2),
    "full": FullAttention(),
}


@dataclass(frozen=True)
class Size:
    """One size of model, about that of its name; the exact number of parameters is in each row."""

    width: int
    heads: int
    layers: int
    mlp_width: int
    recompute: bool = False
    vocabulary: int = 8_192

    def config(self, model: str) -> DecoderConfig:
        return DecoderConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            layers=self.layers + MORE_LAYERS * (model == "sliding_window"),
            mlp_width=self.mlp_width,
            gradient_checkpointing=self.recompute,
        )

    def decoder(self, model: str) -> Decoder:
        return Decoder(self.config(model), BACKENDS[model], self.vocabulary)


SIZES = {
    "25m": Size(384, 6, 8, 1_280),
    "128m": Size(768, 12, 12, 2_048),
    "350m": Size(1_024, 16, 22, 2_816, recompute=True),
}


def cost(
    size: Size, model: str, length: int, tokens: int, device: str, warmup: int, steps: int, peak: float | None
) -> dict[str, Any]:
    """One row: what the model is, and where it could be measured its times, memory and MFU; `note` says why not.

    peak: dense FLOP/s of the device, None where it is not known.
    """
    with torch.device("meta"):
        shape = size.decoder(model)
    row: dict[str, Any] = {
        "layers": shape.config.layers,
        "width": size.width,
        "recompute": int(size.recompute),
        "params": sum(p.numel() for p in shape.parameters()),
        "step_tflop": 3 * shape.flops(length) * (tokens // length) / 1e12,
        "note": "",
    }
    try:
        row |= measure(partial(size.decoder, model), length, tokens, device, warmup, steps)
    except (torch.OutOfMemoryError, ValueError) as error:
        return row | {"note": str(error).splitlines()[0]}
    return row | {"mfu": row["step_tflop"] * 1e15 / row["step_ms"] / peak if peak else None}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("Benchmark of what training costs.", "bench_cost.csv", figure=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="text tokens of a row")
    parser.add_argument("--models", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--tokens", type=int, default=131_072, help="text tokens of a step")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed")
    options = parser.parse_args(arguments)
    path = options.plot or options.output / "bench_cost.csv"
    if options.output:
        run(options, path, command.begin(parser, options))
    print(table(read(path)), end="")
    print(draw(path))


def run(options: Namespace, path: Path, common: dict[str, str]) -> None:
    """Measure all cases of a command and append each to `path` as soon as it is known."""
    peak = dense_peak(common["gpu"])
    if peak is None:
        print(
            f"no MFU: the peak of {common['gpu']} is not among PEAKS of gca_lit.callbacks.throughput", file=sys.stderr
        )
    for name, length, model in product(options.sizes, options.lengths, options.models):
        counts = (options.tokens, "cuda", options.warmup, options.steps, peak)
        row = common | {"size": name, "model": model, "length": length} | cost(SIZES[name], model, length, *counts)
        said = f"{name} {model} {length:,}: {row.get('tokens_per_s', 0):,.0f} tokens/s {row['note']}"
        command.record(path, row, COLUMNS, said)


COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "size", "model", "layers", "width", "recompute", "params"),
    *("length", "batch", "step_ms", "slowest_ms", "tokens_per_s", "peak_gb", "step_tflop", "mfu", "warmup_s"),
    *("first_loss", "note"),
)


if __name__ == "__main__":
    main()
