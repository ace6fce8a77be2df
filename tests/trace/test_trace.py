"""What a model retrieves: the same in segments as in one forward, counted by hand; by a command and by a callback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gca_lit.attention import FullAttention, GroupedCrossAttention
from gca_lit.callbacks import RetrievalTrace
from gca_lit.checkpoints.export import main as export
from gca_lit.cli import main as run_cli
from gca_lit.data.tokenizers import ByteTokenizer
from gca_lit.memory import HostStore
from gca_lit.model import DecoderConfig
from gca_lit.module import CausalLM
from gca_lit.trace import __main__ as command
from gca_lit.trace.selections import chunk_texts, find_references, measure, measure_references, trace
from tests.cli.conftest import TINY
from tests.trace.test_page import IDS, WEIGHTS, found, page_data

SIZE = DecoderConfig(width=16, heads=2, kv_heads=2, layers=3, mlp_width=16)
decode = ByteTokenizer().decode


def tokens(text: str) -> Tensor:
    return torch.tensor(ByteTokenizer().encode(text))


@pytest.fixture
def model() -> CausalLM:
    """Two groups, chunks of 4."""
    torch.manual_seed(0)
    backend = GroupedCrossAttention(chunk_size=4, window=10, top_k=3, groups=2, lower_layers=1, encoder_layers=1)
    return CausalLM(backend, 257, SIZE).double().eval()


@pytest.mark.parametrize("segment", [4, 12, 20, 1000])
def test_selections_are_those_of_one_forward(model: CausalLM, segment: int) -> None:
    text = "It was a dark and stormy night; the rain fell in torrents."  # 58 bytes: the last chunk is not whole
    with torch.no_grad():
        step = model.step(tokens(text)[None], model.new_state(1, HostStore()))
    found = trace(model, tokens(text), decode, segment, HostStore())
    assert found.ids.shape == (2, 15, 3) and (found.tokens, found.chunk_size, found.window) == (58, 4, 2)
    for group, (ids, weights) in enumerate(step.selections):
        assert torch.equal(found.ids[group], ids[0])
        torch.testing.assert_close(found.weights[group], weights[0].float())
    assert (found.ids[:, :2] == -1).all() and (found.ids[:, 2:, 0] >= 0).all()
    assert (found.ids < (torch.arange(15)[:, None] - 1).clamp(min=0)).all()
    assert "".join(found.texts) == text


def test_selections_when_the_last_chunk_is_whole(model: CausalLM) -> None:
    found = trace(model, tokens("abcd" * 5), decode, 8, HostStore())
    assert found.ids.shape == (2, 5, 3) and found.texts == ["abcd"] * 5


def test_what_cannot_be_traced(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="the backend full retrieves nothing"):
        trace(CausalLM(FullAttention(), 257, SIZE), tokens("ab"), decode, 8, HostStore())
    with pytest.raises(ValueError, match="no tokens"):
        trace(model, tokens(""), decode, 8, HostStore())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_characters_are_shown_whole_where_they_begin(size: int) -> None:
    text = "aé漢\U0001f680b漢漢c\ufffdd"
    parts = chunk_texts(tokens(text).tolist(), size, decode)
    assert "".join(parts) == text and len(parts) == -(-len(text.encode()) // size)
    assert chunk_texts(list("a漢b".encode()), 2, decode) == ["a漢", "", "b"]
    assert chunk_texts([97, 255, 98, 99], 2, decode) == ["a\ufffdb", "c"]  # no character: it ends nowhere


def test_measures() -> None:
    """Chunks 3, 4 and 5 could look beyond a window of 2 chunks; only chunk 4 gives it all its weight."""
    (one,) = measure(found(IDS, WEIGHTS, ["text"] * 6))
    half, other = -torch.tensor(0.5).log(), -0.25 * torch.tensor(0.25).log() - 0.75 * torch.tensor(0.75).log()
    assert one["chunks"] == 4 and one["recent"] == 0
    assert one["recent_weight"] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert one["recent_chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert one["entropy"] == pytest.approx(float(half + other) / 4)
    assert one["entropy_uniform"] == pytest.approx(3 * float(torch.tensor(2.0).log()) / 4)
    assert one["distance"] == pytest.approx((2 + 2.5 + 2 + 2.75) / 4)
    (recent,) = measure(found([[-1], [-1], [0], [1], [2]], [[0.0], [0.0], [1.0], [1.0], [1.0]], ["text"] * 5))
    assert recent["recent"] == recent["recent_weight"] == 1


def test_measures_of_too_short_a_document() -> None:
    (one,) = measure(found([[-1, -1]], [[0.0, 0.0]], ["text"]))
    assert one["chunks"] == 0 and one["recent"] is one["entropy"] is one["distance"] is None
    assert one["references"]["count"] == 0 and one["references"]["found"] is None


def test_references_to_labels() -> None:
    texts = [
        r"\label{a} ",
        r"\label{",
        "",
        r"b}",
        r"as \ref{a}, \eqref{b}; \ref{a}",
        r"\ref{none} \pageref{a}",
        r"\ref{c}",
    ]
    texts += [r"\label{c}"]
    assert find_references(texts) == [(4, 0), (4, 1), (6, 7)]
    ids = torch.tensor([[-1, -1], [-1, -1], [0, -1], [0, 1], [2, 0], [1, 3], [0, 1], [0, 1]])
    counted = measure_references(ids, 2, [(4, 0), (4, 1), (5, 0), (5, 3), (7, 1), (6, 7)])
    # Of 4 -> 0 and 1, 5 -> 0 and 7 -> 1 the label lies before the window; chunk 4 selects 0, chunk 7 selects 1.
    assert counted["count"] == 4 and counted["found"] == 2 / 4
    assert counted["found_next"] == 2 / 3  # chunk 5 selects 1, chunk 6 selects 0, and behind chunk 7 there is none
    assert counted["chance"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 4 + 2 / 6) / 4)
    assert counted["nearest"] == 2 / 4  # 1 and 0 for chunk 4, 2 and 1 for chunk 5, 4 and 3 for chunk 7


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[str, Path]:
    """The configuration of a tiny run, and its directory with a checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("trained")
    config, run = folder / "tiny.yaml", folder / "run"
    config.write_text(TINY.format(shards=shards, run=run), encoding="utf-8")
    run_cli(["fit", "--config", str(config)])
    return str(config), run


