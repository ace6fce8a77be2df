"""What gca_lit needs: checks that go from the facts of a machine and of a configuration to findings.

Nothing here looks at the machine, or imports what may be broken: `gca_lit.doctor` gathers the facts. Sizes are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gca_lit.units import MIB, size

Status = Literal["ok", "warn", "FAIL"]
MALICIOUS = ("2.6.2", "2.6.3")
"""Releases of lightning that steal credentials when they are imported."""
INSTALL = "activate the environment of gca_lit, or install it as README.md says"
INSTALL_TRITON = 'pip install -c constraints.txt -e ".[triton]", or use model.attention.impl reference'
LITTLE_SHM = 256 * MIB
FEW_FILES = 1024
BF16 = (8, 0)
"""Compute capability from which a GPU has bf16."""


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` says what to do unless all is well."""

    check: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Software:
    """This Python and what is installed in it.

    Args:
        needs_python, needs: the versions of Python and the requirements that gca_lit declares.
        packages: version of each installed distribution, by its normalized name.
        interpreted: whether Triton's kernels are to run in its interpreter.
        encoding: of text files that are opened without one.
        root, kernels: folders that gca_lit and gca_kernels are imported from, None where there is none.
        folder: the working directory.
    """

    python: str
    needs_python: str
    needs: tuple[str, ...]
    packages: dict[str, str]
    interpreted: bool
    encoding: str
    root: Path
    kernels: Path | None
    folder: Path


@dataclass(frozen=True)
class GPU:
    name: str
    total: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """The hardware, and the limits that the system sets: None where it does not tell, or sets none."""

    gpus: tuple[GPU, ...]
    driver: str | None
    cores: int
    memory: int | None
    available: int | None
    shm: int | None
    locked: int | None
    infiniband: bool
    open_files: int | None


@dataclass(frozen=True)
class Folder:
    """Where files are to be written: the file system's kind and its free bytes."""

    path: Path
    kind: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Needs:
    """What a configuration asks of a machine.

    Args:
        device: "cuda", "cpu", ...
        ranks: processes on this machine.
        shards: ranks that divide weights and optimizer among them, 1 where each has all.
        precision: Lightning's name of it.
        impl: implementation of the attention operation, None for a backend that has no choice.
        weights, optimizer: of the whole model; optimizer is None where it cannot be known.
        checkpoints: files kept at once, with the one being written; None for no bound.
        workers: loader processes of a rank that work at once.
        batches: what can wait in shared memory for a rank.
        evaluation: the evaluation length and what it holds, in words.
        shortage: why that cannot be held here, None when it can.
        by_choice: whether the configuration itself refuses that length, and nobody asked for it by name.
    """

    device: str
    ranks: int
    shards: int
    precision: str
    impl: str | None
    weights: int
    optimizer: int | None
    checkpoints: int | None
    workers: int
    batches: int
    evaluation: str
    shortage: str | None
    by_choice: bool


def normalized(name: str) -> str:
    """A name in small letters, with one - for every run of separators."""
    return re.sub(r"[-_.]+", "-", name).lower()


def judge(check: str, found: str, trouble: Status | bool, remedy: str) -> Finding:
    """A finding that is ok without trouble, and else has this status, or warns."""
    if not trouble:
        return Finding(check, "ok", found)
    return Finding(check, "warn" if trouble is True else trouble, found, remedy)


