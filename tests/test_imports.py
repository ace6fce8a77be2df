"""Who may import whom, and that a CPU needs no triton."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

# Own packages that a package may import besides itself, and installed ones besides the standard library.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "gca_kernels": (set(), {"torch", "triton"}),
    "gca_lit.layers": (set(), {"torch"}),
    "gca_lit.memory": ({"gca_kernels.gather", "gca_lit.whole_file"}, {"torch"}),
    "gca_lit.attention": ({"gca_kernels", "gca_lit.layers", "gca_lit.memory"}, {"torch"}),
    "gca_lit.model": (
        {"gca_kernels.retrieval", "gca_lit.layers", "gca_lit.attention.base", "gca_lit.memory"},
        {"torch"},
    ),
    "gca_lit.tasks": (set(), {"torch", "torchmetrics"}),
    "gca_lit.data": (
        {"gca_lit.arguments", "gca_lit.tasks", "gca_lit.whole_file"},
        {"lightning", "numpy", "pyarrow", "tokenizers", "torch", "tqdm"},
    ),
    "gca_lit.schedule": (set(), set()),
    "gca_lit.muon": (set(), {"torch"}),
    "gca_lit.arguments": (set(), set()),
    "gca_lit.host_memory": (set(), set()),
    "gca_lit.units": (set(), set()),
    "gca_lit.whole_file": (set(), set()),
    "gca_lit.provenance": (set(), {"torch"}),
    "gca_lit.results": (
        {"gca_lit.arguments", "gca_lit.tasks.metrics", "gca_lit.units", "gca_lit.whole_file"},
        {"matplotlib"},
    ),
    "gca_lit.scoring": ({"gca_lit.memory.base", "gca_lit.tasks.base"}, {"torch"}),
    "gca_lit.trace": (
        {"gca_lit.memory.base", "gca_lit.results.plots", "gca_lit.scoring", "gca_lit.whole_file"},
        {"torch"},
    ),
    "gca_lit.answers": ({"gca_lit.model"}, {"torch"}),
    "gca_lit.network": ({"gca_lit.attention.base", "gca_lit.memory", "gca_lit.model"}, {"lightning", "torch"}),
    "gca_lit.checkpoints": (
        {"gca_lit.arguments", "gca_lit.attention.base", "gca_lit.model", "gca_lit.network", "gca_lit.whole_file"},
        {"lightning", "safetensors", "torch"},
    ),
    "gca_lit.module": (
        {
            "gca_lit.answers",
            "gca_lit.attention.base",
            "gca_lit.checkpoints",
            "gca_lit.memory",
            "gca_lit.model",
            "gca_lit.network",
            "gca_lit.schedule",
            "gca_lit.scoring",
        },
        {"lightning", "torch", "torchmetrics"},
    ),
    "gca_lit.generation.sampling": ({"gca_lit.scoring"}, {"torch"}),
    "gca_lit.generation": (
        {
            "gca_lit.checkpoints.architecture",
            "gca_lit.data.tokenizers",
            "gca_lit.memory",
            "gca_lit.model",
            "gca_lit.module",
            "gca_lit.provenance",
            "gca_lit.whole_file",
        },
        {"numpy", "torch"},
    ),
    "gca_lit.trainer": (
        {
            "gca_lit.callbacks",
            "gca_lit.data",
            "gca_lit.generation",
            "gca_lit.model",
            "gca_lit.module",
            "gca_lit.whole_file",
        },
        {"lightning", "numpy", "torch", "tqdm"},
    ),
    "gca_lit.run_directory": (set(), {"lightning"}),
    "gca_lit.exits": (
        {"gca_lit.arguments", "gca_lit.callbacks", "gca_lit.data.stream", "gca_lit.usage", "gca_lit.whole_file"},
        {"lightning"},
    ),
    "gca_lit.parsing": ({"gca_lit.usage"}, {"lightning"}),
    "gca_lit.callbacks": (
        {
            "gca_lit.checkpoints.files",
            "gca_lit.generation.sampling",
            "gca_lit.host_memory",
            "gca_lit.memory",
            "gca_lit.provenance",
            "gca_lit.results",
            "gca_lit.scoring",
            "gca_lit.tasks",
            "gca_lit.trace",
            "gca_lit.units",
            "gca_lit.whole_file",
        },
        {"lightning", "torch", "torchmetrics"},
    ),
    "gca_lit.doctor.requirements": ({"gca_lit.units"}, {"packaging"}),
}
FREE = {
    "gca_lit",
    "gca_lit.class_names",
    "gca_lit.cli",
    "gca_lit.doctor",
    "gca_lit.doctor.__main__",
    "gca_lit.doctor.rehearsal",
    "gca_lit.trace.__main__",
    "gca_lit.usage",
}  # they see everything

FILES = {
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
    for base, package in ((ROOT, "gca_lit"), (ROOT / "kernels", "gca_kernels"))
    for path in (base / package).rglob("*.py")
}


def inside(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


@pytest.mark.parametrize("module", sorted(set(FILES) - FREE))
def test_imports_go_one_way(module: str) -> None:
    package = next((package for package in ALLOWED if inside(module, {package})), None)
    assert package is not None, f"{module} is in no package of ALLOWED: say what it may import"
    own, installed = ALLOWED[package]
    for name in imports(FILES[module]):
        if inside(name, {"gca_lit", "gca_kernels"}):
            assert inside(name, own | {package}), f"{module} imports {name}"
        else:
            top = name.partition(".")[0]
            assert top in installed | sys.stdlib_module_names, f"{module} imports {name}"


def test_an_interrupt_of_the_imports_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "gca_lit.cli", Interrupted("gca_lit.cli"))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "lightning_cli.py"), run_name="__main__")
    assert stop.value.code == 130


def test_trains_without_triton() -> None:
    """In a fresh process, where importing triton fails."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import gca_lit.cli
from gca_lit.attention import GroupedCrossAttention
from gca_lit.memory import HostStore
from gca_lit.model import Decoder, DecoderConfig
config = DecoderConfig(width=16, heads=2, kv_heads=2, layers=2, mlp_width=16)
network = Decoder(config, GroupedCrossAttention(chunk_size=4, window=10, top_k=2), 257)
hidden = network(torch.randint(0, 257, (2, 32))).hidden
network.logits(hidden).logsumexp(-1).mean().backward()
state = network.new_state(2, HostStore())
for segment in torch.randint(0, 257, (3, 2, 32)):
    state = network(segment, state).state
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
