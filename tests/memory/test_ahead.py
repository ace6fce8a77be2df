"""Slabs made ahead: never more than one, none beyond a budget, and the same bytes."""

import threading

import pytest
import torch

from gca_lit.memory import DiskStore, HostStore
from gca_lit.memory.ahead import MadeAhead
from gca_lit.memory.slabs import ChunkSlabs

SLAB = 1 << 20
ROW = 2 * 64 * 2 * 32 * 2  # bytes of K and V of one chunk


class Maker:
    """Stands in for page-locked memory, of which a CPU has none."""

    def __init__(self):
        self.made, self.threads, self.error = [], [], None

    def __call__(self):
        if self.error is not None:
            raise self.error
        self.threads.append(threading.current_thread())
        self.made.append(torch.full((SLAB // ROW, ROW // 2), float("nan"), dtype=torch.bfloat16))
        return self.made[-1]


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def as_if_pinned(monkeypatch, maker):
    """Stores get their slabs as they do on a CUDA device."""
    init = ChunkSlabs.__init__

    def made_ahead(self, like, device, slab_bytes, pin=False, most=None):
        init(self, like, device, slab_bytes, pin, most)
        self._ahead = MadeAhead(maker, most)

    monkeypatch.setattr(ChunkSlabs, "__init__", made_ahead)


def chunks(n, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, n, 64, 2, 32, generator=g).bfloat16() for _ in range(2))


def test_the_first_two_are_made_at_once_and_later_ones_by_the_thread(maker):
    source, here = MadeAhead(maker), threading.current_thread()
    taken = [source.take()]
    assert source.waiting == 0 and len(maker.made) == 1
    for count in (2, 3, 4):
        taken.append(source.take())
        assert source.waiting == 1 and len({id(one) for one in taken}) == count
    source.close()
    assert len(maker.made) == 5 and source.waiting == 0
    assert [thread is here for thread in maker.threads] == [True, True, False, False, False]
    assert not maker.threads[-1].is_alive()


def test_no_more_are_made_than_will_be_taken(maker):
    source = MadeAhead(maker, most=3)
    for waiting in (0, 1, 0):
        source.take()
        assert source.waiting == waiting
    source.close()
    assert len(maker.made) == 3


def test_what_the_thread_raises_reaches_the_one_who_takes(maker):
    source = MadeAhead(maker)
    source.take(), source.take()
    source._next.result()
    maker.error = RuntimeError("no memory can be page-locked")
    assert source.take() is maker.made[2]  # made before
    with pytest.raises(RuntimeError, match="no memory can be page-locked"):
        source.take()
    maker.error = None
    assert source.take() is maker.made[3]
    source.close()


@pytest.mark.usefixtures("as_if_pinned")
def test_a_store_gives_back_the_bytes_and_counts_what_it_holds(maker):
    store = HostStore(slab_mib=1)
    for episode in range(2):
        store.reset()
        k, v = chunks(300, episode)
        for part in range(0, 300, 50):
            store.write(k[:, part : part + 50], v[:, part : part + 50])
        ids = torch.randperm(300)[None]
        read_k, read_v = store.read(ids)
        assert torch.equal(read_k, k[:, ids[0]]) and torch.equal(read_v, v[:, ids[0]])
        slabs = -(-300 // (SLAB // ROW))
        assert len(store._slabs.slabs) == slabs and store.bytes()["host"] == (slabs + 1) * SLAB
    store.close()
    assert len(maker.made) == slabs + 1 and store.bytes()["host"] == 0


@pytest.mark.usefixtures("as_if_pinned")
def test_the_budget_of_a_disk_store_holds(tmp_path, maker):
    store = DiskStore(host_mib=4, slab_mib=1, directory=str(tmp_path))
    for _ in range(2):
        store.reset()
        for part in range(12):
            store.write(*chunks(50, part))
            assert store.bytes()["host"] <= 4 << 20
        read_k, _ = store.read(torch.tensor([[3, 599]]))
        assert torch.equal(read_k, torch.cat((chunks(50, 0)[0][:, 3:4], chunks(50, 11)[0][:, -1:]), 1))
    store.close()
    assert len(maker.made) == 4
