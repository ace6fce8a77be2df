"""The backend that README shows keeps the contract of `tests/model` as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from tests.model.backends import decoder, tokens
from tests.model.test_state import in_segments

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def striped():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    return names["Striped"]


@torch.no_grad()
def test_segments_equal_one_forward(striped):
    model, ids = decoder(striped(window=5)), tokens(31)
    hidden, _, _ = in_segments(model, ids, [7, 1, 13, 10], store=None)
    torch.testing.assert_close(hidden, model(ids).hidden, rtol=0, atol=1e-9)


def test_settings_are_told_and_checked(striped):
    assert striped(window=40).describe()["window"] == 40
    with pytest.raises(ValueError, match="window of a layer must be at least 1 row, got -5"):
        striped(window=-5).plan(4)
