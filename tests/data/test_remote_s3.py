"""Training from an S3 server, through a proxy that cuts connections."""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from gca_lit.data import remote
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.shard_cache import Cache
from gca_lit.data.shards import ShardReader

server = pytest.importorskip("moto.server")

SHARD = 100_000  # tokens, twice as many bytes
LENGTH = 4096


class Proxy:
    """Hands bytes on between clients and a server. `cut` holds for how many bytes each next answer lives, `flip` after
    how many a bit is turned; while `down` is set, all connections are closed at once."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.cut: list[int] = []
        self.flip: list[int] = []
        self.down = threading.Event()
        self.dropped = 0
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as upstream, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, upstream)
            ready.register(upstream, selectors.EVENT_READ, client)
            answered = 0
            while not self.down.is_set():
                for key, _ in ready.select(timeout=0.1):
                    content = key.fileobj.recv(16384)  # type: ignore[union-attr]
                    if not content:
                        return
                    if key.fileobj is client:
                        answered = 0
                    else:
                        answered += len(content)
                        if self.cut and answered > self.cut[0]:
                            del self.cut[0]
                            self.dropped += 1
                            return
                        if self.flip and answered > self.flip[0]:
                            del self.flip[0]
                            content = content[:-1] + bytes([content[-1] ^ 1])
                    key.data.sendall(content)
            self.dropped += 1


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    between = Proxy(moto.get_host_and_port())
    yield between
    between.close()
    moto.stop()


@pytest.fixture
def local(write: Callable[..., str]) -> str:
    return write(sizes=(70_000, 250_000, 190_000), shard_tokens=SHARD)


@pytest.fixture
def address(local: str, proxy: Proxy) -> str:
    """The data set in a bucket."""
    query = f"endpoint_override={proxy.address}&scheme=http&region=us-east-1"
    system, path = fs.FileSystem.from_uri(f"s3://bucket/train?{query}&allow_bucket_creation=true")
    system.create_dir("bucket")
    fs.copy_files(local, path, destination_filesystem=system)
    return f"s3://bucket/train?{query}"


def batches(data: ArrowDataModule, at: dict[int, Callable[[], Any]] | None = None) -> Iterator[np.ndarray]:
    """Tokens and targets of an epoch; before the batches named in `at`, something happens."""
    data.setup("fit")
    try:
        for number, batch in enumerate(data.train_dataloader()):
            if at and number in at:
                at[number]()
            yield np.stack([batch.tokens, batch.targets])
    finally:
        data.teardown("fit")


def module(local: str, address: str, folder: Path, workers: int = 0, retries: int = 3) -> ArrowDataModule:
    size = os.stat(f"{local}/tokens-00000.arrow").st_size
    cache = Cache(str(folder / "cache"), 4 * size / 2**30, retries)
    return ArrowDataModule(address, local, LENGTH, shuffle_shards=2, cache=cache, num_workers=workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_cut_answers_change_nothing(local: str, address: str, proxy: Proxy, tmp_path: Path, workers: int) -> None:
    expected = np.stack(list(batches(ArrowDataModule(local, local, LENGTH, shuffle_shards=2))))
    far = module(local, address, tmp_path, workers)
    proxy.cut = [100_000, 20_000, 150_000, 190_000, 3_000]
    assert np.array_equal(np.stack(list(batches(far))), expected)
    assert proxy.dropped == 5 and len(expected) == 124


def test_flipped_bits_are_noticed(
    local: str,
    address: str,
    proxy: Proxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    data = module(local, address, tmp_path)
    data.setup("fit")
    proxy.flip = [150_000]
    assert np.array_equal(data._splits.reader("train").tokens(0, 250_000), ShardReader(local).tokens(0, 250_000))
    assert proxy.flip == [] and caplog.text.count("do not fit their crc32") == 1


@pytest.mark.slow
def test_a_server_that_comes_back(
    local: str,
    address: str,
    proxy: Proxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_BACKOFF", 0.1)
    expected = np.stack(list(batches(ArrowDataModule(local, local, LENGTH, shuffle_shards=2))))

    def out_of_order() -> None:
        proxy.down.set()
        threading.Timer(8, proxy.down.clear).start()

    at = {10: out_of_order}
    with caplog.at_level(logging.WARNING, logger="gca_lit"):
        found = np.stack(list(batches(module(local, address, tmp_path), at)))
    assert np.array_equal(found, expected)
    assert "s3://bucket/train/tokens-0000" in caplog.text and ": try 1 of 4 failed, the next one in" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_gone_for_good(
    local: str, address: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(remote, "_BACKOFF", 0.1)
    far = module(local, address, tmp_path, workers, retries=1)
    begun = time.monotonic()
    with pytest.raises(
        ConnectionError, match=r"s3://bucket/train/tokens-0000\d.arrow cannot be read, 2 of 2 tries failed, "
    ) as caught:
        list(batches(far, {10: proxy.down.set}))
    assert "training goes on with --ckpt_path last" in str(caught.value) and "?" not in str(caught.value)
    assert time.monotonic() - begun < 120
