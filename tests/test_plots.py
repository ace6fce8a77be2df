"""Tables and pictures of results; pictures only have to come out."""

import json

import pytest

from gca_lit import plots
from gca_lit.results import Row
from gca_lit.tasks.metrics import wilson


def row(length: int, correct: int | None, **other: object) -> Row:
    low, high = wilson(correct, 10) if correct is not None else (None, None)
    known = correct is not None
    return {
        "task": "single_needle",
        "placement": "end",
        "backend": "gca",
        "status": "done" if known else "skipped",
        "reason": None if known else "max_length: this backend takes at most 64 tokens, not 128",
        "train_length": 32,
        "eval_length": length,
        "factor": length / 32,
        "depth": None,
        "n": 10 if known else 0,
        "correct": correct,
        "accuracy": correct / 10 if known else None,
        "ci_low": low,
        "ci_high": high,
        "tokens_per_second": 1234.5 if known else None,
        "peak_device_bytes": None,
        "state_bytes": 2048,
        "host_bytes": 3 << 30,
        "disk_bytes": 0,
        "checkpoint_sha256": "a",
        "seed": 0,
    } | other


def test_table_pools_depths_and_tells_reasons():
    rows = [row(32, 10, depth=0.0), row(32, 5, depth=1.0), row(128, None, backend="full")]
    _, _, pooled, skipped = plots.table(rows).splitlines()
    low, high = wilson(15, 20)
    assert f"| gca | 0.750 | 20 | {low:.3f} to {high:.3f} | 1,234 | 2.0 KiB | 3.0 GiB | 0 B |" in pooled
    assert "| 128 | 4 | full | max_length: this backend takes at most 64 tokens, not 128 |" in skipped


def test_table_of_perplexity():
    perplexity = row(32, None, task="perplexity", placement=None, status="done", reason=None, n=10, perplexity=8.5)
    assert "| gca | perplexity 8.50 | 10 |" in plots.table([perplexity])


@pytest.mark.parametrize("depths", [[None], [0.0, 0.5, 1.0]])
def test_pictures(tmp_path, depths):
    rows = [row(length, 7, depth=depth) for length in (16, 32, 64) for depth in depths]
    rows += [row(128, None, depth=depth, backend="full") for depth in depths]
    rows += [row(16, None, task="perplexity", placement=None, n=10, perplexity=3.0, status="done")]
    plots.heat_map(rows, "single_needle", tmp_path / "a.png")
    plots.heat_map(rows, "perplexity", tmp_path / "b.png")
    plots.accuracy_by_length(rows, tmp_path / "c.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png", "c.png"))
    with pytest.raises(ValueError, match="no rows of task riddle"):
        plots.heat_map(rows, "riddle", tmp_path / "d.png")


def test_command_compares_runs(tmp_path, capsys):
    for name, rows in (("one", [row(32, 1, checkpoint_sha256="old"), row(32, 9)]), ("two", [row(32, 2)])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "length_generalization.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    plots.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "gca (one) | 0.900" in printed and "gca (two) | 0.200" in printed and "0.100 |" not in printed
    assert (tmp_path / "out" / "table.md").read_text() == printed
    assert (tmp_path / "out" / "accuracy_by_length.png").exists()
    with pytest.raises(SystemExit):
        plots.main([str(tmp_path)])


def test_splits_are_not_pooled(tmp_path, capsys):
    rows = [row(32, 9, split="val"), row(32, 1, split="test")]
    (tmp_path / "length_generalization.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for split, accuracy in (("val", "0.900"), ("test", "0.100")):
        plots.main([str(tmp_path), "--output", str(tmp_path / "out"), "--split", split])
        assert f"| gca | {accuracy} | 10 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        plots.main([str(tmp_path), "--split", "train"])


@pytest.mark.parametrize(
    ("length", "text"),
    [(500, "500"), (1024, "1K"), (16_384, "16K"), (16_380, "16K"), (16_384_000, "16M"), (1 << 20, "1M"), (9_000, "9K")],
)
def test_lengths_as_people_say_them(length, text):
    assert plots.short_length(length) == text