def check_packages(software: Software) -> list[Finding]:
    """Python and the packages against what gca_lit declares; those in range share one line."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Finding("packages", "FAIL", "packaging is not installed, nor what depends on it", INSTALL)]

    there = {"python": software.python, **software.packages}
    findings, fine = [], []
    for need in map(Requirement, (f"Python{software.needs_python}", *software.needs)):
        if need.marker is not None and not need.marker.evaluate({"extra": "triton"}):
            continue
        version = there.get(normalized(need.name))
        if version is None:
            if need.name != "triton":
                findings.append(Finding(need.name, "FAIL", "is not installed", INSTALL))
        elif need.specifier.contains(version, prereleases=True):
            fine.append(f"{need.name} {version}")
        else:
            found, remedy = f"{version} is outside {need.specifier}", f'install "{need.name}{need.specifier}"'
            if need.name == "lightning" and version in MALICIOUS:
                found = f"{version} is a malicious release that steals credentials when it is imported"
                remedy += ", and replace all passwords and tokens that this account could read"
            findings.append(Finding(need.name, "FAIL", found, remedy))
    return [*findings, Finding("packages", "ok", ", ".join(fine))]


def check_surroundings(software: Software) -> list[Finding]:
    """Where the code comes from, and how text is read and written."""
    status: Status = "ok"
    found = f"imported from {software.root}"
    if software.kernels is None:
        status, found = "FAIL", "gca_kernels cannot be found"
    elif software.kernels not in (software.root, software.root / "kernels"):
        status, found = "FAIL", f"gca_lit is imported from {software.root}, gca_kernels from {software.kernels}"
    elif (software.folder / "gca_lit").is_dir() and software.folder != software.root:
        status, found = "warn", f"gca_lit is imported from {software.root}, not from this folder"
    encoding = normalized(software.encoding)
    checkout = Finding("checkout", status, found, "" if status == "ok" else "set PYTHONPATH=.:kernels")
    return [checkout, judge("encoding", f"text files are {encoding}", encoding != "utf-8", "set PYTHONUTF8=1")]


def check_gpus(machine: Machine, torch: str) -> list[Finding]:
    """torch: its version."""
    if not machine.gpus:
        found = "none: everything runs on the CPU"
        if machine.driver is not None:
            found = f"NVIDIA driver {machine.driver}, but torch {torch} sees no GPU"
        remedy = "install a CUDA build of torch that this driver runs, and look at CUDA_VISIBLE_DEVICES"
        return [judge("GPU", found, machine.driver is not None, remedy)]
    findings = []
    for number, gpu in enumerate(machine.gpus):
        found = f"{gpu.name}, {size(gpu.free)} of {size(gpu.total)} free, driver {machine.driver}, compute capability "
        found += ".".join(map(str, gpu.capability))
        remedy, trouble = "end what nvidia-smi shows there, unless it is meant", gpu.free < 0.9 * gpu.total
        if gpu.capability < BF16:
            found, remedy, trouble = f"{found}: no bf16", "use trainer.precision 32-true or 16-mixed", True
        findings.append(judge(f"GPU {number}", found, trouble, remedy))
    return findings


def check_triton(software: Software, machine: Machine) -> Finding:
    """Whether Triton's kernels can run here, or only be interpreted."""
    triton, numpy = software.packages.get("triton"), software.packages.get("numpy", "0")
    if triton is None:
        found = "is not installed: only the reference can run"
        return judge("Triton", found, bool(machine.gpus), INSTALL_TRITON)
    if not software.interpreted:
        found = "no GPU: only the reference runs; TRITON_INTERPRET=1 interprets kernels for tests, where bf16 is wrong"
        return Finding("Triton", "ok", f"{triton} runs on the GPU" if machine.gpus else found)
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
        remedy = 'pip install "triton>=3.7,<3.8" or "numpy<2.4", or unset TRITON_INTERPRET'
        return Finding("Triton", "FAIL", f"the interpreter of {triton} fails in loops with numpy {numpy}", remedy)
    found = "TRITON_INTERPRET is set: kernels are interpreted, which is slow, and wrong in bf16"
    return Finding("Triton", "warn", found, "unset it except for tests, and test in fp32 or fp16")


def check_limits(machine: Machine) -> list[Finding]:
    """Cores, memory, and what the system allows a process."""
    findings = [Finding("CPU", "ok", f"{machine.cores} cores")]
    if machine.memory is not None and machine.available is not None:
        found = f"{size(machine.available)} of {size(machine.memory)} available"
        findings.append(judge("RAM", found, machine.available < 0.1 * machine.memory, "end other programs"))
    if machine.shm is not None:
        remedy = "give the container more, as docker run --shm-size=8g does, or use data.num_workers 0"
        found = f"{size(machine.shm)} free for batches of loader workers"
        findings.append(judge("/dev/shm", found, machine.shm < LITTLE_SHM, remedy))
    if machine.open_files is not None:
        found, few = f"at most {machine.open_files:,}", machine.open_files < FEW_FILES
        findings.append(judge("open files", found, few, "ulimit -n 65536"))
    if machine.infiniband and machine.locked is not None:
        found, remedy = f"at most {size(machine.locked)}", "ulimit -l unlimited, which InfiniBand needs"
        findings.append(Finding("locked memory", "warn", found, remedy))
    return findings


