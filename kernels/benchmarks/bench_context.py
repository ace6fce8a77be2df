"""What a long context costs: reading it, continuing it, and memory, beside a sliding window with two layers more.

    PYTHONPATH=.:kernels python kernels/benchmarks/bench_context.py --output DIR [--models YAML ...] [--lengths N ...]
    PYTHONPATH=.:kernels python kernels/benchmarks/bench_context.py --plot DIR/bench_context.csv

Appends to DIR/bench_context.csv a row for each model, backend and length, draws DIR/bench_context.png from all rows
of that file, and prints their table; --plot does that alone. Models are those of configuration files, named by them;
weights and tokens are random, for speed does not depend on them. Precision is that of bf16-mixed, with weights cast
once as `generate` does, and the parts compiled.

A context is read by `gca_lit.generation.sampling.read`, which only writes memory before the last segment: first into
an empty store, which allocates in passing, then ("again") into the slabs it kept. Between the two, contexts up to
--full_up_to are read with every output computed. Some two chunks of tokens are generated greedily behind it, in which
CUDA graphs are captured ("first"). All this each model does alone on the device. Then the models of a file read once
more and generate in turns, for what else the host does changes from second to second: rows have the median of their
turns and the fastest one, and what a loop in Python took the host meanwhile ("host").
Tokens are text tokens, GB = 1e9 bytes. Peaks of device memory hold the weights. Landmarks are the part of the state
that grows with the context: their GB are those in use, the state's those allocated.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import command
from clock import Clock
from context_figure import draw, table
from gca_lit.generation.sampling import Sampling, generate, read
from gca_lit.memory import ChunkStore, DeviceStore, HostStore
from gca_lit.model import ModelState, cast_once
from gca_lit.module import CausalLM
from recipe import recipe_model, sliding_window
from report import read as read_rows
from turns import first_tokens, in_turns

RECIPES = [Path(f"configs/experiment/needle_16k_{size}.yaml") for size in ("6m", "128m")]
LENGTHS = (16_384, 262_144, 1_048_576, 16_384_000)
SEGMENT = 65_536
BACKENDS = ("gca", "sliding_window")
STORES: dict[str, type[ChunkStore]] = {"host": HostStore, "device": DeviceStore}


@torch.no_grad()
def measure(
    model: CausalLM, tokens: Tensor, segment: int, store: ChunkStore, full: bool, device: str
) -> dict[str, Any]:
    """Speed and memory of one model and context; `full`: whether to read with every output computed too."""
    if model.chunk_size:
        segment = max(1, segment // model.chunk_size) * model.chunk_size
    length, row = tokens.shape[1], dict[str, Any]()
    clock = Clock(device)
    with torch.autocast(device, torch.bfloat16), cast_once(model, device):
        _warm_up(model, tokens, segment, store, full)
        row["warmup_s"] = clock.lap()
        store.close()
        command.free_memory()

        clock.start()
        read(model, tokens, model.new_state(1, store), segment)
        row |= {"first_tokens_per_s": length / clock.lap(), "read_peak_gb": clock.peak_gb()}
        if full:
            clock.start()
            _read_all(model, tokens, segment, store)
            row |= {"full_tokens_per_s": length / clock.lap(), "full_peak_gb": clock.peak_gb()}
        clock.start()
        state, logits = read(model, tokens, model.new_state(1, store), segment)
        row["again_tokens_per_s"] = length / clock.lap()
        row |= _held(state) | decoding(model, state, logits, clock)
    store.close()
    return row


def decoding(model: CausalLM, state: ModelState, logits: Tensor, clock: Clock) -> dict[str, float]:
    """Speed and memory of the first tokens behind what `state` has read."""
    first = first_tokens(model)
    stream = generate(model, state, logits, Sampling(max_new_tokens=first, temperature=0))
    clock.start()
    seconds = sum(clock.lap(wait=False) for _ in stream) + clock.lap()
    return {"first_ms": 1e3 * seconds / first, "decode_peak_gb": clock.peak_gb()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("Benchmark of long contexts.", "bench_context.csv", figure=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="text tokens of a context")
    parser.add_argument("--models", type=Path, nargs="+", default=RECIPES, metavar="YAML", help="configuration files")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--segment", type=int, default=SEGMENT, help="text tokens of one forward")
    parser.add_argument("--store", choices=STORES, default="host", help="where chunk K/V go")
    parser.add_argument("--full_up_to", type=int, default=max(LENGTHS), help="longest context read with every output")
    options = parser.parse_args(arguments)
    if options.plot:
        print(table(read_rows(options.plot)), end="")
        print(draw(options.plot))
        return
    path = options.output / "bench_context.csv"
    common = command.begin(parser, options)
    for recipe in options.models:
        torch._dynamo.reset()
        models = {backend: built(recipe, backend, compiled=True) for backend in options.backends}
        for length in options.lengths:
            for row in rows_of(models, length, options, "cuda"):
                row = {**common, "model": recipe.stem, **row}
                command.record(path, row, COLUMNS, _said(row))
    print(table(read_rows(path)), end="")
    if set(options.backends) == set(BACKENDS):
        print(draw(path))


def rows_of(models: dict[str, CausalLM], length: int, options: Namespace, device: str) -> list[dict[str, Any]]:
    """A row for each model behind a context of `length` tokens: alone on the device, then decoding in turns."""
    some = next(iter(models.values()))
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(some.vocab_size, (1, length), generator=random, dtype=torch.int32)
    rows = {}
    for name, model in models.items():
        store, full = STORES[options.store](), length <= options.full_up_to
        rows[name] = row = {"backend": name, "length": length, "segment": options.segment, "store": options.store}
        row |= {"params": model.describe()["params"], "layers": model.config.layers, "width": model.config.width}
        try:
            row |= measure(model.to(device), tokens, options.segment, store, full, device) | {"note": ""}
        except torch.OutOfMemoryError as error:
            row["note"] = str(error).splitlines()[0]
        store.close()
        model.to("cpu")
        command.free_memory()
    able = {name: model.to(device) for name, model in models.items() if not rows[name]["note"]}
    stores = {name: STORES[options.store]() for name in able}
    for name, speed in in_turns(able, stores, tokens, options.segment, device).items():
        rows[name] |= speed
    for name, model in able.items():
        stores[name].close()
        model.to("cpu")
    return list(rows.values())


def built(recipe: Path, backend: str, compiled: bool) -> CausalLM:
    """The recipe's model, or the sliding window beside it, with random weights."""
    model = recipe_model(recipe, compiled)
    model = model if backend == "gca" else sliding_window(model)
    torch.manual_seed(0)
    model.configure_model()
    return model.eval()


