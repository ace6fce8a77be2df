"""The doctor on this machine: the facts it gathers, and the command itself on tiny configurations."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gca_lit.callbacks import budget
from gca_lit.doctor import __main__ as doctor
from gca_lit.doctor import rehearsal
from gca_lit.doctor.requirements import GPU, Finding
from gca_lit.units import GIB

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")

# --- the facts ---


def test_the_ranges_are_those_of_pyproject() -> None:
    software = doctor.look_at_software()
    assert any(need.startswith("triton") for need in software.needs)
    assert software.packages["torch"].startswith(torch.__version__.partition("+")[0])
    assert software.kernels == software.root / "kernels"


def test_limits_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doctor.look_at_machine(())
    assert machine.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    monkeypatch.setattr(doctor, "total_bytes", lambda: 512_000)
    monkeypatch.setattr(doctor, "available_bytes", lambda: None)
    machine = doctor.look_at_machine(())
    assert (machine.memory, machine.available) == (512_000, None)


def test_gpus_and_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    about = SimpleNamespace(name="NVIDIA H200", total_memory=140 * GIB, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((100 + number) * GIB, 140 * GIB))
    assert doctor.find_gpus() == tuple(GPU("NVIDIA H200", 140 * GIB, free * GIB, (9, 0)) for free in (100, 101))
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor.look_at_machine(()).driver == "580.65.06"
    smi.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert doctor.look_at_machine(()).driver is None


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "file").chmod(0o755)
    assert rehearsal.find_folder(tmp_path / "runs" / "new").writable
    assert not rehearsal.find_folder(tmp_path / "file" / "run").writable
    if Path("/proc/mounts").exists():
        assert rehearsal.find_folder(Path("/proc/self")).kind == "proc"


@pytest.mark.parametrize("make", ["AdamW", "AdamW fused", "SGD", "Adagrad"])
def test_bytes_of_an_optimizer(make: str) -> None:
    name, *fused = make.split()
    settings = {"lr": 0.1} | ({"fused": True} if fused else {})

    class Model(torch.nn.Linear):
        def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
            return {"optimizer": getattr(torch.optim, name)(self.parameters(), **settings)}

    real = Model(32, 8)
    optimizer = real.configure_optimizers()["optimizer"]
    real(torch.rand(2, 32)).sum().backward()
    optimizer.step()
    held = [value.nbytes for kept in optimizer.state.values() for value in kept.values()]
    assert rehearsal.optimizer_bytes(Model(32, 8, device="meta")) == sum(held)


# --- the command ---

Command = Callable[..., tuple[int, list[Finding]]]


def of(found: list[Finding], name: str) -> Finding:
    """The one finding of this check."""
    [one] = [one for one in found if one.check == name]
    return one


@pytest.fixture
def demo(shards: Path, tmp_path: Path) -> list[str]:
    """Flags of a run of the demo's model on tiny shards."""
    places = {"train": shards / "train", "val": shards / "val", "test": shards / "val"}
    run = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run")]
    return ["--config", DEMO, *run, *(f"--data.{split}={place}" for split, place in places.items())]


