"""Page-locked memory: all of it, as long as it is used. On a CPU a CUDA runtime that only takes notes stands in."""

from contextlib import nullcontext

import pytest
import torch

from gca_lit.memory.page_locked import page_locked

SHAPE = (37, 384)
DEVICE = torch.device("cuda", 0)


class Runtime:
    def __init__(self, error=0):
        self.error, self.locked = error, {}

    def cudaHostRegister(self, address, size, flags):
        if not self.error:
            self.locked[address] = size
        return self.error

    def cudaHostUnregister(self, address):
        del self.locked[address]
        return 0

    def cudaGetErrorString(self, error):
        return "out of memory"


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return made


def test_all_of_it_is_locked_as_long_as_anything_refers_to_it(runtime):
    made = page_locked(SHAPE, torch.bfloat16, DEVICE)
    assert made.shape == SHAPE and made.dtype == torch.bfloat16 and made.is_contiguous() and not made.any()
    assert runtime.locked == {made.data_ptr(): made.nbytes}
    part = made[3:5]
    part += 1
    del made
    assert runtime.locked and part.float().sum() == part.numel()
    del part
    assert not runtime.locked


def test_a_kernel_without_huge_pages_gives_small_ones(runtime, monkeypatch):
    from gca_lit.memory import page_locked as module

    def refuse(self, advice):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(module._Pages, "madvise", refuse, raising=False)
    made = page_locked(SHAPE, torch.float32, DEVICE)
    assert runtime.locked == {made.data_ptr(): made.nbytes}


def test_what_cannot_be_locked_is_an_error_and_is_given_back(runtime):
    runtime.error = 2
    with pytest.raises(MemoryError, match=r"28,416 bytes .* out of memory"):
        page_locked(SHAPE, torch.bfloat16, DEVICE)
    assert not runtime.locked


@pytest.mark.gpu
def test_a_device_takes_it_for_pinned_memory():
    made = page_locked((1 << 20,), torch.uint8, DEVICE)
    assert made.is_pinned()
    made.random_(255)
    there = made.to("cuda", non_blocking=True)
    back = page_locked((1 << 20,), torch.uint8, DEVICE)
    back.copy_(there, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(back, made)
