"""How a command line ends: with one line on stderr and an exit code where that says all, else with a traceback."""

from __future__ import annotations

import sys
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gca_lit.arguments import line
from gca_lit.callbacks.skip_non_finite import NonFiniteError
from gca_lit.data.stream import dead_worker
from gca_lit.usage import UsageError
from gca_lit.whole_file import NotSaved

TRACEBACK = "GCA_LIT_TRACEBACK"
"""The environment variable that asks for the traceback in any case."""
MISTAKES = (UsageError, ValueError, OSError, ImportError, MisconfigurationException)
"""What a person can mend before the first batch: answered with one line."""


def lost(error: BaseException | None) -> str | None:
    """What to say of a full disk, a dead data-loader worker or losses that are not finite, None for other errors.

    The death of a worker is raised wherever training is, and code there may make it an error of its own.
    """
    while error is not None:
        if isinstance(error, NotSaved | NonFiniteError):
            return str(error)
        if isinstance(error, RuntimeError) and (death := dead_worker(error)):
            return death
        error = error.__cause__ or error.__context__
    return None


def end(message: str, code: int, error: Exception) -> NoReturn:
    """Say `message` in one line and leave with exit code `code`; raises SystemExit."""
    sys.stderr.write(line(message))
    raise SystemExit(code) from error
