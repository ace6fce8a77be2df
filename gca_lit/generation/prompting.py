"""A prompt of any size, from a file or from standard input, to token ids."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gca_lit.data.tokenizers import Tokenizer

BLOCK = 4 << 20


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a UTF-8 text file, or of standard input for "-", in the smallest type that holds them all.

    A text beyond 4 MiB is encoded in parts that are cut behind line ends. Raises FileNotFoundError or ValueError for a
    prompt that is missing, empty or not UTF-8.
    """
    if prompt != "-" and (not Path(prompt).exists() or Path(prompt).is_dir()):
        raise FileNotFoundError(f"there is no prompt file {prompt}: name a text file, or - for standard input")
    name = "standard input" if prompt == "-" else prompt
    with nullcontext(sys.stdin.buffer) if prompt == "-" else open(prompt, "rb") as file:
        parts = [tokenizer.encode_batch([text])[0] for text in _parts(file, name)]
    ids = np.concatenate(parts)
    if not len(ids):
        raise ValueError(f"the prompt is empty ({name}): write at least one letter into it")
    return ids


def _parts(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of `file`, but no byte order mark; all parts but the last end behind a line end, where there is one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, last = "", False
    head = file.read(len(codecs.BOM_UTF8))
    at = len(codecs.BOM_UTF8) if head == codecs.BOM_UTF8 else 0
    head = head[at:]
    while not last:
        head, block = b"", head + file.read(BLOCK)
        last = not block
        if text and not last:
            cut = text.rfind("\n") + 1 or len(text)
            yield text[:cut]
            text = text[cut:]
        waiting = len(decoder.getstate()[0])
        try:
            text += decoder.decode(block, final=last)
        except UnicodeDecodeError as error:
            place = at - waiting + error.start
            raise ValueError(f"the prompt is not UTF-8 ({name}): {error.reason} at byte {place}") from error
        at += len(block)
    yield text
