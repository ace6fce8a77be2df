"""Where chunk K/V go is a word on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gca_lit.callbacks.length_generalization import Sweep
from gca_lit.cli import CLI
from gca_lit.memory import DeviceStore, DiskStore


def test_stores_are_named_and_set(instantiate: Callable[..., CLI], tiny: str, tmp_path: Path) -> None:
    flags = ["--length_generalization.store", "DiskStore", "--length_generalization.store.host_mib", "256"]
    cli = instantiate("fit", "--config", tiny, "--model.store", "DeviceStore", *flags)
    store = cli.config_init["fit"].length_generalization.store
    assert isinstance(store, DiskStore) and store.host_bytes == 256 << 20
    assert isinstance(cli.model.store, DeviceStore)


def test_a_sweep_on_disk_finds_what_one_in_memory_finds(run: Callable[..., None], run_dir: Path) -> None:
    run("fit")
    found = []
    for store in ("HostStore", "DiskStore"):
        output = f"{store}.jsonl"
        run(
            *("validate", "--ckpt_path", "last", "--length_generalization.output", output),
            *("--length_generalization.store", store),
        )
        found.append(
            [
                (row["eval_length"], row["correct"], row["n"], row["last_hits"], row["recall_at_k"])
                for row in map(json.loads, (run_dir / output).read_text().splitlines())
            ]
        )
    assert found[0] == found[1] and found[0]


def test_a_sweep_without_a_store_of_its_own_takes_the_models(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("fit")
    stores: list[str] = []
    monkeypatch.setattr(Sweep, "run", lambda self: stores.append(type(self.store).__name__))
    validate, disk = ("validate", "--ckpt_path", "last"), ("--model.store", "DiskStore")
    run(*validate)
    run(*validate, *disk)
    run(*validate, *disk, "--length_generalization.store", "DeviceStore")
    assert stores == ["HostStore", "DiskStore", "DeviceStore"]


@pytest.mark.parametrize("command", [("validate",), ("generate", "--prompt", "-")])
@pytest.mark.parametrize("store", ["model.store", "length_generalization.store"])
def test_a_directory_that_is_none_is_refused_before_anything_runs(
    refused: Callable[..., str], tiny: str, command: tuple[str, ...], store: str, tmp_path: Path
) -> None:
    flags = ("--config", tiny, "--ckpt_path", "last", f"--{store}", "DiskStore", f"--{store}.directory")
    assert "nowhere does not exist: make it" in refused(*command, *flags, str(tmp_path / "nowhere"))
    assert "tiny.yaml is not a directory" in refused(*command, *flags, tiny)