def check_kernels(needs: Needs, software: Software, machine: Machine) -> list[Finding]:
    """Whether the implementation and the precision that are asked for can run on the device."""
    impl, cuda, bf16 = f"model.attention.impl {needs.impl}", needs.device == "cuda", needs.precision.startswith("bf16")
    findings = []
    if cuda and bf16 and any(gpu.capability < BF16 for gpu in machine.gpus):
        found, remedy = f"{needs.precision} on a GPU without bf16", "use trainer.precision 16-mixed or 32-true"
        findings.append(Finding("precision", "FAIL", found, remedy))
    if needs.impl == "triton" and not cuda and not software.interpreted:
        remedy = "use impl auto; TRITON_INTERPRET=1 is for tests"
        findings.append(Finding("kernels", "FAIL", f"{impl} needs a GPU, this runs on {needs.device}", remedy))
    elif needs.impl == "triton" and not cuda and bf16:
        remedy = "use impl auto, or trainer.precision 32-true"
        findings.append(Finding("kernels", "FAIL", f"{impl} is interpreted, which is wrong in bf16", remedy))
    elif "triton" not in software.packages and (needs.impl == "triton" or (cuda and needs.impl == "auto")):
        findings.append(Finding("kernels", "FAIL", f"{impl} on {needs.device} needs triton", INSTALL_TRITON))
    return findings


def check_memory(needs: Needs, machine: Machine) -> list[Finding]:
    """Training's weights, gradients and optimizer, and evaluation's K/V, against what there is."""
    cuda = needs.device == "cuda"
    there = min((gpu.total for gpu in machine.gpus), default=None) if cuda else machine.available
    each = (2 * needs.weights + (needs.optimizer or 0)) // needs.shards
    kept = "unknown" if needs.optimizer is None else size(needs.optimizer)
    training = f"weights {size(needs.weights)}, gradients as much, optimizer {kept}: {size(each)} a rank"
    training += ", and activations, which grow with the rows of a step"
    status: Status | bool = needs.optimizer is None
    if there is not None and each * (1 if cuda else needs.ranks) > there:
        status, training = "FAIL", f"{training}, but there are {size(there)}"
    evaluation = f"{needs.evaluation}: {needs.shortage}" if needs.shortage else needs.evaluation
    short: Status = "ok" if needs.shortage is None else "warn" if needs.by_choice else "FAIL"
    remedy = "a shorter --length or length_generalization.factors, fewer kv_heads, or kv_dtype bfloat16"
    trained = judge("training", training, status, "a smaller model.decoder, or more GPUs with trainer.strategy fsdp")
    return [trained, Finding("evaluation", short, evaluation, "" if short == "ok" else remedy)]


def check_workers(needs: Needs, machine: Machine) -> Finding:
    """Loader processes of all ranks against cores and shared memory."""
    processes, waiting = needs.ranks * needs.workers, needs.ranks * needs.batches
    found = f"{processes} at once, up to {size(waiting)} of batches in /dev/shm"
    if machine.shm is not None and waiting > machine.shm:
        remedy = "fewer data.num_workers, or a larger /dev/shm"
        return Finding("workers", "FAIL", f"{found}, which has {size(machine.shm)} free", remedy)
    return judge("workers", found, processes > machine.cores, f"set data.num_workers to {machine.cores // needs.ranks}")


def check_disk(needs: Needs, folder: Folder) -> Finding:
    """Whether `folder` can be written, and holds the checkpoints."""
    one = needs.weights + (needs.optimizer or 0)
    number = "every checkpoint" if needs.checkpoints is None else f"{needs.checkpoints} checkpoints"
    found = f"{folder.path} ({folder.kind}): {size(folder.free)} free, {number} of {size(one)}"
    remedy = "choose another trainer.default_root_dir"
    if not folder.writable:
        return Finding("disk", "FAIL", f"{folder.path} cannot be written", remedy)
    if one * (needs.checkpoints if needs.checkpoints is not None else 1) > folder.free:
        return Finding("disk", "FAIL", found, f"make room, or {remedy}")
    if folder.kind in ("tmpfs", "ramfs"):
        return Finding("disk", "warn", f"{found}, in memory and gone after a restart", remedy)
    return judge("disk", found, needs.checkpoints is None, "set checkpoint.save_top_k, or watch the disk")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
