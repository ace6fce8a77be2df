"""Evaluation tasks and their dense training rows."""

from gca_lit.tasks.base import Encode, Episode, Haystack, Task
from gca_lit.tasks.hops import MultiHop, VariableTracking
from gca_lit.tasks.metrics import wilson
from gca_lit.tasks.needles import MultiKey, MultiQuery
from gca_lit.tasks.passkey import SingleNeedle
from gca_lit.tasks.perplexity import Perplexity
from gca_lit.tasks.recitation import Recitation

__all__ = [
    "Encode",
    "Episode",
    "Haystack",
    "MultiHop",
    "MultiKey",
    "MultiQuery",
    "Perplexity",
    "Recitation",
    "SingleNeedle",
    "Task",
    "VariableTracking",
    "wilson",
]
