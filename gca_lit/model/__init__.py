"""The network: decoder, chunks, retrieval, state and loss."""

from gca_lit.model.cast import cast_once
from gca_lit.model.decoder import Decoder, DecoderConfig, Read, Step
from gca_lit.model.loss import IGNORE, RowLoss, chunked_cross_entropy, cross_entropy
from gca_lit.model.state import ModelState

__all__ = [
    "IGNORE",
    "Decoder",
    "DecoderConfig",
    "ModelState",
    "Read",
    "RowLoss",
    "Step",
    "cast_once",
    "chunked_cross_entropy",
    "cross_entropy",
]
