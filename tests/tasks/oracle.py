"""A haystack of random letters, a byte encoder, and an oracle that reads an episode back and solves it."""

import hashlib
import random
import re
from functools import cache

import torch
from torch import Tensor

from gca_lit.tasks import Episode, MultiHop, MultiKey, MultiQuery, SingleNeedle, VariableTracking
from gca_lit.tasks.needle_task import NeedleTask

C = 16
TASKS: list[type[NeedleTask]] = [SingleNeedle, MultiKey, MultiQuery, MultiHop, VariableTracking]
QUESTION = r"\|(passkey|[A-Z]{2}(?:,[A-Z]{2})*|\d{5})\?"


def encode(text: str) -> list[int]:
    return list(text.encode())


def encode_wide(text: str) -> list[int]:
    """A tokenizer whose lengths vary: pairs of digits are often one token, as in a real vocabulary."""
    pieces = re.findall(r"[0-4]\d|.", text)
    return [int(piece) + 1000 if len(piece) == 2 else ord(piece) for piece in pieces]


def decode_wide(tokens: list[int]) -> str:
    return "".join(f"{token - 1000:02d}" if token >= 1000 else chr(token) for token in tokens)


@cache
def letters(index: int, length: int) -> bytes:
    return bytes(random.Random(index).choices(range(97, 123), k=length))


class Letters:
    """Random small letters, another text for every index."""

    def take(self, index: int, length: int) -> Tensor:
        return torch.tensor(list(letters(index, length)), dtype=torch.int64)

    def passage(self, index: int, length: int) -> Tensor:
        return self.take(index, length)

    def passes(self, length: int) -> int:
        return 1


def read(tokens: Tensor) -> str:
    return decode_wide(tokens.tolist())


def answers(episode: Episode) -> list[tuple[int, int]]:
    """[start, stop) in `tokens` of every scored answer."""
    scored = "".join("-x"[target] for target in (episode.targets != -100).tolist())
    return [(match.start() + 1, match.end() + 1) for match in re.finditer("x+", scored)]


def facts(task: NeedleTask, text: str) -> list[tuple[str, str]]:
    """(key, value) of every needle in the text."""
    if isinstance(task, SingleNeedle):
        return [("passkey", value) for value in re.findall(r"\|passkey=(\d{5})\|", text)]
    return re.findall(r"\|([A-Z]{2})=(\w+)\|", text)


def solve(task: NeedleTask, text: str) -> str:
    """Answer the last question of `text` from the needles in it."""
    sought = re.findall(QUESTION, text)[-1]
    known = facts(task, text)
    if isinstance(task, VariableTracking):
        pointed = {value: key for key, value in known}
        names = []
        while sought in pointed:
            sought = pointed[sought]
            names.append(sought)
        return ",".join(names)
    values = dict(known)
    found = []
    for name in sought.split(","):
        while name in values:
            name = values[name]
        found.append(name)
    return ",".join(found)


def digest(episode: Episode) -> str:
    content = episode.tokens.numpy().astype("<i8").tobytes() + episode.targets.numpy().astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
