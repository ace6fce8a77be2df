"""Twenty training steps give the losses that are written down; a change that should not change numbers changes none.

GCA_LIT_WRITE_GOLDEN=1 writes them anew.
"""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.mixture import Mixture
from gca_lit.data.prepare import prepare
from gca_lit.model import DecoderConfig
from gca_lit.module import CausalLM
from gca_lit.schedule import Schedule
from gca_lit.tasks import MultiKey, SingleNeedle

GOLDEN = Path(__file__).parent / "golden"
SAMPLE = Path(__file__).parent.parent / "data" / "samples" / "stories_from_the_odyssey.txt"
BACKENDS = {
    "gca": GroupedCrossAttention(chunk_size=16, window=34, top_k=3, groups=2, lower_layers=2, encoder_layers=1),
    "sliding_window": SlidingWindow(34),
    "full": FullAttention(),
}


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden")
    text = path / "text.txt"
    text.write_bytes(SAMPLE.read_bytes()[:60_000])
    prepare([str(text)], str(path / "shards"))
    return str(path / "shards")


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_twenty_steps(backend, shards, tmp_path):
    seed_everything(3, verbose=False)
    config = DecoderConfig(width=32, heads=4, kv_heads=2, layers=4, mlp_width=48, qk_norm=True)
    model = CausalLM(BACKENDS[backend], 257, config, partial(torch.optim.AdamW, lr=3e-3), Schedule(warmup_steps=5))
    data = ArrowDataModule(
        shards,
        shards,
        train_length=256,
        batch_size=2,
        align=16,
        tasks=[SingleNeedle(), MultiKey(keys=2)],
        mixture=Mixture(text=0.4, loss="all"),
        stages=[(0, 128), (8, 256)],
        seed=5,
    )
    kept = Losses()
    trainer = Trainer(
        max_steps=20,
        precision="64-true",
        accelerator="cpu",
        callbacks=[kept],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    path = GOLDEN / f"losses_{backend}.txt"
    if os.environ.get("GCA_LIT_WRITE_GOLDEN"):
        path.write_text("".join(f"{loss!r}\n" for loss in kept.losses))
    expected = [float(line) for line in path.read_text().splitlines()]
    assert kept.losses == pytest.approx(expected, rel=1e-7)
    assert len(expected) == 20 and expected[-1] < expected[0]
