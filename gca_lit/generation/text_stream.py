"""Tokens to text as they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

UNKNOWN = "\ufffd"
"""What a tokenizer decodes bytes to that are no character, or not yet a whole one."""
CUT = 3
"""Most tokens of a character that is cut: it has at most 4 bytes, and a token at least one of them."""


class TextStream:
    """Decodes tokens piece by piece; the pieces together are what decoding all tokens at once gives, but for the number
    of U+FFFD that stand for bytes of no character.

    A character that a token cuts is held back until it is whole. Each piece is decoded behind the tokens of the one
    before, for what a token means may depend on its neighbour (a blank before a word).

    Args:
        decode: ids -> text, with U+FFFD for bytes that are no character.
        context: the tokens before, whose text is not given.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context)
        self._done = len(self._ids)  # tokens whose text has been given

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete."""
        self._ids += ids
        text = self._decode(self._ids)
        return self._take(self._whole(text) if text.endswith(UNKNOWN) else len(self._ids))

    def end(self) -> str:
        """What was held back."""
        return self._take(len(self._ids))

    def _whole(self, text: str) -> int:
        """How many of the tokens, which decode to `text`, surely end with a whole character."""
        newest = len(self._ids) - CUT
        oldest = max(self._done, newest - CUT)
        return next(
            (n for n in range(newest, oldest, -1) if text.startswith(self._decode(self._ids[:n]))),
            oldest,
        )

    def _take(self, stop: int) -> str:
        text = self._decode(self._ids[:stop])[len(self._decode(self._ids[: self._done])) :]
        if text:
            del self._ids[: self._done]
            stop -= self._done
        self._done = stop
        return text


def text_of(parts: Iterable[Sequence[int]], stream: TextStream) -> Iterator[str]:
    """The text of consecutive parts of tokens, a piece for each, and at the end what `stream` held back."""
    for ids in parts:
        yield stream.push(ids)
    yield stream.end()


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text of `pieces`, piece by piece, up to the first of the `stop` texts, which may lie across pieces.

    What could be the beginning of a stop text is held back until it is known not to be one.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [at for at in map(held.find, stop) if at >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        open_end = max((_begun(held, text) for text in stop), default=0)
        whole, held = held[: len(held) - open_end], held[len(held) - open_end :]
        if whole:
            yield whole
    if held:
        yield held


def _begun(text: str, stop: str) -> int:
    """How many letters of `stop`, but not all, `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
