"""A row of a results file, for tests of tables and pictures."""

from gca_lit.results.file import Row
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