@pytest.fixture
def trace_command(trained: tuple[str, Path], tmp_path: Path) -> Callable[..., int]:
    """trace_command(*flags): the exit code of a trace of a small document to page.html."""
    document = tmp_path / "naïve.txt"
    document.write_text("A naïve \\label{a} text. " * 5 + "See \\ref{a}.", encoding="utf-8")
    config, run = trained

    def call(*flags: str) -> int:
        checkpoint = str(run / "checkpoints" / "last-step=2.ckpt")
        fixed = ["--config", config, "--ckpt_path", checkpoint, "--document", str(document)]
        return command.main([*fixed, "--output", str(tmp_path / "page.html"), *flags])

    return call


def test_command(trace_command: Callable[..., int], trained: tuple[str, Path], tmp_path: Path, capsys) -> None:
    before = sorted(trained[1].rglob("*"))
    assert trace_command("--length", "64") == 0
    out, err = capsys.readouterr()
    assert "chunks with a selection: 14" in out and out.endswith("page.html\n") and err == ""
    data = page_data((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(data["texts"]) == 16 and data["texts"][1] == "ïve"
    results = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert (results["document"], results["tokens"], results["global_step"]) == ("naïve.txt", 64, 2)
    assert {"checkpoint_sha256", "command", "commit", "hardware", "versions", "precision", "window"} <= results.keys()
    assert trace_command("--length", "9") == 0 and "chunks with a selection: 1\n" in capsys.readouterr().out
    assert trace_command("--ckpt_path", "last") == 0
    assert "references to labels before the window: 1" in capsys.readouterr().out
    assert sorted(trained[1].rglob("*")) == before  # the run is as it was


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--document", "none.txt"], "there is no file none.txt"),
        (["--output", "page.pdf"], "--output page.pdf must end in .html"),
        (["--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (["--length", "0"], "--length must be at least 1 token, got 0"),
        (["--length", "3"], "3 tokens are too few: with chunks of 4, nothing is retrieved before token 9"),
        (["--length", "8"], "8 tokens are too few"),
        (["--group", "1"], "there is no retrieval group 1"),
        (["--model.attention", "FullAttention"], "the backend full retrieves nothing"),
        (["--model.decoder.layers", "3"], "decoder.layers"),
        (["--model.decoder.heds", "3"], "there is no setting"),
    ],
)
def test_wrong_commands(trace_command: Callable[..., int], flags: list[str], message: str, capsys, tmp_path) -> None:
    assert trace_command(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.glob("page*"))


def test_weights_alone(trace_command: Callable[..., int], trained: tuple[str, Path], tmp_path: Path) -> None:
    assert trace_command() == 0
    expected = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    file = str(tmp_path / "tiny.safetensors")
    export([str(trained[1] / "checkpoints" / "last-step=2.ckpt"), "--output", file, "--dtype", "float32"])
    assert trace_command("--ckpt_path", file) == 0
    results = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert (results["global_step"], results["groups"]) == (2, expected["groups"])


@pytest.mark.parametrize("name", ["d.html", "d.json", "d.png", "d.html.part"])
def test_a_document_is_not_overwritten(trace_command: Callable[..., int], tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / name).write_text("A text of its own.", encoding="utf-8")
    assert trace_command("--document", str(tmp_path / name), "--output", str(tmp_path / "d.html")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name} is an input" in line
    assert [path.name for path in tmp_path.glob("d.*")] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "A text of its own."


def test_a_configuration_is_not_overwritten(trace_command: Callable[..., int], tmp_path: Path, capsys) -> None:
    (tmp_path / "d.json").write_text('{"seed_everything": 2}', encoding="utf-8")
    assert trace_command("--config", str(tmp_path / "d.json"), "--output", str(tmp_path / "d.html")) == 2
    assert f"{tmp_path / 'd.json'} is an input" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("\ufeffé\ufeff", encoding="utf-8")
    assert decode(command.read_document(tmp_path / "d.txt", ByteTokenizer(), None).tolist()) == "é\ufeff"
    (tmp_path / "d.txt").write_bytes("\ufeffa".encode() + b"\xff")
    with pytest.raises(ValueError, match=r"at byte 4$"):
        command.read_document(tmp_path / "d.txt", ByteTokenizer(), None)
    (tmp_path / "d.txt").write_text("\ufeff", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        command.read_document(tmp_path / "d.txt", ByteTokenizer(), None)


def test_an_interrupt_ends_quietly(trace_command: Callable[..., int], monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert trace_command() == 130 and capsys.readouterr() == ("", "")


def test_command_without_a_configuration(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--ckpt_path", "a", "--document", "b", "--output", "c.html"])
    assert stop.value.code == 2 and "--config FILE" in capsys.readouterr().err


def test_help_names_the_configuration(capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert "trace --config FILE" in usage and "--config FILE is required" in " ".join(rest.split())


def test_callback(trained: tuple[str, Path], tmp_path: Path) -> None:
    config, run = trained
    callback = ["--trainer.callbacks+=RetrievalTrace", "--trainer.callbacks.length=100"]
    here = ["--trainer.default_root_dir", str(tmp_path)]
    run_cli(
        ["validate", "--config", config, "--ckpt_path", str(run / "checkpoints" / "last-step=2.ckpt"), *here, *callback]
    )
    results = json.loads((tmp_path / "retrieval_trace" / "step=2.json").read_text(encoding="utf-8"))
    assert (results["tokens"], results["global_step"], results["document"]) == (
        100,
        2,
        "document 0 of the validation split",
    )
    often = ["--trainer.max_steps=4", "--trainer.val_check_interval=1", "--trainer.callbacks.during_fit_every=2"]
    run_cli(["fit", "--config", config, *here, *callback, *often])
    pages = sorted(path.name for path in (tmp_path / "retrieval_trace").glob("*.html"))
    assert pages == ["step=2.html", "step=4.html"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.attention", "SlidingWindow", "--model.attention.window", "8"], "sliding_window retrieves nothing"),
        (["--trainer.callbacks.document=2"], "there is no document 2"),
        (["--trainer.callbacks.length=0"], "length must be at least 1, got 0"),
    ],
)
def test_callback_refuses_before_anything_runs(trained, tmp_path, capsys, flags: list[str], message: str) -> None:
    fixed = ["--config", trained[0], "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run_cli(
            ["fit", *fixed, "--trainer.callbacks+=RetrievalTrace", "--trainer.callbacks.during_fit_every=1", *flags]
        )
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_callback_settings() -> None:
    with pytest.raises(ValueError, match="document must be at least 0"):
        RetrievalTrace(document=-1)
