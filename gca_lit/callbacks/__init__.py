"""Callbacks: evaluation beyond the training length, growing rows, predictions, memory, and what keeps a run whole."""

from gca_lit.callbacks.begun import Begun
from gca_lit.callbacks.checkpoints import Checkpoints
from gca_lit.callbacks.compile_report import CompileReport
from gca_lit.callbacks.exact_resume import ExactResume
from gca_lit.callbacks.graceful_stop import GracefulStop
from gca_lit.callbacks.length_generalization import LengthGeneralization
from gca_lit.callbacks.length_growth import LengthGrowth
from gca_lit.callbacks.memory_report import MemoryReport
from gca_lit.callbacks.predictions import PredictionWriter
from gca_lit.callbacks.retrieval_probe import RetrievalProbe
from gca_lit.callbacks.retrieval_trace import RetrievalTrace
from gca_lit.callbacks.rouge import Rouge
from gca_lit.callbacks.samples import Samples
from gca_lit.callbacks.skip_non_finite import SkipNonFinite
from gca_lit.callbacks.throughput import Throughput

__all__ = [
    "Begun",
    "Checkpoints",
    "CompileReport",
    "ExactResume",
    "GracefulStop",
    "LengthGeneralization",
    "LengthGrowth",
    "MemoryReport",
    "PredictionWriter",
    "RetrievalProbe",
    "RetrievalTrace",
    "Rouge",
    "Samples",
    "SkipNonFinite",
    "Throughput",
]
