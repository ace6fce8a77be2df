"""Tokenizers: plain bytes, or a tokenizer.json file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

PIECE = 64 * 1024
PIECES = 16  # that are encoded at once: an encoding takes some 100 bytes a token
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """`eos` ends a document; `identity` is a sha256 of all that decides which ids a text gets."""

    name: str
    vocab_size: int
    eos: int
    identity: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts one behind the other, in the type of the vocabulary, and how many each text has."""
        ...

    def decode(self, ids: list[int]) -> str: ...


def label(name: str, identity: str) -> str:
    """A tokenizer as people see it: files of one name can be different ones."""
    return f"{name} {identity[:12]}"


class ByteTokenizer:
    """UTF-8 bytes are the ids 0 to 255; 256 ends a document."""

    name = "byte"
    vocab_size = 257
    eos = 256
    identity = hashlib.sha256(b"utf-8 bytes 0-255, end of document 256").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.frombuffer(b"".join(encoded), np.uint8).astype(id_type(self.vocab_size)), sizes

    def decode(self, ids: list[int]) -> str:
        """Bytes that are no UTF-8 become U+FFFD; the end of a document is left out."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class FileTokenizer:
    """A Hugging Face `tokenizer.json`, read from `path`; no special tokens are added to a text.

    Raises FileNotFoundError or ValueError when `path` is no such file, or when it names no end-of-text token.
    """

    def __init__(self, path: str) -> None:
        file = Path(path)
        if file.is_dir():
            raise ValueError(f"tokenizer {path} is a directory: name the tokenizer.json file in it")
        if not file.is_file():
            raise FileNotFoundError(f'tokenizer file {path} does not exist: give a tokenizer.json, or "byte"')
        content = file.read_bytes()
        try:
            json.loads(content)
        except ValueError as error:
            raise ValueError(f"tokenizer {path} is not valid JSON: {error}") from error

        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_buffer(content)
        except Exception as error:
            raise ValueError(f"tokenizer {path} is not a tokenizer.json: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # in a text they are text
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        ends = [vocabulary[token] for token in END_OF_TEXT if token in vocabulary]
        if not ends:
            raise ValueError(f"tokenizer {path} has no end-of-text token: add one of {', '.join(END_OF_TEXT)}")
        self.name = f"{file.resolve().parent.name}/{file.name}"
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos = ends[0]
        self.identity = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> list[int]:
        encodings = (self._backend.encode(piece, add_special_tokens=False) for piece in cut_text(text))
        return [token for encoding in encodings for token in encoding.ids]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        dtype = id_type(self.vocab_size)
        ids, sizes = [np.empty(0, dtype)], np.zeros(len(texts), np.int64)
        pieces = ((number, piece) for number, text in enumerate(texts) for piece in cut_text(text))
        while batch := list(islice(pieces, PIECES)):
            encodings = self._backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            for (number, _), encoding in zip(batch, encodings, strict=True):
                ids.append(np.array(encoding.ids, dtype))
                sizes[number] += len(ids[-1])
        return np.concatenate(ids), sizes

    def decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """`"byte"`, or the path of a tokenizer.json."""
    return ByteTokenizer() if name_or_path == "byte" else FileTokenizer(name_or_path)


def id_type(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id. Raises ValueError beyond 32 bits."""
    if vocab_size > 1 << 32:
        raise ValueError(f"a vocabulary of {vocab_size} ids does not fit 32 bits: use a smaller one")
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def cut_text(text: str) -> Iterator[str]:
    """Cut `text` into pieces of at most 64 K characters, after a newline where there is one: long strings are slow."""
    start = 0
    while len(text) - start > PIECE:
        stop = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        yield text[start:stop]
        start = stop
    yield text[start:]
