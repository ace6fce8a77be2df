"""Tables of results."""

import pytest

from gca_lit.results import tables
from gca_lit.tasks.metrics import wilson
from tests.result_rows import row


def test_table_pools_depths_and_tells_reasons():
    rows = [row(32, 10, depth=0.0), row(32, 5, depth=1.0), row(128, None, backend="full")]
    _, _, pooled, skipped = tables.table(rows).splitlines()
    low, high = wilson(15, 20)
    assert f"| gca | 0.750 | 20 | {low:.3f} to {high:.3f} | 1,234 | 2.0 KiB | 3.0 GiB | 0 B |" in pooled
    assert "| 128 | 4 | full | max_length: this backend takes at most 64 tokens, not 128 |" in skipped


def test_summary_has_a_column_for_each_length():
    rows = [row(32, 10), row(64, 9, n=10), row(32, 5, task="riddle"), row(128, None, task="riddle")]
    head, _, needle, riddle = tables.summary(rows).splitlines()
    assert head == "| task | 32 (1x) | 64 (2x) | 128 (4x) |"
    low, high = wilson(9, 10)
    assert needle == f"| single_needle | 1.000 [0.72, 1.00] of 10 | 0.900 [{low:.2f}, {high:.2f}] of 10 |  |"
    assert riddle == "| riddle | 0.500 [0.24, 0.76] of 10 |  | max_length |"


def test_summary_names_backends_when_they_differ():
    head, _, first, second = tables.summary([row(32, 10), row(32, 5, backend="full")]).splitlines()
    assert head == "| backend | 32 (1x) |"
    assert first.startswith("| gca | 1.000") and second.startswith("| full | 0.500")
    both = tables.summary([row(32, 10), row(32, 5, backend="full", task="riddle")])
    assert "| riddle, full | 0.500" in both and "| single_needle, gca | 1.000" in both


def test_summary_of_rows_without_questions_is_empty():
    assert tables.summary([row(32, None, task="perplexity", placement=None, status="done", n=10)]) == ""


def test_tasks_of_several_settings_are_told_apart_and_not_pooled():
    easy, hard = ({"keys": keys, "every": 1} for keys in (6, 32))
    rows = [row(32, 10, task_settings=easy), row(32, 4, task_settings=hard), row(32, 7, task="riddle")]
    told = tables.tell_tasks_apart(rows)
    assert [one["task"] for one in told] == ["single_needle (keys 6)", "single_needle (keys 32)", "riddle"]
    assert tables.tell_tasks_apart(rows[:1]) == rows[:1]
    assert "| single_needle (keys 32) | 0.400" in tables.summary(told)


def test_table_of_perplexity():
    perplexity = row(32, None, task="perplexity", placement=None, status="done", reason=None, n=10, perplexity=8.5)
    assert "| gca | perplexity 8.50 | 10 |" in tables.table([perplexity])


@pytest.mark.parametrize(
    ("length", "text"),
    [(500, "500"), (1024, "1K"), (16_384, "16K"), (16_380, "16K"), (16_384_000, "16M"), (1 << 20, "1M"), (9_000, "9K")],
)
def test_lengths_as_people_say_them(length, text):
    assert tables.short_length(length) == text
