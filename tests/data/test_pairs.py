"""Pairs of documents and targets: what rows are made of them, and which are refused or cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.mixture import Mixture
from gca_lit.data.pairs import Pairs, PairSet, PairTask
from gca_lit.data.prepare import prepare
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.tasks.base import IGNORED

ROWS = [{"document": f"document {'o' * i}", "summary": f"s{i}" + "u" * (i % 3)} for i in range(20)]
TOKENIZER = ByteTokenizer()
SEPARATOR = " => "


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The directory of prepared pairs; the longest has 28 (document) + 4 + 4 (target) + 1 tokens."""
    return prepared(tmp_path / "pairs", ROWS)


def prepared(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([str(file)], str(folder), text_column="document", target_column="summary")
    return str(folder)


def pair_set(folder: str, **settings: Any) -> PairSet:
    settings = {"separator": SEPARATOR, "max_length": 64, **settings}
    return PairSet(ShardReader(folder), Pairs(folder, folder, **settings), TOKENIZER.encode(settings["separator"]))


def pair_task(folder: str, **settings: Any) -> PairTask:
    task = PairTask(Pairs(folder, folder, separator=SEPARATOR, **settings), seed=3)
    task.pairs = pair_set(folder, **settings)
    return task


def text(tokens: torch.Tensor) -> str:
    return TOKENIZER.decode(tokens.tolist())


def test_prompts_and_targets(folder: str) -> None:
    pairs = pair_set(folder)
    assert len(pairs) == 20 and pairs.longest_prompt == len(ROWS[-1]["document"] + SEPARATOR)
    assert pairs.longest == 28 + 4 + 5
    for number, row in enumerate(ROWS):
        assert text(pairs.prompt(number)) == row["document"] + SEPARATOR
        assert text(pairs.target(number)) == row["summary"] and pairs.target(number)[-1] == TOKENIZER.eos
        tokens, targets = pairs.asked(number)
        whole = torch.cat((pairs.prompt(number), pairs.target(number)))
        asked = targets[0] != IGNORED
        assert tokens[0].equal(whole[:-1]) and targets[0, asked].equal(pairs.target(number))
        assert targets[0, asked].equal(whole[1:][asked])


def test_a_row_is_pairs_then_text_and_asks_for_their_targets(folder: str) -> None:
    task, filler = pair_task(folder, max_length=64), torch.full((200,), ord("#"))
    for index in range(30):
        row = task.row(200, index, filler)
        whole = "".join(chr(token) if token < 256 else "\0" for token in row.tokens.tolist())
        *pairs, rest = whole.split("\0")
        assert len(pairs) >= 3 and set(rest) <= {"#"} and row.answer[1] == len(whole) - len(rest)
        wanted = torch.full((200,), -100)
        at = 0
        for pair in pairs:
            document, summary = pair.split(SEPARATOR)
            assert {"document": document, "summary": summary} in ROWS
            begin, at = at + len(document + SEPARATOR), at + len(pair) + 1
            wanted[begin - 1 : at - 1] = row.tokens[begin:at]
        assert row.targets.equal(wanted)
    assert task.row(200, 7, filler).tokens.equal(pair_task(folder, max_length=64).row(200, 7, filler).tokens)


def test_every_pair_is_drawn(folder: str) -> None:
    task, filler = pair_task(folder, max_length=64), torch.zeros(64, dtype=torch.int64)
    seen = {text(task.row(64, index, filler).tokens).split(SEPARATOR)[0] for index in range(300)}
    assert seen == {row["document"] for row in ROWS}


def test_cut_from_the_left(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pairs = pair_set(folder, max_length=30, too_long="cut")
    long = [row for row in ROWS if len(row["document"] + SEPARATOR + row["summary"]) + 1 > 30]
    assert f"{len(long)} of 20 documents are cut from the left" in caplog.text
    for number, row in enumerate(ROWS):
        room = 30 - len(SEPARATOR + row["summary"]) - 1
        assert text(pairs.prompt(number)) == row["document"][-room:] + SEPARATOR
    assert max(len(pairs.prompt(i)) + len(pairs.target(i)) for i in range(20)) == 30


def test_long_pairs_are_refused(folder: str) -> None:
    assert len(pair_set(folder, max_length=37)) == 20
    with pytest.raises(
        ValueError, match=r"1 of 20 pairs of .*\.max_length = 36, the longest has 37 tokens: raise it, or"
    ):
        pair_set(folder, max_length=36)
    with pytest.raises(ValueError, match=r"a target of .* has 10 tokens with its separator, more than .* = 9: raise"):
        pair_set(folder, max_length=9, too_long="cut")


def test_a_pair_without_document_or_target_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing: list[dict[str, Any]] = [
        {"document": "a document", "summary": ""},
        {"document": None, "summary": "a summary"},
    ]
    with caplog.at_level("INFO"):
        pairs = pair_set(prepared(tmp_path / "some", [nothing[0], *ROWS[:3], *nothing, ROWS[3]]))
    assert "3 of 7 pairs have no document or no target, and are left out" in caplog.text
    assert [text(pairs.prompt(i)) for i in range(len(pairs))] == [row["document"] + SEPARATOR for row in ROWS[:4]]
    assert [text(pairs.target(i)) for i in range(len(pairs))] == [row["summary"] for row in ROWS[:4]]
    with pytest.raises(ValueError, match="2 of 2 pairs have no document or no target: prepare others"):
        pair_set(prepared(tmp_path / "none", nothing))


def test_a_data_set_without_pairs(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"train holds no pairs: run .* --target-column NAME --output .*train"):
        pair_set(write())


def module(write: Callable[..., str], folder: str, **settings: Any) -> ArrowDataModule:
    pairs = Pairs(folder, folder, separator=SEPARATOR, max_length=64)
    return ArrowDataModule(write(), write("val"), 64, batch_size=4, **{"pairs": pairs, **settings})


@pytest.mark.parametrize("loss", ["answers", "all"])
def test_batches(write: Callable[..., str], folder: str, loss: Any) -> None:
    data = module(write, folder, mixture=Mixture(text=0.0, loss=loss), num_workers=1)
    data.setup("fit")
    assert data.task_names == ["pairs"] and data.tasks("end", 1) == []
    batch = next(iter(data.train_dataloader()))
    data.teardown("fit")
    assert batch.task.eq(0).all()
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        asked = targets != -100
        assert asked[:-1].all() == (loss == "all")
        assert targets[:-1][asked[:-1]].equal(tokens[1:][asked[:-1]])
        assert "=>" in text(tokens) and "s" in text(targets[asked])


def test_settings_that_do_not_fit(write: Callable[..., str], folder: str, tmp_path: Path) -> None:
    rows = Mixture(text=0.0)
    with pytest.raises(ValueError, match="rows of 64 tokens are too short for task pairs, which takes 65"):
        module(write, folder, mixture=rows, pairs=Pairs(folder, folder, max_length=65)).setup("fit")
    with pytest.raises(ValueError, match=r"pairs\.separator must not be empty"):
        Pairs(folder, folder, separator="")
    with pytest.raises(ValueError, match=r"pairs\.max_length must be at least 1 token, got -3"):
        Pairs(folder, folder, max_length=-3)
    data = module(write, folder, mixture=rows)
    with pytest.raises(ValueError, match=r"data\.pairs\.test is not set"):
        data.pairs("test")
    lost = tmp_path / "lost"
    remedy = (
        f"run python -m gca_lit.data.prepare --input FILES --tokenizer TOKENIZER --target-column NAME --output {lost}"
    )
    for fault in ("does not exist", "is no finished data set"):
        with pytest.raises(FileNotFoundError, match=f"^data set {lost} {fault}: {remedy}$"):
            module(write, folder, mixture=rows, pairs=Pairs(str(lost), folder, max_length=64)).setup("fit")
        lost.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="no task to draw"):
        module(write, folder, mixture=rows, pairs=None)
