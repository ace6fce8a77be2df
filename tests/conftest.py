"""What all tests share: few threads, the interpreter for kernels where there is no GPU, and a tiny data set."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the byte shards `train` and `val`, two documents of some thousand letters each."""
    from gca_lit.data.shards import ShardWriter
    from gca_lit.data.tokenizers import ByteTokenizer

    folder = tmp_path_factory.mktemp("shards")
    random = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        with ShardWriter(folder / split, ByteTokenizer()) as writer:
            for _ in range(2):
                letters = torch.randint(97, 123, (3000,), generator=random)
                writer.add([*letters.tolist(), ByteTokenizer.eos])
    return folder
