"""A DiskStore gives back what a DeviceStore does, holds little in host memory, and leaves nothing behind."""

import errno
import os

import pytest
import torch

from gca_lit.memory import DeviceStore, DiskStore

ROW = 2 * 64 * 2 * 32 * 2  # bytes of K and V of one chunk


@pytest.fixture
def store(tmp_path):
    store = DiskStore(host_mib=2, slab_mib=1, directory=str(tmp_path))
    yield store
    store.close()


def chunks(n, seed):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, n, 64, 2, 32, generator=g).bfloat16() for _ in range(2))


@pytest.mark.parametrize("segment", [7, 64, 200])
def test_the_same_bytes_whatever_lies_on_disk(store, segment):
    plain, g = DeviceStore(), torch.Generator().manual_seed(1)
    for episode in range(2):
        store.reset()
        plain.reset()
        written = 0
        while written < 600:
            part = chunks(segment, 100 * episode + written)
            store.write(*part)
            plain.write(*part)
            written += segment
            ids = torch.randint(0, written, (1, 50), generator=g)
            assert all(torch.equal(a, b) for a, b in zip(store.read(ids), plain.read(ids), strict=True))
        held = store.bytes()
        assert held["host"] <= 2 << 20 and held["host"] + held["disk"] >= written * ROW and held["disk"] > 5 << 20


def test_what_it_needs_is_what_it_takes(store):
    assert store.needs(1 << 20) == {"host": 1 << 20, "disk": 0}
    assert store.needs(100 << 20) == {"host": 2 << 20, "disk": 98 << 20}


def test_nothing_is_left_behind(store, tmp_path):
    store.write(*chunks(300, 0))
    assert store.bytes()["disk"] > 0 and list(tmp_path.iterdir()) == []
    store.reset()
    assert store.bytes()["disk"] == 0 and store.bytes()["host"] == 2 << 20
    store.close()
    assert sum(store.bytes().values()) == 0


def test_a_full_disk_is_named_and_the_store_can_go_on(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=f"could not be written to {tmp_path}.*No space left.*another directory"):
            for part in range(20):
                store.write(*chunks(50, part))
    store.reset()
    store.write(*chunks(300, 3))
    assert torch.equal(store.read(torch.tensor([[299, 0]]))[0], chunks(300, 3)[0][:, [299, 0]])


def test_settings_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="host_mib must be at least two slabs, 128 MiB, got 100"):
        DiskStore(host_mib=100)
    with pytest.raises(FileNotFoundError, match=r"directory .*nowhere does not exist: make it, or name another"):
        DiskStore(directory=str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is not a directory: name another"):
        DiskStore(directory=str(tmp_path / "file"))


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"directory {tmp_path} cannot be written: name another"):
        DiskStore(directory=str(tmp_path))
