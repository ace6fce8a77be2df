import pytest
import torch

from gca_lit.data.mixture import Mixture, RowMaker
from gca_lit.tasks.base import Task


def bound(task: Task, name: str = "mark") -> Task:
    copy = task.bind(1, lambda text: list(text.encode()), None)
    copy.name = name
    return copy


def test_shares(mark_task: Task) -> None:
    tasks = [bound(mark_task), bound(mark_task, "other"), bound(mark_task, "never")]
    rows = RowMaker(Mixture(text=0.4, weights={"mark": 2.0, "never": 0.0}), tasks, seed=5)
    drawn = torch.tensor([rows.choose(64 * i, 64) for i in range(20_000)])
    shares = torch.bincount(drawn + 1, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.4, 0.2, 0.0]), rtol=0, atol=0.015)


def test_text_and_task_rows(mark_task: Task) -> None:
    text = torch.arange(100, 117)
    tokens, targets, task = RowMaker(Mixture(), [bound(mark_task)], seed=1)(3, text)
    assert task == -1 and tokens.equal(text[:-1]) and targets.equal(text[1:])
    tokens, targets, task = RowMaker(Mixture(text=0), [bound(mark_task)], seed=1)(3, text)
    assert task == 0 and tokens[0] == tokens[-1] == 3 and (targets != -100).sum() == 1
    tokens, targets, task = RowMaker(Mixture(text=0, loss="all"), [bound(mark_task)], seed=1)(3, text)
    assert targets[:-1].equal(tokens[1:]) and targets[-1] == -100


def test_only_tasks_that_are_drawn_must_fit(mark_task: Task) -> None:
    RowMaker(Mixture(text=0.5), [bound(mark_task)], 1).check_length(8)
    RowMaker(Mixture(), [bound(mark_task)], 1).check_length(7)
    with pytest.raises(ValueError, match="rows of 7 tokens are too short for task mark, which takes 8"):
        RowMaker(Mixture(text=0.5), [bound(mark_task)], 1).check_length(7)


def test_the_share_of_text_may_grow_with_the_rows(mark_task: Task) -> None:
    mixture = Mixture(text=[(16, 0.0), (32, 0.5), (128, 1.0)])
    rows = RowMaker(mixture, [bound(mark_task)], seed=5)
    for length, share in ((8, 0), (16, 0), (31, 0), (32, 0.5), (127, 0.5), (128, 1), (1000, 1)):
        drawn = [rows.choose(length * i, length) < 0 for i in range(4000)]
        assert abs(sum(drawn) / 4000 - share) <= (0.03 if share == 0.5 else 0)
    short = RowMaker(Mixture(text=[(1, 1.0), (8, 0.0)]), [bound(mark_task)], 1)
    short.check_length(7)  # text
    assert short(3, torch.arange(8))[2] == -1 and short(3, torch.arange(9))[2] == 0
    for table in ([], [(-5, 0.1)], [(8, 0.5), (8, 1.0)], [(8, 0.5), (4, 1.0)]):
        with pytest.raises(ValueError, match=r"mixture\.text must be a share, or name row lengths that grow"):
            Mixture(text=table)
    with pytest.raises(ValueError, match=r"mixture\.text is a share of the rows"):
        Mixture(text=[(8, 0.5), (16, 1.5)])


def test_errors(mark_task: Task) -> None:
    with pytest.raises(ValueError, match="share of the rows"):
        Mixture(text=1.5)
    with pytest.raises(ValueError, match="weights names typo"):
        RowMaker(Mixture(weights={"typo": 1.0}), [bound(mark_task)], 1)
    with pytest.raises(ValueError, match="no task to draw"):
        RowMaker(Mixture(text=0.5), [], 1)
    with pytest.raises(ValueError, match="no task to draw"):
        RowMaker(Mixture(text=0.5, weights={"mark": 0.0}), [bound(mark_task)], 1)
