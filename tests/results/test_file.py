"""Results survive crashes and tell what is finished; provenance identifies weights."""

import hashlib
import json

import pytest
import torch

from gca_lit import provenance
from gca_lit.results.file import ResultsFile, latest, read_results

POINT = {"task": "a", "placement": "end", "eval_length": 64, "depth": None, "checkpoint_sha256": "x", "seed": 0}


def test_rows_are_kept(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    ResultsFile(path).append({"a": 1})
    again = ResultsFile(path)
    again.append({"a": 2})
    assert again.rows == ResultsFile(path).rows == [{"a": 1}, {"a": 2}]


def test_finished_means_done_for_the_same_point_and_n(tmp_path):
    file = ResultsFile(tmp_path / "rows.jsonl")
    file.append(POINT | {"status": "done", "n": 5})
    file.append(POINT | {"status": "partial", "n": 7})
    assert file.finished(POINT, 5)
    assert not file.finished(POINT, 7) and not file.finished(POINT, 6)
    for change in (
        {"seed": 1},
        {"depth": 0.5},
        {"checkpoint_sha256": "y"},
        {"placement": "chunk"},
        {"k": 4},
        {"split": "test"},
        {"text": "0123456789ab"},
        {"task_settings": {"keys": 6}},
        {"precision": "bf16-mixed"},
    ):
        assert not file.finished(POINT | change, 5)


def test_the_latest_row_of_a_point_counts():
    rows = [POINT | {"n": 1}, POINT | {"seed": 1, "n": 2}, POINT | {"n": 3}]
    assert [row["n"] for row in latest(rows)] == [3, 2]


def test_a_cut_off_line_is_removed_a_broken_one_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    with pytest.warns(UserWarning, match="cut off"):
        file = ResultsFile(path)
    file.append({"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(ValueError, match="damaged"):
        ResultsFile(path)


@pytest.mark.parametrize("content", ["# Words\n", "half a line", '{"answer": "x"}\n', "[1]\n"])
def test_a_file_of_another_kind_is_said_to_be_one_and_stays(tmp_path, content):
    path = tmp_path / "README.md"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"README.md is no results file: name a .jsonl"):
        read_results(path)
    assert path.read_text() == content


def test_reading_changes_nothing(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [POINT | {"backend": "gca"}]
    content = "".join(json.dumps(row) + "\n" for row in rows) + '{"task": "a'
    path.write_text(content)
    assert read_results(path) == rows and path.read_text() == content
    path.write_text('{"a": 1}\n3\n')
    with pytest.raises(ValueError, match=r"rows.jsonl is damaged: a line is no JSON object"):
        read_results(path)


def test_hashes_identify_weights(tmp_path):
    def sha256(**weights: torch.Tensor) -> str:
        return provenance.weights_sha256(weights.items())

    w, b = torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(())
    assert sha256(w=w, b=b) == sha256(b=b, w=torch.ones(3, 2, dtype=torch.bfloat16).T)
    assert len({sha256(w=w, b=b), sha256(w=w, b=b + 1), sha256(w=w.float(), b=b), sha256(w=w.T, b=b)}) == 4
    (tmp_path / "file").write_bytes(b"abc")
    assert provenance.file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_circumstances_are_told():
    assert provenance.hardware() and provenance.command()
    assert torch.__version__.startswith(provenance.versions()["torch"])  # some builds add "+cu130"
    assert provenance.commit() is None or len(provenance.commit().removesuffix("+dirty")) == 40
