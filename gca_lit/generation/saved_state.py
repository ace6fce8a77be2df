"""What a model has read, on disk: read a book once, ask about it many times."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gca_lit.checkpoints.architecture import architecture, unlike
from gca_lit.memory import ChunkMemory, ChunkStore, ChunkTable, Selection
from gca_lit.model import ModelState
from gca_lit.model.carried import Carried
from gca_lit.module import CausalLM
from gca_lit.provenance import weights_sha256
from gca_lit.whole_file import PART, PIECE_BYTES, WholeFile, saving, sync_directory

RECORD, REST, LANDMARKS, CHUNKS = "state.json", "rest.pt", "landmarks.bin", "chunks.bin"
FORMAT = 3
READ_AGAIN = "make the state again with --save_state"


def identity(model: CausalLM, tokenizer: str, precision: str) -> dict[str, Any]:
    """What a state depends on, in plain values: the weights, all settings, the tokenizer's identity, the precision."""
    about = architecture(model.attention, model.config, model.vocab_size)
    about |= {f"attention.{name}": value for name, value in vars(model.attention).items() if name != "max_length"}
    about |= {"decoder.kv_dtype": model.config.kv_dtype, "tokenizer": tokenizer, "precision": precision}
    about["weights"] = weights_sha256(model.named_parameters())
    plain: dict[str, Any] = json.loads(json.dumps(about, default=str))
    return plain


def check_new(directory: Path) -> None:
    """Raise ValueError when a state cannot get the name `directory`."""
    if directory.exists():
        raise ValueError(f"{directory} exists already: give the state another directory, or remove this one")
    part, ours = _part(directory), {name + end for name in (REST, LANDMARKS, CHUNKS) for end in ("", PART)}
    if part.exists() and not (part.is_dir() and {path.name for path in part.iterdir()} <= ours):
        raise ValueError(f"{part} is in the way: give the state another directory, or move that one")


def saved_tokens(directory: Path) -> int:
    """How many text tokens a saved state has read. Raises like `load`."""
    position: int = _record(directory)["position"]
    return position


