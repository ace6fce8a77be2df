"""Callbacks: evaluation beyond the training length, growing rows, predictions, memory."""

from gca_lit.callbacks.length_generalization import LengthGeneralization
from gca_lit.callbacks.length_growth import LengthGrowth
from gca_lit.callbacks.memory_report import MemoryReport
from gca_lit.callbacks.predictions import PredictionWriter

__all__ = ["LengthGeneralization", "LengthGrowth", "MemoryReport", "PredictionWriter"]
