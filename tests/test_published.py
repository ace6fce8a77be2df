"""What is published agrees: tables with their rows, rows with the model files."""

import csv
import hashlib
import json
import re
import statistics
from pathlib import Path

import pytest
from torchmetrics.functional.text.rouge import rouge_score

from gca_lit.callbacks.rouge import KEYS
from gca_lit.results import perplexity_report
from gca_lit.results.file import ResultsFile
from gca_lit.results.tables import summary, table, tell_tasks_apart

DOCS = Path(__file__).parents[1] / "docs"
TABLES = {
    "results/needle_16k_6m.jsonl": ("../README.md", "results/needles.md"),
    "results/needle_16k_128m.jsonl": ("results/needles.md",),
    "demo.jsonl": ("../README.md", "demo.md"),
}


@pytest.mark.parametrize("rows", TABLES)
def test_tables_are_those_of_their_rows(rows):
    made = summary(tell_tasks_apart(ResultsFile(DOCS / rows).rows))
    for page in TABLES[rows]:
        assert made in (DOCS / page).read_text(encoding="utf-8"), f"make the table of {page} anew, of {rows}"


def test_the_demo_page_has_every_row():
    assert table(ResultsFile(DOCS / "demo.jsonl").rows) in (DOCS / "demo.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", sorted((DOCS / "models").iterdir()), ids=lambda path: path.stem)
def test_rows_of_a_published_model_are_of_this_very_file(model):
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    rows = ResultsFile(DOCS / "results" / f"{model.stem}.jsonl").rows
    assert rows and {row["checkpoint_sha256"] for row in rows} == {digest}


@pytest.mark.parametrize(
    "folder, runs",
    [
        ("lm_25m", ("gca_recency", "gca_2_groups_recency", "sliding_window", "full", "full_same_rows")),
        ("lm_128m", ("gca_recency", "gca_2_groups_recency", "sliding_window", "full")),
        ("lm_25m_window_512", ("gca", "gca_offset", "sliding_window", "full")),
        ("lm_25m_window_128", ("gca", "gca_2_groups", "gca_k16", "sliding_window")),
    ],
)
def test_the_page_of_language_models_has_the_tables_of_its_rows(folder, runs, tmp_path):
    made = report([DOCS / "results" / folder / run for run in runs], tmp_path)
    assert made in (DOCS / "results" / "lm.md").read_text(encoding="utf-8")


def test_the_readme_has_the_books_of_the_page_of_language_models():
    page = (DOCS / "results" / "lm.md").read_text(encoding="utf-8")
    books = page.split("### books: perplexity by left context, in tokens\n\n")[1].split("\n\n")[0]
    assert books in (DOCS.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*/perplexity.md")), ids=lambda page: page.parent.name)
def test_a_page_of_perplexity_has_all_runs_beside_it(page, tmp_path):
    runs = re.findall(r"^\| (\w+) \| (?:gca|sliding_window|full) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(runs) == {path.name for path in page.parent.iterdir() if path.is_dir()}
    files = [f"{corpus}{by}.jsonl" for by in ("", "_by_position") for corpus in ("books", "math")]
    made = report([page.parent / run for run in dict.fromkeys(runs)], tmp_path, "--files", *files)
    assert made == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((DOCS / "results" / "trace").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_of_language_models_has_what_was_traced(path):
    traced = json.loads(path.read_text(encoding="utf-8"))
    (group,) = traced["groups"]
    found = group["references"]
    shares = [f"{100 * found[name]:.1f} %" for name in ("found", "found_next", "chance", "nearest")]
    row = f"| {path.stem} | {traced['tokens']:,} | {found['count']} | {' | '.join(shares)} |"
    assert row in (DOCS / "results" / "lm.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((DOCS / "results" / "pairs").glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_page_of_pairs_has_the_means_of_its_rows(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    means = [statistics.fmean(row[key] for row in rows) for key in KEYS]
    page = (DOCS / "results" / "pairs.md").read_text(encoding="utf-8")
    assert [row["pair"] for row in rows] == list(range(100))
    assert f"| {path.stem} | {' | '.join(f'{mean:.3f}' for mean in means)} |" in page
    for row in rows[:5]:
        found = rouge_score(row["prediction"], row["reference"], rouge_keys=KEYS)
        assert [row[key] for key in KEYS] == pytest.approx([float(found[f"{key}_fmeasure"]) for key in KEYS], abs=1e-4)


def report(runs, folder, *flags):
    perplexity_report.main([*map(str, runs), "--output", str(folder), *flags])
    return (folder / "perplexity.md").read_text(encoding="utf-8")


def test_the_page_of_language_models_has_the_table_of_its_probes():
    with open(DOCS / "results" / "lm_25m_probes.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    page = (DOCS / "results" / "lm.md").read_text(encoding="utf-8")
    for run in list(rows[0])[3:]:
        cells = []
        for first, last in ((701, 2400), (2401, 3200), (3201, 4000)):
            both = [(row[run], row["sliding_window"]) for row in rows if first <= int(row["step"]) <= last]
            apart = [float(mine) - float(other) for mine, other in both if mine]
            cells.append(f"{statistics.median(apart):+.3f}" if apart else "")
        assert f"| {run} | {' | '.join(cells)} |" in page
