"""Slabs made ahead: half as many as are in use, few at most, none beyond a budget, and the same bytes."""

import threading
from concurrent.futures import CancelledError, wait

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
        self._ahead = MadeAhead(maker, self.most_ahead, most)

    monkeypatch.setattr(ChunkSlabs, "__init__", made_ahead)


def chunks(n, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, n, 64, 2, 32, generator=g).bfloat16() for _ in range(2))


def test_the_first_two_are_made_at_once_and_later_ones_by_the_thread(maker):
    source, here = MadeAhead(maker, ahead=3), threading.current_thread()
    taken = []
    for waiting in (0, 1, 1, 2, 2, 3, 3, 3, 3):
        taken.append(source.take())
        assert source.waiting == waiting and len({id(one) for one in taken}) == len(taken)
    wait(source._ready)
    assert len(maker.made) == 12 and all(one is made for one, made in zip(taken, maker.made, strict=False))
    source.close()
    assert source.waiting == 0
    assert [thread is here for thread in maker.threads] == [True, True, *[False] * 10]
    assert not maker.threads[-1].is_alive()


@pytest.mark.parametrize("most", range(1, 8))
def test_no_more_are_made_than_will_be_taken(maker, most):
    source = MadeAhead(maker, ahead=8, most=most)
    for taken in range(1, most + 1):
        source.take()
        assert source.waiting == min(taken // 2, most - taken)
    source.close()
    assert len(maker.made) == most


def test_what_the_thread_raises_reaches_the_one_who_would_have_got_it(maker):
    source = MadeAhead(maker, ahead=8)
    for _ in range(6):
        source.take()
    wait(source._ready)
    maker.error = RuntimeError("no memory can be page-locked")
    assert source.take() is maker.made[6] and source.take() is maker.made[7]  # these ask for three more
    wait(source._ready)
    maker.error = None
    assert source.take() is maker.made[8]
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no memory can be page-locked"):
            source.take()
    assert [source.take(), source.take()] == maker.made[9:11]
    source.close()


def test_closing_waits_for_no_more_than_the_one_being_made(maker):
    source, begun, go_on = MadeAhead(maker, ahead=8), threading.Event(), threading.Event()
    for _ in range(10):
        source.take()
    wait(source._ready)

    def slow():
        begun.set()
        assert go_on.wait(60)
        return maker()

    source._make = slow
    for _ in range(4):
        source.take()
    assert source.waiting == 7 and begun.wait(60)
    last, closing = source._ready[-1], threading.Thread(target=source.close)
    closing.start()
    with pytest.raises(CancelledError):
        last.result(60)
    go_on.set()
    closing.join(60)
    assert not closing.is_alive() and source.waiting == 0 and len(maker.made) == 16


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
        made = slabs + slabs // 2
        assert len(store._slabs.slabs) == slabs and store.bytes()["host"] == made * SLAB
    wait(store._slabs._ahead._ready)
    store.close()
    assert len(maker.made) == made and store.bytes()["host"] == 0


@pytest.mark.parametrize(("slab_mib", "ahead"), [(64, 8), (256, 2), (1024, 1)])
def test_what_is_ahead_is_bounded_in_bytes(slab_mib, ahead):
    like = torch.empty(1, 1, 64, 2, 32, dtype=torch.bfloat16)
    assert ChunkSlabs(like, torch.device("cpu"), slab_mib << 20).most_ahead == ahead


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
