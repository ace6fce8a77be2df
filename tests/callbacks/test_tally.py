"""Counts of a point, over episodes and over ranks; and whether a length fits."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gca_lit.callbacks.budget import free_host_bytes, shortage
from gca_lit.callbacks.tally import Tally
from gca_lit.memory import DeviceStore, DiskStore, HostStore
from gca_lit.scoring import Retrieved, Score
from gca_lit.tasks.base import Episode
from gca_lit.units import GIB
from tests.callbacks.counting_fakes import FakeModule

EPISODE = Episode(torch.zeros(90), torch.zeros(90), ((23, 27),), asked=65, answer=(81, 84), depth=0.3, distance=54)


def score(hits: list[list[bool]], chunk: int = 2) -> Score:
    """Rows of three scored tokens; chunks of 10; chunk 7 is served by the selection of `chunk`."""
    B = len(hits)
    rows, positions = torch.arange(B).repeat_interleave(3), torch.arange(80, 83).repeat(B)
    correct = torch.tensor(hits).flatten()
    found = Retrieved(7, ((torch.full((B, 1, 1), chunk), torch.ones(B, 1, 1)),))
    held = {"device": 1, "host": 10, "disk": 0}
    return Score(rows, positions, 2 * torch.ones(3 * B), positions, correct, (found,), 90 * B, 0.5, held)


def test_counts():
    tally = Tally()
    tally.add(score([[True, True, True], [True, False, False]]), [EPISODE] * 2, chunk_size=10)
    tally.add(score([[False, True, True]], chunk=3), [EPISODE], chunk_size=10)
    counts = tally.answers()
    assert (counts["n"], counts["correct"], counts["first_hits"], counts["last_hits"]) == (3, 1, 2, 2)
    assert counts["recall_at_1"] == counts["recall_at_k"] == pytest.approx(2 / 3)
    assert tally.measured()["tokens_per_second"] == 270 and tally.measured()["host_bytes"] == 10
    assert tally.perplexity(90)["perplexity"] == pytest.approx(math.exp(2))
    assert tally.perplexity(90)["position_buckets"] is None  # only the answers were scored


def test_ranks_are_joined():
    ours, theirs = Tally(), Tally()
    ours.add(score([[True, True, True]]), [EPISODE], chunk_size=10)
    theirs.add(score([[False, True, True]] * 2), [EPISODE] * 2, chunk_size=10)
    sent: list[torch.Tensor] = []
    theirs.reduce(lambda tensor, op: sent.append(tensor) or tensor)
    other = iter(sent)
    ours.reduce(lambda tensor, op: tensor + next(other) if op == "sum" else tensor.maximum(next(other)))
    assert (ours.answers()["n"], ours.answers()["correct"], ours.answers()["last_hits"]) == (3, 1, 3)
    assert ours.measured()["tokens_per_second"] == 540 and ours.measured()["state_bytes"] == 1


def test_what_does_not_fit(tmp_path: Path):
    remedy = "; --model.store DiskStore needs less"

    def asks(length: int, store: object, host: int | None, ranks: int = 1) -> str | None:
        network = SimpleNamespace(max_length=None, kv_bytes=FakeModule().kv_bytes)
        return shortage(network, length, 2, store, torch.device("cpu"), host, ranks)

    assert asks(1024, HostStore(), 2 * GIB) is None and asks(1 << 30, HostStore(), None) is None
    assert asks(1024, HostStore(), 3 * GIB, ranks=2) == "needs 4.0 GiB of host memory, has 3.0 GiB" + remedy
    assert asks(1024, DeviceStore(), GIB) == "needs 2.0 GiB of host memory, has 1.0 GiB"  # on a CPU, its device
    assert asks(1024, HostStore(), GIB, ranks=2) == "needs 4.0 GiB of host memory, has 1.0 GiB" + remedy
    small = DiskStore(host_mib=1024, directory=str(tmp_path))
    assert asks(1024, small, 2 * GIB) is None
    assert asks(1024, small, 2 * GIB, ranks=3) == "needs 3.0 GiB of host memory, has 2.0 GiB"
    refused = asks(1 << 40, small, 2 * GIB)
    assert refused is not None and f"GiB of disk, {tmp_path} has " in refused
    assert (free_host_bytes() or 1) > 0


def test_no_store_helps_where_what_lies_beside_it_does_not_fit() -> None:
    network = SimpleNamespace(max_length=None, kv_bytes=lambda length, batch: {"store": GIB, "state": 3 * GIB})
    cpu = torch.device("cpu")
    assert shortage(network, 1, 1, HostStore(), cpu, 2 * GIB) == "needs 4.0 GiB of host memory, has 2.0 GiB"
    assert "DiskStore" in (shortage(network, 1, 1, HostStore(), cpu, 3 * GIB) or "")
