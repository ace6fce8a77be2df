"""Every store gives back the bytes that were written, whatever the slabs held before and however late copies are."""

import threading
import time

import pytest
import torch

from gca_kernels.gather import RowGather
from gca_lit.memory import (
    ChunkMemory,
    ChunkTable,
    DeviceStore,
    DiskStore,
    HostStore,
    Selection,
    chunk_memory,
)
from gca_lit.memory.reader import unpack
from gca_lit.memory.slabs import ChunkSlabs

STORES = [DeviceStore, HostStore, DiskStore]
GATHERS = ["auto", "staged", "direct"]


class LateCopies:
    """Copies that run in a thread, some time after they were asked for."""

    def __init__(self):
        self.threads = []

    def run(self, copy, source):
        def late(before):
            for thread in before:
                thread.join()
            time.sleep(0.02)
            copy()

        self.threads.append(threading.Thread(target=late, args=(list(self.threads),)))
        self.threads[-1].start()

    def wait(self):
        for thread in self.threads:
            thread.join()
        self.threads = []


@pytest.fixture(autouse=True)
def slabs_begin_as_nan(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def chunks(B, n, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, n, 3, 2, 4, generator=g).to(dtype) for _ in range(2))


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("late", [False, True])
def test_read_gives_the_bytes_written(make, dtype, late):
    store = make()
    if late and isinstance(store, HostStore):
        store._copies = LateCopies()
    for episode in range(2):
        store.reset()
        parts = [chunks(2, n, 10 * episode + n, dtype) for n in (1, 4, 0, 7)]
        for k, v in parts:
            store.write(k, v)
        k, v = (torch.cat(all_parts, 1) for all_parts in zip(*parts, strict=True))
        ids = torch.tensor([[0, 11, 3, 3], [5, 1, 0, 10]])
        read_k, read_v = store.read(ids)
        batch = torch.arange(2)[:, None]
        assert torch.equal(read_k, k[batch, ids]) and torch.equal(read_v, v[batch, ids])
    store.close()


def test_many_slabs_hold_as_many_as_fit():
    k, v = chunks(2, 50, 0)
    slabs = ChunkSlabs(k, torch.device("cpu"), slab_bytes=7 * 2 * 3 * 2 * 4 * 4)
    assert slabs.rows_per_slab == 7
    slabs.append(slabs.pack(k, v))
    assert len(slabs.slabs) == 15 and slabs.nbytes() == 15 * 7 * 2 * 3 * 2 * 4 * 4
    ids = torch.tensor([[49, 0, 17], [3, 3, 48]])
    read_k, read_v = unpack(slabs.gather(ids), ids, slabs.shape)
    batch = torch.arange(2)[:, None]
    assert torch.equal(read_k, k[batch, ids]) and torch.equal(read_v, v[batch, ids])


@pytest.mark.parametrize("make", STORES)
def test_reset_keeps_the_slabs_and_close_frees_them(make):
    store = make(slab_mib=1)
    store.write(*chunks(2, 4, 0))
    held = sum(store.bytes().values())
    assert held > 0
    store.reset()
    assert sum(store.bytes().values()) == held
    store.write(*chunks(3, 4, 0))
    assert torch.equal(store.read(torch.zeros(3, 1, dtype=torch.long))[0], chunks(3, 4, 0)[0][:, :1])
    store.close()
    assert sum(store.bytes().values()) == 0


@pytest.mark.parametrize("make", STORES)
def test_misuse_is_named(make):
    with pytest.raises(ValueError, match="slab_mib"):
        make(slab_mib=0)
    store = make()
    with pytest.raises(RuntimeError, match="nothing has been written"):
        store.read(torch.zeros(1, 1, dtype=torch.long))
    store.write(*chunks(2, 4, 0))
    with pytest.raises(ValueError, match="another batch size"):
        store.write(*chunks(1, 4, 0))
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        store.read(torch.tensor([[4], [0]]))


@pytest.mark.parametrize("make", STORES)
def test_table_holds_each_old_chunk_once_and_all_own_ones(make):
    memory = ChunkMemory(make())
    old_k, old_v = chunks(2, 9, 0)
    own_k, own_v = chunks(2, 3, 1)
    memory.append(torch.zeros(2, 9, 5), ChunkTable(old_k, old_v))
    ids = torch.tensor([[[7, 2, -1], [2, 9, 11]], [[-1, -1, -1], [10, 4, 4]]])
    table, slots = memory.table(Selection(ids, torch.zeros(2, 2, 3)), ChunkTable(own_k, own_v))
    assert table.k.shape[1] == 2 + 3
    every_k = torch.cat((old_k, own_k), 1)
    for b in range(2):
        for place in ids[b].flatten().nonzero().flatten().tolist():
            chunk, slot = int(ids[b].flatten()[place]), int(slots.ids[b].flatten()[place])
            assert (slot == -1) == (chunk == -1)
            if chunk >= 0:
                assert torch.equal(table.k[b, slot], every_k[b, chunk])


def test_table_without_old_chunks_is_the_own_one():
    memory = ChunkMemory(HostStore())
    own = ChunkTable(*chunks(2, 3, 1))
    ids = torch.tensor([[[0, 2, -1]], [[1, 1, -1]]])
    table, slots = memory.table(Selection(ids, torch.zeros(2, 1, 3)), own)
    assert table is own and torch.equal(slots.ids, ids)