COLUMNS = (
    *("date", "gpu", "torch", "triton", "commit", "command", "model", "backend", "layers", "width", "params", "length"),
    *("segment", "store", "first_tokens_per_s", "again_tokens_per_s", "full_tokens_per_s", "decode_tokens_per_s"),
    *("fastest_tokens_per_s", "host_ms", "first_ms", "token_ms", "slowest_token_ms", "read_peak_gb", "full_peak_gb"),
    *("decode_peak_gb", "state_device_gb", "landmarks_gb", "state_host_gb", "warmup_s", "note"),
)


def _warm_up(model: CausalLM, tokens: Tensor, segment: int, store: ChunkStore, full: bool) -> None:
    """Compile what will run: a few segments and the last, short one, then tokens until chunks have been selected."""
    few = tokens[:, : 3 * segment + tokens.shape[1] % segment]
    state, logits = read(model, few, model.new_state(1, store), segment)
    for _ in generate(model, state, logits, Sampling(max_new_tokens=first_tokens(model), temperature=0)):
        pass
    if full:
        _read_all(model, few, segment, store)


def _read_all(model: CausalLM, tokens: Tensor, segment: int, store: ChunkStore) -> None:
    state = model.new_state(1, store)
    for part in tokens.split(segment, 1):
        state = model.step(part.long(), state).state


def _held(state: ModelState) -> dict[str, float]:
    """GB of what decoding goes on from."""
    landmarks = [] if state.memory is None else state.memory.landmarks()
    held = {f"state_{tier}_gb": state.bytes()[tier] / 1e9 for tier in ("device", "host")}
    return held | {"landmarks_gb": sum(part.nbytes for part in landmarks) / 1e9}


def _said(row: dict[str, Any]) -> str:
    speeds = [f"{name.split('_')[0]} {row.get(name, 0):,.0f}" for name in COLUMNS if name.endswith("tokens_per_s")]
    said = f"{row['model']} {row['backend']} {row['length']:,}: tokens/s {', '.join(speeds)}; "
    return said + f"host {row.get('host_ms', 0):.2f} ms, {row.get('decode_peak_gb', 0):.2f} GB {row['note']}"


if __name__ == "__main__":
    main()
