import logging
from types import SimpleNamespace

import pytest
import torch

from gca_lit.callbacks.compile_report import CompileReport


def test_every_compilation_is_told_with_the_length_that_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    report, trainer = CompileReport(), SimpleNamespace(global_step=7)
    with caplog.at_level(logging.INFO):
        for length in (8, 8, 16, 8):
            double(torch.ones(length))
            batch = SimpleNamespace(tokens=torch.zeros(1, length))
            report.on_train_batch_end(trainer, None, None, batch, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "step 7: 1 graphs compiled for rows of 8 tokens, 1 since the start",
        "step 7: 1 graphs compiled for rows of 16 tokens, 2 since the start",
    ]
    torch._dynamo.reset()
