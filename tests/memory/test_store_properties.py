"""Whatever is written, read and forgotten in whatever order: every store holds what a plain tensor would."""

import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gca_lit.memory import DeviceStore, DiskStore, HostStore

SHAPE = (5, 2, 4)  # rows, heads and head width of a chunk
STORES = {
    "device": lambda folder: DeviceStore(slab_mib=1),
    "host": lambda folder: HostStore(slab_mib=1),
    "disk": lambda folder: DiskStore(host_mib=2, slab_mib=1, directory=folder),
}
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40), st.integers(0, 99)),
        st.tuples(st.just("read"), st.integers(1, 20), st.integers(0, 99)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", STORES)
@given(batch=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.bfloat16]), steps=steps)
@settings(max_examples=40, deadline=None)
def test_a_store_is_a_tensor(kind, batch, dtype, steps):
    with tempfile.TemporaryDirectory() as folder:
        store = STORES[kind](folder)
        store._slab_bytes = 1000  # a few chunks a slab
        if kind == "disk":
            store.host_bytes = 2000
        kept = torch.empty(2, batch, 0, *SHAPE, dtype=dtype)
        for what, count, seed in steps:
            g = torch.Generator().manual_seed(seed)
            if what == "write":
                new = torch.randn(2, batch, count, *SHAPE, generator=g).to(dtype)
                store.write(*new)
                kept = torch.cat((kept, new), 2)
            elif what == "read" and kept.shape[2]:
                ids = torch.randint(0, kept.shape[2], (batch, count), generator=g)
                rows = torch.arange(batch)[:, None]
                assert all(torch.equal(got, part[rows, ids]) for got, part in zip(store.read(ids), kept, strict=True))
            elif what == "reset":
                store.reset()
                kept = kept[:, :, :0]
        if kind == "disk" and kept.shape[2] > 60:
            assert store.bytes()["disk"] > 0 and store.bytes()["host"] <= 2 * 1000
        store.close()