@pytest.fixture
def command(demo: list[str], capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*flags): exit code and findings of the doctor on a run of the demo."""

    def run(*flags: str) -> tuple[int, list[Finding]]:
        code = doctor.main([*demo, *flags, "--json"])
        *lines, verdict = map(json.loads, capsys.readouterr().out.splitlines())
        found = [Finding(**one) for one in lines]
        assert all(one.remedy for one in found if one.status != "ok")
        assert code == any(one.status == "FAIL" for one in found)
        assert ("cannot" in verdict["verdict"]) == bool(code)
        return code, found

    return run


def test_a_run_that_can_work(command: Command, demo: list[str], tmp_path: Path) -> None:
    code, found = command()
    assert code == 0
    assert of(found, "evaluation").found.startswith("512,000 tokens, 1 at once")
    assert "tokens in" in of(found, "data.train").found
    assert not (tmp_path / "run").exists()


def test_text_says_the_same(command: Command, demo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, found = command("--length", "2048")
    assert doctor.main([*demo, "--length", "2048"]) == 0
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.status for one in found]
    assert all(one.check in line for one, line in zip(found, lines, strict=True))
    assert verdict.startswith("This configuration can work here")


@pytest.mark.parametrize(
    "flags, name, words",
    [
        (["--length", "10_000_000_000_000"], "evaluation", "of host memory, has"),
        (["--length_generalization.max_host_bytes", "1_000_000"], "evaluation", "of host memory, has"),
        (["--model.attentoin", "x"], "configuration", "did you mean model.attention?"),
        (["--model.decoder.width", "15"], "configuration", "width 15 is not a multiple of heads 2"),
        (["--data.align", "8"], "configuration", "set data.align to 16"),
        (["--length_generalization.tasks", "[nothing]"], "configuration", "no task nothing"),
        (["--data.val", "nowhere"], "data", "data set nowhere does not exist"),
        (["--data.stages", "[[0, 8]]"], "data", "rows of 8 tokens are too short for task single_needle"),
        (["--trainer.strategy", "fast"], "trainer", "fast"),
        (["--trainer.default_root_dir", f"{DEMO}/run"], "disk", "cannot be written"),
    ],
)
def test_a_run_that_cannot_work(command: Command, flags: list[str], name: str, words: str) -> None:
    code, found = command(*flags)
    finding = of(found, name)
    assert (code, finding.status) == (1, "FAIL") and words in finding.found


def test_muon_under_fsdp_is_refused_as_fit_refuses_it(command: Command) -> None:
    muon = ["--model.optimizer", "gca_lit.muon.Muon"]
    fsdp = "{class_path: lightning.pytorch.strategies.ModelParallelStrategy}"
    divided = ["--trainer.devices", "2", "--trainer.strategy", fsdp]
    assert command(*muon)[0] == command(*divided)[0] == 0
    code, found = command(*muon, *divided)
    said = "model.optimizer: Muon needs whole matrices, which FSDP divides: use torch.optim.AdamW, or DDP"
    assert code == 1 and of(found, "configuration").found == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    code, found = command("--trainer.accelerator", "gpu")
    assert code == 1 and "gpu" in of(found, "trainer").found
    assert of(found, "data.train").status == "ok"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert of(command("--model.attention.impl", "triton")[1], "kernels").status == "FAIL"


def test_a_length_that_the_configuration_itself_refuses(command: Command) -> None:
    full = ["--config", str(ROOT / "configs" / "demo" / "full.yaml")]
    code, found = command(*full)
    assert (code, of(found, "evaluation").status) == (0, "warn")
    code, found = command(*full, "--length", "16384")
    assert (code, of(found, "evaluation").status) == (1, "FAIL")


def test_warnings_of_the_configuration_are_findings(command: Command) -> None:
    code, found = command("--model.attention.top_k", "1")
    assert (code, of(found, "configuration").status) == (0, "warn")
    assert "top_k = 1" in of(found, "configuration").found


def test_needs_are_those_of_the_run(demo: list[str]) -> None:
    machine = replace(doctor.look_at_machine(()), available=GIB)
    cli = rehearsal.Rehearsal(rehearsal.Begun(), ["fit", *demo])
    needs = rehearsal.find_needs(cli, None, machine)
    store = cli.model.kv_bytes(512_000, 1)["store"]
    assert (needs.device, needs.precision, needs.shortage) == ("cpu", "32-true", None)
    short = rehearsal.find_needs(cli, None, replace(machine, available=store)).shortage or ""
    assert "host memory" in short and "--model.store DiskStore needs less" in short
    cli.model.network = None
    cli.model.configure_model()
    assert needs.weights == sum(parameter.nbytes for parameter in cli.model.parameters())
    half = rehearsal.Rehearsal(rehearsal.Begun(), ["fit", *demo, "--trainer.precision", "bf16-mixed"])
    assert rehearsal.find_needs(half, None, machine).precision == "bf16-mixed"
    assert half.model.kv_bytes(512_000, 1)["store"] * 2 == store


def test_needs_on_a_gpu(demo: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli = rehearsal.Rehearsal(rehearsal.Begun(), ["fit", *demo])
    monkeypatch.setattr(type(cli.trainer.strategy), "root_device", torch.device("cuda", 0))
    monkeypatch.setattr(budget, "device_bytes", lambda device: 1 << 20)
    needs = rehearsal.find_needs(cli, None, doctor.look_at_machine(()))
    assert needs.device == "cuda" and "device memory" in (needs.shortage or "")


def test_torch_that_cannot_be_imported(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "find_gpus", broken)
    code, found = command()
    assert code == 1 and "libcudart.so.13" in of(found, "torch").found
    assert of(found, "configuration").found == "was not looked at"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--jsn"], "--jsn is about a configuration"),
        (["fit"], "name it with --config FILE"),
        (["--length", "7"], "name it with --config FILE"),
        (["--config", DEMO, "--length", "0"], "at least 1 token"),
        (["--config", DEMO, "--length", "long"], "--length"),
    ],
)
def test_wrong_command_lines(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(arguments)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))


def process(*arguments: str, path: str = PATHS, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {"PYTHONPATH": path, "PATH": os.defpath}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, encoding="utf-8")


def test_a_malicious_release_is_never_imported(tmp_path: Path) -> None:
    for name in ("lightning", "pytorch_lightning"):
        (tmp_path / name).mkdir()
        code = f"open({str(tmp_path / 'stolen')!r}, 'w')"
        (tmp_path / name / "__init__.py").write_text(code, encoding="utf-8")
    metadata = tmp_path / "lightning-2.6.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: lightning\nVersion: 2.6.3\n", encoding="utf-8")
    done = process("-m", "gca_lit.doctor", "--config", DEMO, path=f"{tmp_path}{os.pathsep}{PATHS}")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("FAIL lightning      2.6.3 is a malicious release")
    assert "FAIL configuration  was not looked at" in done.stdout
    assert not (tmp_path / "stolen").exists()


def test_python_without_packages() -> None:
    done = process("-S", "-m", "gca_lit.doctor")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("FAIL packages       packaging is not installed")
    assert done.stdout.splitlines()[-1] == "gca_lit cannot work here, because of: packages."


def test_names_that_the_terminal_cannot_show() -> None:
    done = process("-m", "gca_lit.doctor", "--config", "größer.yaml", LC_ALL="C.UTF-8", PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert r"FAIL configuration  there is no file gr\xf6\xdfer.yaml" in done.stdout
