"""The shared contract: every backend in BACKENDS passes all tests of this folder. A new one adds a line."""

import torch

from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.model import Decoder, DecoderConfig


def gca(**settings):
    return GroupedCrossAttention(
        **{"chunk_size": 5, "window": 13, "top_k": 3, "lower_layers": 2, "encoder_layers": 1} | settings
    )


BACKENDS = {
    "gca": gca(),
    "gca of two groups": gca(groups=2, score="cosine", residual="add", softmax_offset=1.0),
    "gca own": gca(groups=2, landmark_reads="own", retrieval_width=8),
    "gca smeared": gca(smear_keys=True),
    "gca recency": gca(groups=2, recency=True),
    "sliding_window": SlidingWindow(7),
    "full": FullAttention(log_n_length=8),
}


def decoder(attention, dtype=torch.float64, **config):
    torch.manual_seed(1)
    config = {"width": 32, "heads": 4, "kv_heads": 2, "layers": 4, "mlp_width": 48, "init": "fan_in"} | config
    model = Decoder(DecoderConfig(**config), attention, 50).to(dtype).eval()
    for number, group in enumerate(getattr(model.upper, "groups", ())):
        if group.slope is not None:  # of 0, as at first, it would change nothing
            torch.nn.init.constant_(group.slope, 0.05 - 0.2 * number)
    return model


def tokens(T, B=2):
    return torch.randint(0, 50, (B, T), generator=torch.Generator().manual_seed(T))
