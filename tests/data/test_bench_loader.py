"""The benchmark of the loader measures what it says."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import bench_loader


@pytest.mark.slow
def test_every_setting_gives_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(kind: str, *arguments: object) -> dict[str, object]:
        return {"loader": bench_loader.measure_loader, "opening": bench_loader.measure_opening}[kind](*arguments)

    monkeypatch.setattr(bench_loader, "SECONDS", 0.2)
    monkeypatch.setattr(bench_loader, "in_process", here)
    flags = "--tokens 1e6 --workers 0 1 --rows 512 --batch-sizes 4 --shards 3 --documents --output"
    monkeypatch.setattr(sys, "argv", ["bench_loader.py", *flags.split(), str(tmp_path / "x.jsonl")])
    bench_loader.main()
    opening, *loaders = map(json.loads, (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines())
    assert opening["shards"] == 3 and opening["seconds"] > 0
    assert [(line["workers"], line["documents"]) for line in loaders] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for line in loaders:
        assert line["tokens_per_second"] == pytest.approx(line["ratio"] * line["copy"], rel=0.05)
        assert 0 < line["own_bytes"][-1] < line["rss_bytes"][-1] and set(line) >= {
            "command",
            "commit",
            "hardware",
            "versions",
        }