@pytest.mark.parametrize("fewest, most", [(1, 4), (2, 6), (256, 1000)])
def test_landmarks_grow_in_place_and_are_counted(monkeypatch, fewest, most):
    monkeypatch.setattr(chunk_memory, "FEWEST", fewest)
    monkeypatch.setattr(chunk_memory, "MOST", most)
    memory = ChunkMemory(HostStore())
    parts = [torch.randn(2, n, 5) for n in (3, 0, 4, 9, 1, 1)]
    addresses = []
    for n, part in enumerate(parts):
        memory.append(part, ChunkTable(*chunks(2, part.shape[1], 1)))
        assert torch.equal(torch.cat(memory.landmarks(), 1), torch.cat(parts[: n + 1], 1))
        now = [block.data_ptr() for block in memory.landmarks()]
        assert now[: len(addresses)] == addresses  # none was copied
        addresses = now
    assert memory.count == 18
    held = memory.bytes()["device"] / (2 * 5 * 4)
    assert 18 <= held <= max(18 + most, fewest) and memory.bytes()["host"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="slabs of plain memory need the interpreter")
def test_a_direct_read_gives_the_bytes_written():
    store = HostStore()
    store._slab_bytes = 1000
    store.write(*chunks(2, 1, 0))
    store._direct = RowGather(store._slabs.slabs, torch.device("cpu"))
    store.write(*chunks(2, 30, 1))
    assert len(store._slabs.slabs) > 2
    k, v = (torch.cat(both, 1) for both in zip(chunks(2, 1, 0), chunks(2, 30, 1), strict=True))
    ids = torch.tensor([[0, 30, 3, 3], [5, 1, 0, 29]])
    batch = torch.arange(2)[:, None]
    read_k, read_v = store.read(ids)
    assert torch.equal(read_k, k[batch, ids]) and torch.equal(read_v, v[batch, ids])
    with pytest.raises(IndexError, match=r"\[0, 31\)"):
        store.read(torch.tensor([[31], [0]]))


def test_a_gather_that_cannot_be_is_named():
    with pytest.raises(ValueError, match='gather must be "auto"'):
        HostStore(gather="kernel")
    store = HostStore(gather="direct")
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        store.write(*chunks(2, 4, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("gather", GATHERS)
def test_episodes_follow_each_other_without_mixing(gather):
    store, device_store = HostStore(slab_mib=1, gather=gather), DeviceStore()
    for episode in range(3):
        store.reset()
        device_store.reset()
        for seed in range(4):
            k, v = (x.cuda() for x in chunks(2, 3000, 10 * episode + seed, torch.bfloat16))
            torch.cuda._sleep(10_000_000)  # the writes are still under way when the read is asked for
            store.write(k, v)
            device_store.write(k, v)
            ids = torch.randint(0, 3000 * (seed + 1), (2, 700), device="cuda")
            for read, expected in zip(store.read(ids), device_store.read(ids), strict=True):
                assert torch.equal(read, expected)
    store.close()


@pytest.mark.gpu
def test_a_direct_read_keeps_nobody_waiting_and_is_not_overwritten():
    store = HostStore(gather="direct")
    first, second = ([x.cuda() for x in chunks(2, 3000, seed)] for seed in range(2))
    ids = torch.randint(0, 3000, (2, 700), device="cuda")
    batch = torch.arange(2, device="cuda")[:, None]
    store.write(*first)
    store.read(ids)  # compiles the kernel
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    read = store.read(ids)
    assert not torch.cuda.current_stream().query()
    store._slabs.reset()  # `store.reset` would wait
    store.write(*second)
    assert not torch.cuda.current_stream().query()
    assert all(torch.equal(got, written[batch, ids]) for got, written in zip(read, first, strict=True))
    assert all(torch.equal(got, written[batch, ids]) for got, written in zip(store.read(ids), second, strict=True))
    store.close()


@pytest.mark.gpu
def test_writes_that_wait_hold_two_segments_on_the_device_at_most():
    store = HostStore()
    k, v = (x.cuda() for x in chunks(2, 3000, 0))
    store.write(k, v)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    for _ in range(8):
        torch.cuda._sleep(50_000_000)
        store.write(k, v)
    assert torch.cuda.max_memory_allocated() - held <= 2.5 * (k.nbytes + v.nbytes)
    store.close()


@pytest.mark.gpu
@pytest.mark.parametrize("gather", GATHERS)
def test_chunk_numbers_on_the_host_are_checked(gather):
    store = HostStore(gather=gather)
    store.write(*(x.cuda() for x in chunks(2, 4, 0)))
    assert store.read(torch.tensor([[3], [0]]))[0].is_cuda
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        store.read(torch.tensor([[4], [0]]))


@pytest.mark.gpu
@pytest.mark.parametrize("make", STORES)
def test_a_cuda_device_reads_the_bytes_it_wrote(make):
    store = make(slab_mib=1)
    parts = [[x.cuda() for x in chunks(2, 2000, seed, torch.bfloat16)] for seed in range(6)]
    for k, v in parts:
        store.write(k, v)
        k.mul_(1)  # the device goes on while copies are under way
    k, v = (torch.cat(all_parts, 1) for all_parts in zip(*parts, strict=True))
    ids = torch.randint(0, 12_000, (2, 500), device="cuda")
    batch = torch.arange(2, device="cuda")[:, None]
    read_k, read_v = store.read(ids)
    assert read_k.is_cuda and torch.equal(read_k, k[batch, ids]) and torch.equal(read_v, v[batch, ids])
    assert sum(store.bytes().values()) >= k.nbytes + v.nbytes