def save(state: ModelState, directory: Path, made_with: dict[str, Any]) -> None:
    """Write `state`, which can go on afterwards, to a new directory: all of it, or nothing.

    Landmarks and chunk K/V go through memory a few MiB at a time. Raises ValueError when the directory exists, and
    NotSaved when the disk does not take it.
    """
    check_new(directory)
    part = _part(directory)
    shutil.rmtree(part, ignore_errors=True)
    with saving(f"the state could not be saved in {directory}"):
        try:
            part.mkdir(parents=True)
            _write(state, part, made_with)
            part.rename(directory)
            sync_directory(directory.absolute().parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def load(directory: Path, model: CausalLM, store: ChunkStore, made_with: dict[str, Any]) -> ModelState:
    """The state in `directory`, on the model's device, its chunk K/V in `store`, which is emptied first.

    Each call gives a fresh state: ask one question of each. Two that are used in turns need two stores.

    Raises FileNotFoundError or ValueError for a directory that holds no state, a file that is damaged (each is compared
    with its checksums) and a state made with something else: every difference is named.
    """
    record = _record(directory)
    saved = record["made_with"]
    different = [
        f"{key}: {saved.get(key, 'nothing')} in the state, {made_with.get(key, 'nothing')} in this run"
        for key in unlike(saved, made_with)
    ]
    if different:
        raise ValueError(f"the state in {directory} was made with something else; {'; '.join(different)}")
    empty = model.new_state(record["batch_size"], store)
    device = empty.deferred.device
    for name, about in record["files"].items():
        if not (directory / name).is_file() or (directory / name).stat().st_size != about["bytes"]:
            raise ValueError(f"{directory / name} is damaged: it should have {about['bytes']:,} bytes; {READ_AGAIN}")
    for _ in _pieces(directory / REST, record):
        pass
    rest = _unpickle(directory / REST, device)
    if record["chunks"]:
        assert empty.memory is not None
        _load_chunks(empty.memory, directory, record, device)
    selection, pending = rest.pop("selection"), (rest.pop("pending"),)
    carried = Carried(Selection(*selection)) if selection else ()
    return replace(empty, position=record["position"], carried=carried, pending=pending, **rest)


def _part(directory: Path) -> Path:
    """Where a state is written before it gets its name."""
    return directory.with_name(directory.name + PART)


def _write(state: ModelState, folder: Path, made_with: dict[str, Any]) -> None:
    record: dict[str, Any] = {"format": FORMAT, "made_with": made_with, "position": state.position}
    record |= {"batch_size": len(state.deferred), "chunks": 0, "files": {}}
    with WholeFile(folder / REST) as file:
        torch.save(_rest(state), file)  # type: ignore[arg-type]
        record["files"][REST] = file
    if state.memory is not None and state.memory.count:
        record |= _save_chunks(state.memory, folder, record["files"])
    record["files"] = {name: {"bytes": file.bytes, "crc32": file.checks} for name, file in record["files"].items()}
    with WholeFile(folder / RECORD) as file:
        file.write(json.dumps({"crc32": _checksum(record), "state": record}, indent=1).encode())


def _rest(state: ModelState) -> dict[str, Any]:
    """All but position and memory as plain tuples of tensors; the chunks that `carried` fetched are fetched again."""
    pending = torch.cat((state.deferred[:, :0], *state.pending), 1)
    selection = tuple(state.carried.selection) if state.carried else ()
    parts = {"pasts": state.pasts, "deferred": state.deferred, "pending": pending, "selection": selection}
    return {name: _plain(part) for name, part in parts.items()}


def _plain(past: Any) -> Any:
    """Without the memory of the tensors that it is a part of."""
    if isinstance(past, Tensor):
        past = past.detach()
        return past.clone() if past.untyped_storage().nbytes() > past.nbytes else past
    return tuple(map(_plain, past)) if isinstance(past, tuple | list) else past


def _save_chunks(memory: ChunkMemory, folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    """Write landmarks [N, B, M'] and K/V [N, B, 2, C, J, D], chunk by chunk. Returns their number, shapes and types."""
    landmarks = memory.landmarks()
    (B, _, width), device, N = landmarks[0].shape, landmarks[0].device, memory.count
    first, _ = memory.store.read(torch.zeros(B, 1, dtype=torch.int64, device=device))
    at_once = max(1, PIECE_BYTES // (2 * first.nbytes))
    with WholeFile(folder / LANDMARKS) as keys, WholeFile(folder / CHUNKS) as chunks:
        for start in range(0, N, at_once):
            ids = torch.arange(start, min(start + at_once, N), device=device)
            k, v = memory.store.read(ids.expand(B, -1))
            chunks.write(_bytes(torch.stack((k, v), 2).transpose(0, 1)))
        for part in landmarks:
            for piece in part.split(at_once, 1):
                keys.write(_bytes(piece.transpose(0, 1)))
    files |= {LANDMARKS: keys, CHUNKS: chunks}
    return {
        "chunks": N,
        "landmark": {"shape": [B, width], "dtype": str(landmarks[0].dtype).removeprefix("torch.")},
        "chunk": {"shape": [B, 2, *first.shape[2:]], "dtype": str(first.dtype).removeprefix("torch.")},
    }


def _load_chunks(memory: ChunkMemory, directory: Path, record: dict[str, Any], device: torch.device) -> None:
    keys = _rows(directory / LANDMARKS, record, record["landmark"])
    waiting = next(keys)
    for rows in _rows(directory / CHUNKS, record, record["chunk"]):
        while len(waiting) < len(rows):
            waiting = torch.cat((waiting, next(keys)))
        landmarks, waiting = waiting[: len(rows)], waiting[len(rows) :]
        k, v = rows.to(device).transpose(0, 1).unbind(2)
        memory.append(landmarks.to(device).transpose(0, 1), ChunkTable(k, v))


def _rows(path: Path, record: dict[str, Any], like: dict[str, Any]) -> Iterator[Tensor]:
    """The rows of a file, some at a time: [n, *shape] on the CPU."""
    dtype = getattr(torch, like["dtype"])
    row = torch.Size(like["shape"]).numel() * dtype.itemsize
    waiting = bytearray()
    for piece in _pieces(path, record):
        waiting += piece
        whole = len(waiting) // row * row
        if whole:
            yield torch.frombuffer(waiting[:whole], dtype=dtype).view(-1, *like["shape"])
            waiting = waiting[whole:]


def _pieces(path: Path, record: dict[str, Any]) -> Iterator[bytes]:
    """The bytes of a file, each piece compared with its checksum before it is given."""
    with path.open("rb") as file:
        for number, check in enumerate(record["files"][path.name]["crc32"]):
            piece = file.read(PIECE_BYTES)
            if zlib.crc32(piece) != check:
                at = f"between the bytes {number * PIECE_BYTES:,} and {number * PIECE_BYTES + len(piece):,}"
                raise ValueError(f"{path} is damaged {at}: it has another checksum than was written; {READ_AGAIN}")
            yield piece


def _record(directory: Path) -> dict[str, Any]:
    path = directory / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"there is no saved state in {directory}: it has no {RECORD}")
    found: Any = None
    with suppress(ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("crc32") != _checksum(found.get("state")):
        raise ValueError(f"{path} is damaged: it has another checksum than was written; {READ_AGAIN}")
    record: dict[str, Any] = found["state"]
    if record["format"] != FORMAT:
        raise ValueError(f"{directory} has format {record['format']}, and this version reads {FORMAT}: {READ_AGAIN}")
    return record


def _checksum(record: Any) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _unpickle(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        rest: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read: {error}; {READ_AGAIN}") from error
    return rest


def _bytes(tensor: Tensor) -> bytes:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[return-value, arg-type]
