"""A state that was saved goes on as if it had not been, and is refused where it does not fit."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from gca_lit.attention import FullAttention
from gca_lit.generation import saved_state
from gca_lit.generation.saved_state import CHUNKS, LANDMARKS, RECORD, REST, identity, load, save, saved_tokens
from gca_lit.memory import DeviceStore, DiskStore, HostStore
from gca_lit.whole_file import NotSaved, WholeFile
from tests.generation.test_sampling import network
from tests.model.backends import BACKENDS, gca, tokens

STORES = {"host": HostStore, "device": DeviceStore, "disk": DiskStore}


def after(model, ids, store=None, read="none"):
    return model.step(ids, model.new_state(len(ids), store or HostStore()), read).state


def record_of(model):
    return identity(model, "bytes", "32-true")


@torch.no_grad()
def go_on(model, state, sizes=(3, 1, 1, 1, 1, 1, 1, 12)):
    ids, at, hidden = tokens(sum(sizes), len(state.deferred)).to(state.deferred.device), 0, []
    for size in sizes:
        step = model.step(ids[:, at : at + size], state)
        state, at = step.state, at + size
        hidden += [step.hidden, *(part for one in step.selections for part in one)]
    return hidden


@pytest.fixture
def saved(tmp_path):
    """A model, and the directory of the state that it had behind 33 tokens."""
    model = network(gca())
    save(after(model, tokens(33, 1)), tmp_path / "book", record_of(model))
    return model, tmp_path / "book"


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_to_save_and_load_changes_not_a_bit(tmp_path, monkeypatch, backend, store, dtype):
    monkeypatch.setattr(saved_state, "PIECE_BYTES", 600)
    monkeypatch.setattr("gca_lit.whole_file.PIECE_BYTES", 600)
    model = network(BACKENDS[backend], dtype)
    for number, (batch, length, read) in enumerate(((1, 33, "last"), (2, 41, "none"), (1, 3, "all"), (1, 40, "all"))):
        state = after(model, tokens(length, batch), STORES[store](), read)
        save(state, tmp_path / str(number), record_of(model))
        loaded = load(tmp_path / str(number), model, STORES[store](), record_of(model))
        assert loaded.position == length == saved_tokens(tmp_path / str(number))
        for one, other in zip(go_on(model, state), go_on(model, loaded), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype


@torch.no_grad()
def test_a_state_in_the_midst_of_decoding(tmp_path):
    """It holds chunks that were fetched for the chunk it is in."""
    model = network(gca(groups=2))
    state = after(model, tokens(33, 1))
    for token in tokens(8, 1)[0]:
        state = model.step(token.view(1, 1), state).state
    save(state, tmp_path / "s", record_of(model))
    loaded = load(tmp_path / "s", model, HostStore(), record_of(model))
    assert all(torch.equal(*pair) for pair in zip(go_on(model, state), go_on(model, loaded), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_same_on_a_cuda_device(tmp_path, store, dtype):
    model = network(gca(), dtype).cuda()
    state = after(model, tokens(33, 1).cuda(), STORES[store](), "last")
    save(state, tmp_path / "s", record_of(model))
    loaded = load(tmp_path / "s", model, STORES[store](), record_of(model))
    assert all(torch.equal(*pair) for pair in zip(go_on(model, state), go_on(model, loaded), strict=True))


@torch.no_grad()
def test_many_questions_to_one_book(saved):
    model, book = saved
    store = DeviceStore()
    answers = [go_on(model, load(book, model, store, record_of(model))) for _ in range(3)]
    for other in answers[1:]:
        assert all(torch.equal(*pair) for pair in zip(answers[0], other, strict=True))


def test_only_what_counts_is_written(saved):
    """Not the tensors that the state's are parts of."""
    _, book = saved
    assert {path.name for path in book.iterdir()} == {RECORD, REST, LANDMARKS, CHUNKS}
    assert (book / CHUNKS).stat().st_size == 6 * 2 * 5 * 2 * 8 * 8  # chunks, K and V, C, J, D, bytes
    assert (book / LANDMARKS).stat().st_size == 6 * 32 * 8
    assert [path.name for path in book.parent.iterdir()] == ["book"]


def test_windows_do_not_grow_with_what_was_read(tmp_path):
    """In one segment: what the state holds are parts of tensors as long as that."""
    model = network(gca())
    sizes = []
    for length in (200, 1000):
        save(after(model, tokens(length, 1), read="all"), tmp_path / str(length), record_of(model))
        sizes.append((tmp_path / str(length) / REST).stat().st_size)
    assert sizes[0] == sizes[1]


