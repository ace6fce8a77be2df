"""How small commands take their arguments, and say in one line what is wrong."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Arguments(argparse.ArgumentParser):
    """A wrong command line ends with one line on stderr and exit code 2; `error` says what else is wrong like that."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(line(message))
        raise SystemExit(2)


def line(message: str) -> str:
    """The line on stderr with which a command ends."""
    return f"error: {' '.join(message.split())}\n"


def interrupted(and_now: str) -> NoReturn:
    """End a command that was interrupted; `and_now` follows the word and says how it stands."""
    sys.stderr.write(f"interrupted{and_now}\n")
    raise SystemExit(130) from None


def said(error: BaseException) -> str:
    """What an error says; one of the system says which file it is about, and why."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
