"""What a long context costs: reading it, continuing it, and memory, beside a sliding window with two layers more.

    PYTHONPATH=.:kernels python kernels/benchmarks/bench_context.py --output DIR --lengths 16384 262144 1048576 16384000
    PYTHONPATH=.:kernels python kernels/benchmarks/bench_context.py --plot DIR/bench_context.csv

Appends to DIR/bench_context.csv a row for each model, backend and length, and draws DIR/bench_context.png from all rows
of that file; --plot draws alone. Weights and tokens are random, for speed does not depend on them. Precision is that of
bf16-mixed, with the parts compiled. A context is read twice by `gca_lit.generation.read`, which only writes memory
before the last segment: first into an empty store, which allocates in passing, then into the slabs it kept. Contexts up
to --full_up_to are read once more with every output computed. Then tokens are generated greedily, each of which waits
for the device. Tokens are text tokens, GB = 1e9 bytes; peaks of device memory hold weights and prompt too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from context_figure import draw
from gca_lit.attention import GroupedCrossAttention, SlidingWindow
from gca_lit.generation import Sampling, generate, read
from gca_lit.memory import ChunkStore, DeviceStore, HostStore
from gca_lit.model import DecoderConfig
from gca_lit.module import CausalLM
from origin import append, origin

LENGTHS = (16_384, 262_144, 1_048_576, 16_384_000)
BACKENDS = ("gca", "sliding_window")
STORES: dict[str, type[ChunkStore]] = {"host": HostStore, "device": DeviceStore}
CHUNK, TOP_K = 63, 8
NEW_TOKENS = 256


@dataclass(frozen=True)
class Size:
    """One size of model; a sliding window gets two layers more."""

    width: int
    heads: int
    layers: int
    mlp_width: int
    encoder_layers: int
    window: int
    groups: int
    vocabulary: int

    def model(self, backend: str, compiled: bool) -> CausalLM:
        gca = backend == "gca"
        config = DecoderConfig(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            layers=self.layers if gca else self.layers + 2,
            mlp_width=self.mlp_width,
        )
        attention = SlidingWindow(self.window)
        if gca:
            attention = GroupedCrossAttention(
                CHUNK, self.window, TOP_K, groups=self.groups, encoder_layers=self.encoder_layers
            )
        model = CausalLM(attention, self.vocabulary, config, compile=compiled)
        model.configure_model()
        return model.eval()


SIZES = {
    "6m": Size(256, 4, 6, 683, encoder_layers=1, window=128, groups=1, vocabulary=256),
    "128m": Size(768, 12, 12, 2048, encoder_layers=2, window=512, groups=2, vocabulary=50_304),
}


@torch.no_grad()
def measure(
    model: CausalLM, length: int, segment: int, store: ChunkStore, full: bool, device: str, new_tokens: int = NEW_TOKENS
) -> dict[str, Any]:
    """Speed and memory of one model and length; `full`: whether to read with every output computed too."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocab_size, (1, length), generator=random, dtype=torch.int32).to(device)
    if model.chunk_size:
        segment = max(1, segment // model.chunk_size) * model.chunk_size
    clock = Clock(device)
    with torch.autocast(device, torch.bfloat16):
        _warm_up(model, tokens, segment, store, full)
        warmup = clock.lap()
        store.close()
        _empty_caches(device)
        row: dict[str, Any] = {"warmup_s": warmup}
        state = logits = None
        for name in ("first", "again"):
            del state, logits
            clock.lap()
            state, logits = read(model, tokens, model.new_state(1, store), segment)
            row[f"{name}_tokens_per_s"] = length / clock.lap()
        row["read_peak_gb"] = clock.peak_gb()
        row |= {f"state_{tier}_gb": size / 1e9 for tier, size in state.bytes().items() if tier != "disk"}
        row |= decoding(model, state, logits, new_tokens, clock)
        if full:
            del state, logits
            clock.lap()
            _read_all(model, tokens, segment, store)
            row |= {"full_tokens_per_s": length / clock.lap(), "full_peak_gb": clock.peak_gb()}
    store.close()
    return row


def decoding(model: CausalLM, state: Any, logits: Tensor, new_tokens: int, clock: Clock) -> dict[str, float]:
    """Speed and memory of `new_tokens` tokens behind what `state` has read; the first comes from `logits` alone."""
    stream = generate(model, state, logits, Sampling(max_new_tokens=new_tokens + 1, temperature=0))
    next(stream)
    clock.lap()
    seconds = [clock.lap() for _ in stream]
    return {
        "decode_tokens_per_s": len(seconds) / sum(seconds),
        "token_ms": 1e3 * statistics.median(seconds),
        "slowest_token_ms": 1e3 * max(seconds),
        "decode_peak_gb": clock.peak_gb(),
    }


class Clock:
    """Seconds of work that is done, and the peak of device memory since the last time somebody asked."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._begun = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, once the device is done."""
        if self._cuda:
            torch.cuda.synchronize()
        begun, self._begun = self._begun, time.perf_counter()
        return self._begun - begun

    def peak_gb(self) -> float:
        """Most device memory allocated since the last call."""
        if not self._cuda:
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of long contexts.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="folder of bench_context.csv and bench_context.png")
    what.add_argument("--plot", type=Path, metavar="CSV", help="only draw the figure of these rows")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="text tokens of a context")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--segment", type=int, default=16_384, help="text tokens of one forward")
    parser.add_argument("--store", choices=STORES, default="host", help="where chunk K/V go")
    parser.add_argument("--full_up_to", type=int, default=1_048_576, help="longest context read with every output")
    parser.add_argument("--commit", help="what is measured; git is asked when it is not given")
    options = parser.parse_args(arguments)
    if options.plot:
        print(draw(options.plot))
        return
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    path = options.output / "bench_context.csv"
    common = origin(options.commit)
    for name, backend in product(options.models, options.backends):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = SIZES[name].model(backend, compiled=True).to("cuda")
        about = {"model": name, "backend": backend, "segment": options.segment, "params": model.describe()["params"]}
        about |= {"store": options.store, "layers": model.config.layers, "width": model.config.width}
        for length in options.lengths:
            row = {**common, **about, "length": length, "note": ""}
            store, full = STORES[options.store](), length <= options.full_up_to
            try:
                row |= measure(model, length, options.segment, store, full, "cuda")
            except torch.OutOfMemoryError as error:
                row["note"] = str(error).splitlines()[0]
                store.close()
            print(_said(row), flush=True)
            append(path, [row], COLUMNS)
            _empty_caches("cuda")
    if set(options.backends) == set(BACKENDS):
        print(draw(path))


COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "model", "backend", "layers", "width", "params", "length"),
    *("segment", "store", "first_tokens_per_s", "again_tokens_per_s", "full_tokens_per_s", "decode_tokens_per_s"),
    *("token_ms", "slowest_token_ms", "read_peak_gb", "full_peak_gb", "decode_peak_gb", "state_device_gb"),
    *("state_host_gb", "warmup_s", "note"),
)


def _warm_up(model: CausalLM, tokens: Tensor, segment: int, store: ChunkStore, full: bool) -> None:
    """Compile what will run: a few segments and the last, short one, then tokens until chunks have been selected."""
    few = tokens[:, : 3 * segment + tokens.shape[1] % segment]
    state, logits = read(model, few, model.new_state(1, store), segment)
    for _ in generate(model, state, logits, Sampling(max_new_tokens=2 * CHUNK + 3, temperature=0)):
        pass
    if full:
        _read_all(model, few, segment, store)


def _read_all(model: CausalLM, tokens: Tensor, segment: int, store: ChunkStore) -> None:
    state = model.new_state(1, store)
    for part in tokens.split(segment, 1):
        state = model.step(part.long(), state).state


def _empty_caches(device: str) -> None:
    """Give memory back, pinned memory too: a later store must not find it ready."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()
        torch.cuda.reset_peak_memory_stats()


def _said(row: dict[str, Any]) -> str:
    speeds = [f"{row.get(name, 0):,.0f}" for name in COLUMNS if name.endswith("tokens_per_s")]
    said = f"{row['model']} {row['backend']} {row['length']:,}: tokens/s first {speeds[0]}, again {speeds[1]}, "
    return said + f"full {speeds[2]}, decoding {speeds[3]}; {row.get('decode_peak_gb', 0):.2f} GB {row['note']}"


if __name__ == "__main__":
    main()