def test_chunks_go_through_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_state, "PIECE_BYTES", 4 * 2 * 5 * 2 * 8 * 8)  # four chunks
    monkeypatch.setattr("gca_lit.whole_file.PIECE_BYTES", 4 * 2 * 5 * 2 * 8 * 8)
    model, store = network(gca()), HostStore()
    state = after(model, tokens(5 * 30, 1), store)
    reads, writes = [], []
    monkeypatch.setattr(store, "read", lambda ids, read=store.read: reads.append(ids.shape[1]) or read(ids))
    save(state, tmp_path / "s", record_of(model))
    assert max(reads) == 4 and sum(reads) == 30 + 1
    store = HostStore()
    monkeypatch.setattr(store, "write", lambda k, v, write=store.write: writes.append(k.shape[1]) or write(k, v))
    load(tmp_path / "s", model, store, record_of(model))
    assert max(writes) <= 4 and sum(writes) == 30


@pytest.mark.parametrize("name", [RECORD, REST, LANDMARKS, CHUNKS])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(saved, name, harm):
    model, book = saved
    path = book / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if harm == "flip" else content[:-3])
    if harm == "remove":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        load(book, model, HostStore(), record_of(model))


def test_no_state(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no saved state in .*nowhere"):
        saved_tokens(tmp_path / "nowhere")


def test_what_does_not_fit_is_named(saved):
    model, book = saved
    about = record_of(model)
    for other, message in (
        (record_of(network(gca(window=14))), "attention.window: 13 in the state, 14 in this run"),
        (record_of(network(gca(top_k=2))), "attention.top_k: 3 in the state, 2 in this run"),
        (record_of(network(BACKENDS["full"])), "attention.backend"),
        (identity(model, "words", "32-true"), "tokenizer: bytes in the state, words in this run"),
        (identity(model, "bytes", "bf16-mixed"), "precision: 32-true in the state, bf16-mixed in this run"),
        ({**about, "decoder.kv_dtype": "bfloat16"}, "decoder.kv_dtype: None in the state, bfloat16 in this run"),
    ):
        with pytest.raises(ValueError, match=message):
            load(book, model, HostStore(), other)
    with torch.no_grad():
        model.network.norm.weight[0] += 1e-3
    with pytest.raises(ValueError, match=r"weights: \w{64} in the state, \w{64} in this run$"):
        load(book, model, HostStore(), record_of(model))


def test_a_longer_limit_fits():
    one, other = (network(FullAttention(max_length=length)) for length in (30, None))
    assert record_of(one) == record_of(other)


def test_another_format_is_refused(saved, monkeypatch):
    model, book = saved
    written = saved_state.FORMAT
    monkeypatch.setattr(saved_state, "FORMAT", written + 1)
    with pytest.raises(ValueError, match=f"has format {written}, and this version reads {written + 1}"):
        load(book, model, HostStore(), record_of(model))


def test_a_directory_that_exists_is_left_alone(saved):
    model, book = saved
    before = (book / RECORD).read_bytes()
    with pytest.raises(ValueError, match="book exists already"):
        save(after(model, tokens(9, 1)), book, record_of(model))
    assert (book / RECORD).read_bytes() == before
    save(after(model, tokens(9, 1)), book.parent / "new" / "s", record_of(model))
    assert saved_tokens(book.parent / "new" / "s") == 9


@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "make room"), (errno.EROFS, "name a place that can be")])
@pytest.mark.parametrize("fails_at", range(4))
def test_a_disk_that_takes_nothing_is_left_as_it_was(tmp_path, monkeypatch, fails_at, number, remedy):
    model, written = network(gca()), []

    def commit(file, commit=WholeFile.commit):
        if len(written) == fails_at:
            raise OSError(number, os.strerror(number))
        written.append(file.path.name)
        commit(file)

    monkeypatch.setattr(WholeFile, "commit", commit)
    with pytest.raises(NotSaved, match=rf"could not be saved in .*s: {os.strerror(number)}; {remedy}"):
        save(after(model, tokens(33, 1)), tmp_path / "s", record_of(model))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_no_hindrance(tmp_path):
    model = network(gca())
    (tmp_path / "s.part").mkdir()
    (tmp_path / "s.part" / "chunks.bin.part").write_bytes(b"half")
    save(after(model, tokens(33, 1)), tmp_path / "s", record_of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", [RECORD, "notes.txt"])
def test_what_no_save_has_left_is_not_removed(name, tmp_path):
    model, mine = network(gca()), tmp_path / "s.part" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"s\.part is in the way: give the state another directory"):
        save(after(model, tokens(33, 1)), tmp_path / "s", record_of(model))
    assert mine.read_text() == "mine" and not (tmp_path / "s").exists()


def test_the_record_is_plain(saved):
    record = json.loads((saved[1] / RECORD).read_text(encoding="utf-8"))["state"]
    assert record["position"] == 33 and record["chunks"] == 6 and record["made_with"]["attention.chunk_size"] == 5
    assert replace(load(saved[1], saved[0], HostStore(), record["made_with"])).position == 33
