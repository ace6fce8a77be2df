"""Tables of language models side by side: what is compared, and what is refused; pictures only have to come out."""

import json
import math

import pytest

from gca_lit.results import perplexity_report, training_curves
from gca_lit.results.perplexity_report import compare, table

PLACE = {"hardware": "a GPU", "versions": {"torch": "2"}, "commit": "abc"}


def row(length, perplexity=None, **other):
    done = perplexity is not None
    return {
        "task": "perplexity",
        "backend": "gca",
        "window": 512,
        "k": 8,
        "split": "val",
        "seed": 0,
        "tokenizer": "t",
        "text": "books",
        "precision": "bf16-mixed",
        "checkpoint_sha256": "a",
        "global_step": 2000,
        "params": 1000,
        "train_length": 2048,
        "eval_length": length,
        "status": "done" if done else "skipped",
        "reason": None if done else "max_length: too long",
        "scored_tokens": 50 if done else 0,
        "perplexity": perplexity,
        "position_buckets": None,
    } | PLACE | other  # fmt: skip


def buckets(*nll):
    starts = [0, *(1 << power for power in range(len(nll) - 1))]
    return [
        {"start": start, "stop": 2 * start or 1, "scored_tokens": max(start, 1), "nll": value}
        for start, value in zip(starts, nll, strict=True)
    ]


def test_lengths_that_nobody_reached_are_left_out():
    runs = {
        "one": [row(1024, 9.0), row(4096, 8.0), row(8192)],
        "two": [row(1024, 9.5, backend="full"), row(4096, backend="full"), row(8192, backend="full")],
    }
    lines = table(compare("books", runs)).splitlines()
    assert lines[0] == "### books: perplexity by left context, in tokens"
    assert lines[2] == "| run | backend | parameters | steps | 1K | 4K |"
    assert lines[4:6] == [
        "| one | gca | 1,000 | 2,000 | 9.00 | 8.00 |",
        "| two | full | 1,000 | 2,000 | 9.50 | max_length |",
    ]
    assert lines[-1] == "a GPU, torch 2, commit abc"


@pytest.mark.parametrize("key", ["scored_tokens", "text", "tokenizer", "seed", "precision"])
def test_other_tokens_do_not_compare(key):
    with pytest.raises(ValueError, match=f"books: rows differ in {key}"):
        compare("books", {"one": [row(1024, 9.0)], "two": [row(1024, 9.0, **{key: 7})]})


def test_a_row_that_is_not_complete_gives_no_number():
    found = compare("books", {"one": [row(1024, 9.0), row(2048, 5.0, status="partial", reason="the time ran out")]})
    assert found.columns == [1024] and found.cells["one"][2048] == "partial"
    with pytest.raises(ValueError, match="books: no row is done"):
        compare("books", {"one": [row(1024)]})


def test_positions_are_those_of_the_longest_common_length():
    """Near positions are one column, whose perplexity is of all its tokens."""
    near = [1.0] * 10 + [3.0]  # starts 0, 1, 2, ... 512
    runs = {
        "one": [row(2048, 9.0, position_buckets=buckets(*near, 0.5)), row(4096, 9.0, position_buckets=buckets(7.0))],
        "two": [row(2048, 9.0, position_buckets=buckets(*near, 0.25)), row(4096)],
    }
    found = compare("books", runs)
    assert found.axis == "position" and found.columns == [1024, 2048]
    assert found.cells["one"][1024] == pytest.approx(math.exp((512 * 1 + 512 * 3) / 1024))
    assert found.cells["two"][2048] == pytest.approx(math.exp(0.25))
    with pytest.raises(ValueError, match="no length was scored whole in every run"):
        compare("books", {"one": runs["one"][1:], "two": runs["two"][:1]})


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_the_command_takes_the_newest_weights_and_settings(tmp_path, capsys):
    old = [row(1024, 99.0, checkpoint_sha256="old"), row(1024, 88.0, k=4)]
    for run in ("one", "full"):
        write(tmp_path / run / "books.jsonl", [*old, row(1024, 9.0), row(2048, 7.0), row(1024, 5.0, split="test")])
    write(tmp_path / "one" / "math.jsonl", [row(1024, 4.0)])
    write(tmp_path / "full" / "math.jsonl", [row(1024)])
    folders = [str(tmp_path / "one"), str(tmp_path / "full")]
    perplexity_report.main([*folders, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "perplexity.md").read_text() == printed
    assert "| one | gca | 1,000 | 2,000 | 9.00 | 7.00 |" in printed
    assert "| full | gca | 1,000 | 2,000 | max_length |" in printed
    assert (tmp_path / "out" / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    for wrong, said in ((["--split", "train"], "no rows of perplexity"), (folders[:1], "have one name")):
        with pytest.raises(SystemExit):
            perplexity_report.main([*folders, *wrong])
        assert said in capsys.readouterr().err


def log(folder, version, *points):
    path = folder / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    lines = [f"{tokens},{loss}\n" for tokens, loss in points]
    path.write_text(f"{training_curves.TOKENS},{training_curves.LOSS}\n" + "".join(lines) + ",\n")


def test_a_run_that_went_on_replaces_what_was_lost(tmp_path, capsys):
    run = tmp_path / "run"
    log(run, 2, (20, 2.0), (30, 1.0))
    log(run, 0, (10, 4.0), (20, 3.0), (25, 2.5))
    log(run, 10)  # a validation
    assert training_curves.training_losses(run) == [(10, 4.0), (20, 2.0), (30, 1.0)]
    training_curves.main([str(run), "--output", str(tmp_path / "out" / "loss.png")])
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    log(tmp_path / "validated", 0)
    wrong = {
        "validated": "validated/csv has no throughput/tokens_seen and train_loss: train for log_every_n_steps at least",
        "out": "out is not the directory of a run with the CSV logger: it has no csv/version_*/metrics.csv",
        "nowhere": "there is no directory",
        "out/loss.png": "there is no directory",
    }
    for name, message in wrong.items():
        with pytest.raises(SystemExit):
            training_curves.main([str(tmp_path / name)])
        assert message in capsys.readouterr().err


def test_damaged_files_are_named_in_one_line(tmp_path, capsys):
    log(tmp_path, 0, (10, "x"))
    (tmp_path / "books.jsonl").write_text('{"a"\n')
    for command in (perplexity_report, training_curves):
        with pytest.raises(SystemExit) as stop:
            command.main([str(tmp_path)])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and line.startswith(f"error: {tmp_path}") and " is damaged: " in line


def test_curves_are_smoothed_over_equal_ranges_of_tokens():
    points = [(10.0, 4.0), (20.0, 2.0), (30.0, 1.0), (60.0, 3.0)]
    assert training_curves.smooth(points, 2) == [(20.0, pytest.approx(7 / 3)), (60.0, 3.0)]
    assert training_curves.smooth(points, 1000) == points
