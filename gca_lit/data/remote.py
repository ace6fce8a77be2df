"""Data sets at remote addresses, such as s3://bucket/path: what is there, and its bytes, read again when a read fails.

An address is any URI that `pyarrow.fs` takes; other schemes go through fsspec where it knows them. Credentials and
endpoints come from the environment or from the URI; what is printed shows neither its user info nor its query.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

_BACKOFF = 1.0  # seconds before the second try; doubled before each further one
_LONGEST = 60.0
_HOPELESS = (ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError)
_HOPELESS_OS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_REFUSED = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED|status:? 40[0134]")

_log = logging.getLogger(__name__)
_random = random.SystemRandom()
T = TypeVar("T")


def is_remote(address: str) -> bool:
    """Whether `address` is a URI, not a path on this machine."""
    return "://" in address


def shown(text: str) -> str:
    """`text` without the user info and the query of the URIs in it."""
    text = re.sub(r"(?<=://)([^\s@]*:[^\s@]*|[^\s/@]*)@", "", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


class Storage:
    """A directory at a remote address. A read is tried again `retries` times, unless trying again cannot help.

    Each process connects on its own: a copy that was pickled is not connected. `place` is the address to show.

    Raises ConnectionError, naming the file, the number of tries and the last reason; FileNotFoundError for a file that
    does not exist; OSError for what the storage refuses.
    """

    def __init__(self, address: str, retries: int) -> None:
        self.place = shown(address).rstrip("/")
        self._address = address
        self._retries = retries

    def sizes(self) -> dict[str, int]:
        """Name and size in bytes of every file."""

        def listed() -> dict[str, int]:
            system, path = self._connection
            found = system.get_file_info(fs.FileSelector(path))
            return {file.base_name: file.size for file in found if file.type == fs.FileType.File}

        return self._again(self.place, listed)

    def read(self, name: str, start: int, size: int, check: Callable[[bytes], str | None]) -> bytes:
        """`size` bytes of a file from `start` on, for which `check` finds nothing wrong."""

        def whole() -> bytes:
            system, path = self._connection
            with system.open_input_file(f"{path}/{name}") as file:
                content = file.read_at(size, start)
            if len(content) != size:
                raise OSError(f"{len(content)} bytes came from byte {start} on, not {size}")
            if wrong := check(content):
                raise OSError(wrong)
            return content

        return self._again(f"{self.place}/{name}", whole)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_connection"}

    @cached_property
    def _connection(self) -> tuple[fs.FileSystem, str]:
        try:
            system, path = fs.FileSystem.from_uri(self._address)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            system, path = fs.FileSystem.from_uri(f"fsspec+{self._address}")
        return system, path.rstrip("/")

    def _again(self, place: str, attempt: Callable[[], T]) -> T:
        tries = self._retries + 1
        for number in range(1, tries + 1):
            try:
                return attempt()
            except Exception as error:  # storages of fsspec raise whatever their libraries do
                reason = shown(f"{type(error).__name__}: {error}")
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"{place} does not exist: {reason}") from None
                if isinstance(error, _HOPELESS + _HOPELESS_OS) or _REFUSED.search(reason):
                    raise OSError(f"{place} cannot be read: {reason}") from None
            if number < tries:
                pause = min(_BACKOFF * 2 ** (number - 1), _LONGEST) * _random.uniform(0.5, 1)
                _log.warning("%s: try %d of %d failed, the next one in %.1f s: %s", place, number, tries, pause, reason)
                time.sleep(pause)
        raise ConnectionError(
            f"{place} cannot be read, {tries} of {tries} tries failed, the last one with {reason}. "
            "When it can be reached again, training goes on with --ckpt_path last"
        )
