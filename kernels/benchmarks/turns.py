"""Decoding by several models in turns: what the host does meanwhile slows down all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor

from clock import Clock, host_ms
from gca_lit.generation.sampling import Sampling, generate, read
from gca_lit.memory import ChunkStore
from gca_lit.model import cast_once
from gca_lit.module import CausalLM

ROUNDS, TURN = 32, 128
"""Turns of each model, and tokens of one."""


@torch.no_grad()
def in_turns(
    models: Mapping[str, CausalLM],
    stores: Mapping[str, ChunkStore],
    tokens: Tensor,
    segment: int,
    device: str,
    rounds: int = ROUNDS,
    turn: int = TURN,
) -> dict[str, dict[str, float]]:
    """Of each model the speed of greedy decoding behind the context `tokens` [1, T], after its `first_tokens`: of the
    median turn, of the fastest, and how fast the host was between the turns."""
    with torch.autocast(device, torch.bfloat16), ExitStack() as cast:
        for model in models.values():
            cast.enter_context(cast_once(model, device))
        streams, clock = {}, Clock(device)
        for name, model in models.items():
            state, logits = read(model, tokens, model.new_state(1, stores[name]), segment)
            first = first_tokens(model)
            streams[name] = generate(model, state, logits, Sampling(first + rounds * turn, temperature=0))
            for _ in islice(streams[name], first):
                pass
        laps: dict[str, list[float]] = {name: [] for name in models}
        turns: dict[str, list[float]] = {name: [] for name in models}
        host: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds):
            for name, stream in streams.items():
                clock.start()
                each = [clock.lap(wait=False) for _ in islice(stream, turn)]
                turns[name].append(sum(each) + clock.lap())
                host[name].append(host_ms())
                laps[name] += each
    return {
        name: {
            "decode_tokens_per_s": turn / statistics.median(turns[name]),
            "fastest_tokens_per_s": turn / min(turns[name]),
            "host_ms": statistics.median(host[name]),
            "token_ms": 1e3 * statistics.median(laps[name]),
            "slowest_token_ms": 1e3 * max(laps[name]),
        }
        for name in models
    }


def first_tokens(model: CausalLM) -> int:
    """Some two chunks, in which CUDA graphs are captured."""
    return 2 * (model.chunk_size or 0) + 8
