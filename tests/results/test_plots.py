"""Tables and pictures of results; pictures only have to come out."""

import json

import pytest

from gca_lit.results import plots
from tests.result_rows import row


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
    plots.main([str(tmp_path / "two" / "length_generalization.jsonl"), "--output", str(tmp_path)])
    assert "| single_needle | 0.200" in capsys.readouterr().out
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
    ("content", "message"),
    [
        ('{"a": 1}\n{"a"\n', "is damaged: "),
        ("# Words\n", "is no results file"),
        ('{"answer": 1}\n', "is no results file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        plots.main([str(path), "--output", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"error: {path} {message}")


def test_an_output_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "length_generalization.jsonl"
    path.write_text(json.dumps(row(32, 2)) + "\n")
    with pytest.raises(SystemExit) as stop:
        plots.main([str(tmp_path), "--output", str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and str(path) in line
