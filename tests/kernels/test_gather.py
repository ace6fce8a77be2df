"""The row gather gives the bytes of index_select, for every dtype, width and number of slabs."""

import pytest
import torch

from gca_kernels.gather import RowGather

INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="slabs of plain memory need the interpreter")


def random_slabs(count, rows, width, dtype, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randint(0, 256, (rows, width * dtype.itemsize), generator=g, dtype=torch.uint8) for _ in range(count)
    ]
    return [torch.empty(rows, width, dtype=dtype, **kwargs).copy_(x.view(dtype)) for x in drawn]


def same_bytes(a, b):
    return a.dtype == b.dtype and torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize(("count", "rows", "width"), [(3, 4, 7), (1, 2, 64), (5, 1, 33), (3, 7, 33), (2, 8, 5001)])
def test_equals_index_select(dtype, count, rows, width):
    slabs = random_slabs(count, rows, width, dtype)
    picked = torch.randint(0, count * rows, (11,), generator=torch.Generator().manual_seed(1))
    out = RowGather(slabs, torch.device("cpu"))(picked)
    assert same_bytes(out, torch.cat(slabs)[picked])


@INTERPRETED
def test_repeated_strided_and_no_rows():
    slabs = random_slabs(2, 4, 6, torch.float32)
    gather = RowGather(slabs, torch.device("cpu"))
    rows = torch.tensor([7, 1, 7, 2, 7, 3])
    assert same_bytes(gather(rows), torch.cat(slabs)[rows])
    assert same_bytes(gather(rows[::2]), torch.cat(slabs)[[7, 7, 7]])
    assert gather(rows[:0]).shape == (0, 6)


@INTERPRETED
@pytest.mark.parametrize("width", [6, 66, 10_002])
def test_parts_of_rows_come_one_behind_the_other(width):
    slabs = random_slabs(2, 4, width, torch.float16)
    rows = torch.tensor([7, 1, 7, 2, 3])
    for parts in (1, 2, 3):
        expected = torch.cat(slabs)[rows].unflatten(1, (parts, -1)).transpose(0, 1)
        found = RowGather(slabs, torch.device("cpu")).now().gather(rows, parts)
        assert same_bytes(found, expected if parts > 1 else expected[0])
    for parts in (0, 4):
        with pytest.raises(ValueError, match=f"parts must divide the width of a row, {width}, got {parts}"):
            RowGather(slabs, torch.device("cpu")).now().gather(rows, parts)


@INTERPRETED
def test_the_slabs_may_grow():
    slabs = random_slabs(1, 4, 6, torch.float32)
    gather = RowGather(slabs, torch.device("cpu"))
    for seed in range(1, 4):
        rows = torch.arange(4 * len(slabs)).flip(0)
        assert same_bytes(gather(rows), torch.cat(slabs)[rows])
        slabs += random_slabs(seed, 4, 6, torch.float32, seed)


@INTERPRETED
@pytest.mark.parametrize(
    ("slabs", "rows", "message"),
    [
        ([], torch.tensor([0]), "slabs is empty"),
        ([torch.zeros(0, 8)], torch.tensor([0]), "at least one row"),
        ([torch.zeros(4, 8), torch.zeros(2, 8)], torch.tensor([0]), "alike"),
        ([torch.zeros(4, 8), torch.zeros(4, 8).half()], torch.tensor([0]), "alike"),
        ([torch.zeros(8, 4).T], torch.tensor([0]), "contiguous"),
        ([torch.zeros(33)[1:].view(4, 8)], torch.tensor([0]), "multiple of 16"),
        ([torch.zeros(4, 8, device="meta")], torch.tensor([0]), "pinned"),
        ([torch.zeros(4, 8)], torch.tensor([0], dtype=torch.int32), "rows must be int64"),
        ([torch.zeros(4, 8)], torch.tensor([[0]]), "rows must be int64"),
    ],
)
def test_errors_name_the_argument(slabs, rows, message):
    with pytest.raises(ValueError, match=message):
        RowGather(slabs, torch.device("cpu"))(rows)


def test_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="device must be a CUDA device"):
        RowGather([torch.zeros(4, 8)], torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("memory", [{"pin_memory": True}, {"device": "cuda"}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("width", [63 * 2 * 64, 4096 + 7, 1])
def test_a_gpu_reads_pinned_memory(memory, dtype, width):
    slabs = random_slabs(3, 16, width, dtype, **memory)
    gather = RowGather(slabs, torch.device("cuda"))
    rows = torch.randint(0, 48, (200,), device="cuda")
    assert same_bytes(gather(rows), torch.cat([slab.cpu() for slab in slabs])[rows.cpu()])
    slabs += random_slabs(2, 16, width, dtype, 1, **memory)
    rows = torch.arange(80, device="cuda").flip(0)
    assert same_bytes(gather(rows), torch.cat([slab.cpu() for slab in slabs])[rows.cpu()])


@pytest.mark.gpu
def test_a_gpu_refuses_plain_host_memory():
    with pytest.raises(ValueError, match="pinned"):
        RowGather([torch.zeros(4, 8)], torch.device("cuda"))(torch.zeros(1, dtype=torch.int64, device="cuda"))
