"""The page of a trace: what is in the file, and what a browser shows of it."""

import errno
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gca_lit.trace import page as trace_page
from gca_lit.trace.selections import Trace, measure
from gca_lit.whole_file import NotSaved, WholeFile
from tests.browser import BROWSER, Page, browser

ABOUT = {"backend": "gca", "global_step": 12}
IDS = [[-1, -1], [-1, -1], [0, -1], [0, 1], [2, 0], [3, 2]]
WEIGHTS = [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]


def found(ids: list[list[int]], weights: list[list[float]], texts: list[str]) -> Trace:
    """One group, chunks of 4."""
    return Trace(texts, torch.tensor([ids]), torch.tensor([weights]), 4 * len(texts), 4, 2)


def page_data(text: str) -> Any:
    """What the page hands to its script."""
    (inert,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(inert)


EVIL = ["</script><script>alert(1)</script>", "<b>& \u2028\u2029 $DATA $TITLE", "漢\U0001f680\x00\"'\\"]


def test_the_page_holds_any_text_and_asks_for_nothing(tmp_path: Path) -> None:
    one = found([[-1, -1], [-1, -1], [0, -1]], [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], EVIL)
    path = tmp_path / "new" / "page.html"
    results = trace_page.save(one, "<i>$DATA</i>.tex", ABOUT, path)
    text = path.read_text(encoding="utf-8")
    data = page_data(text)
    assert data["texts"] == EVIL and data["groups"][0]["weights"] == [0, 0, 0, 0, 10_000, 0]
    assert text.count("</script>") == 2 and "<i>" not in text and html.escape("<i>$DATA</i>") in text
    assert not re.search(r"https?:|src=|href=|@import|url\(|fetch\(|innerHTML", text)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    assert results["groups"][0]["chunks"] == 1 and results["backend"] == "gca"
    assert path.with_suffix(".png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "group", "message"), [("page.json", 0, "end in .html"), ("p.html", 1, "no retrieval group 1")]
)
def test_what_cannot_be_saved(tmp_path: Path, name: str, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace_page.save(found(IDS, WEIGHTS, ["text"] * 6), "t", ABOUT, tmp_path / name, group)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails_at", range(3))
def test_a_full_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    written = []

    def write(file: WholeFile, data: bytes, write: Any = WholeFile.write) -> int:
        if len(written) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(file.path)
        return write(file, data)

    monkeypatch.setattr(WholeFile, "write", write)
    with pytest.raises(NotSaved, match=r"p\.\w+ could not be written: No space left on device; make room"):
        trace_page.save(found(IDS, WEIGHTS, ["text"] * 6), "t", ABOUT, tmp_path / "p.html")
    assert list(tmp_path.iterdir()) == []


def test_one_weight_of_a_hundred_is_drawn_in_full_strength() -> None:
    weights = torch.cat((torch.full((3, 33), 0.02), torch.zeros(3, 40), torch.tensor([[0.5], [0.04], [0.03]])), 1)
    assert trace_page.strong_weight(weights[None]) == pytest.approx(0.04)
    assert trace_page.strong_weight(torch.ones(1, 9, 1)) == 1 and trace_page.strong_weight(torch.zeros(1, 3, 2)) == 1


def test_cells_of_the_picture() -> None:
    grid = trace_page.selection_grid(torch.tensor(IDS), torch.tensor(WEIGHTS))
    assert grid.shape == (6, 6) and grid[0, 3] == 0.5 and grid[2, 5] == 0.75 and grid[3, 5] == 0.25 and grid[5, 3] == 0
    N = 4 * trace_page.BINS
    ids, weights = torch.full((N, 2), -1), torch.zeros(N, 2)
    ids[8:10, 0], weights[8, 0], weights[9, 0] = torch.tensor([4, 5]), 0.75, 0.25
    grid = trace_page.selection_grid(ids, weights)
    assert grid.shape == (trace_page.BINS, trace_page.BINS) and grid[1, 2] == 0.75 and grid.sum() == 0.75


@pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    one = found(IDS, WEIGHTS, ["first", "second", "third <b>", "fourth", "fifth", "sixth"])
    two = Trace(one.texts, torch.cat((one.ids, one.ids - 1)), one.weights.repeat(2, 1, 1), 24, 4, 2)
    path = tmp_path / "page.html"
    trace_page.save(two, "a document", ABOUT, path)

    with browser(tmp_path / "profile") as view:
        view.open(path.as_uri() + "#chunk=5")
        assert kinds(view) == {"current": "sixth", "rank0": "fourth", "rank1": "third <b>"}
        cards = view.evaluate("document.getElementById('selected').textContent")
        assert "1 chunk 325.0 % \u00b7 2 back" in cards and "2 chunk 275.0 % \u00b7 3 back" in cards
        view.press("ArrowLeft")
        assert kinds(view) == {"current": "fifth", "rank0": "third <b>", "rank1": "first"}
        view.press("2")  # the second one that is selected
        assert kinds(view) == {"current": "first"}
        assert "no chunk lies far enough back" in view.evaluate("document.body.innerText")
        view.evaluate("document.querySelector('[data-chunk=\"3\"]').click()")
        assert kinds(view) == {"current": "fourth", "rank0": "first", "rank1": "second"}
        view.evaluate("document.querySelector('[data-group=\"1\"]').click()")
        assert kinds(view) == {"current": "fourth", "rank0": "first"}
        assert view.evaluate("location.hash") == "#chunk=3&group=1"
        view.evaluate("jump.value = 99; jump.dispatchEvent(new Event('change'))")  # beyond the end is the end
        assert kinds(view)["current"] == "sixth" and view.evaluate("forth.disabled && !back.disabled")
        box = view.evaluate("map.scrollIntoView({block: 'center'}), map.getBoundingClientRect().toJSON()")
        view.click(box["left"] + 48 + (box["width"] - 54) * 2.5 / 6, box["top"] + box["height"] / 2)
        assert kinds(view)["current"] == "third <b>"


def kinds(view: Page) -> dict[str, str]:
    """The texts that are set off, by how: before and behind them the text is plain."""
    spans = view.evaluate(
        "[...document.querySelectorAll('#text span')].map(span => [span.className, span.textContent])"
    )
    return {kind: text for kind, text in spans if kind not in ("", "after")}


@pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium")
def test_a_long_document_in_a_browser(tmp_path: Path) -> None:
    """Of 40,000 chunks only those that can be seen become elements."""
    N = 40_000
    ids = (torch.arange(N)[:, None] * torch.tensor([0.9, 0.5]) - 2).long().clamp(min=-1)
    long = Trace(["words "] * N, ids[None], torch.full((1, N, 2), 0.5), 4 * N, 4, 2)
    trace_page.save(long, "long", ABOUT, tmp_path / "page.html")
    with browser(tmp_path / "profile") as view:
        view.open((tmp_path / "page.html").as_uri() + "#chunk=20000")
        assert view.evaluate("current") == 20_000 and view.evaluate("document.querySelectorAll('*').length") < 1000
        shades = "map.getContext('2d').getImageData(0, 0, map.width, map.height).data.filter((_, i) => i % 4 == 3)"
        assert view.evaluate(f"{shades}.filter(shade => shade > 0).length") > 1000


def test_lines_of_a_document_in_which_nothing_is_selected() -> None:
    (one,) = measure(found([[-1, -1]], [[0.0, 0.0]], ["text"]))
    assert ("distance, mean", "none") in trace_page.lines(one, 2) and all(v for _, v in trace_page.lines(one, 2))
