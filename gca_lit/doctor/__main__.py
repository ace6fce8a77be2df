"""Say whether gca_lit, and a configuration of it, can work on this machine:

python -m gca_lit.doctor [--config configs/base.yaml ...] [--length 16384000] [any flags of fit]
"""

from __future__ import annotations

import io
import json
import locale
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gca_lit.arguments import Arguments
from gca_lit.doctor import requirements as check
from gca_lit.doctor.requirements import GPU, Finding, Machine, Software
from gca_lit.host_memory import available_bytes, total_bytes

ROOT = Path(__file__).resolve().parents[2]


def main(args: list[str] | None = None) -> int:
    """Print what is found, as it is found, and return 1 when something FAILs, else 0."""
    parser = Arguments(
        prog="python -m gca_lit.doctor",
        description="Whether gca_lit, and a configuration of it, can work on this machine.",
        epilog="All flags of fit can be given too, --config FILE first of all.",
        allow_abbrev=False,
    )
    parser.add_argument("--length", type=int, help="evaluation length in tokens; the longest factor unless given")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options, flags = parser.parse_known_args(args)
    if (flags or options.length is not None) and not any(re.match("(-c|--config)(=|$)", flag) for flag in flags):
        parser.error(f"{flags[0] if flags else '--length'} is about a configuration: name it with --config FILE")
    if options.length is not None and options.length < 1:
        parser.error(f"--length must be at least 1 token, got {options.length}")

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the encoding lacks ends nothing
    marked: dict[str, dict[str, None]] = {"ok": {}, "warn": {}, "FAIL": {}}
    logging.disable(logging.WARNING)  # what Lightning says while it builds
    try:
        for finding in look(flags, options.length):
            marked[finding.status][finding.check] = None
            print(line(finding, options.json), flush=True)
    finally:
        logging.disable(logging.NOTSET)
    failed, warned = ", ".join(marked["FAIL"]), ", ".join(marked["warn"])
    verdict = "This configuration" if flags else "gca_lit"
    verdict += f" cannot work here, because of: {failed}." if failed else " can work here"
    verdict += "" if failed else f", but look at: {warned}." if warned else "."
    print(json.dumps({"verdict": verdict}) if options.json else verdict)
    return 1 if failed else 0


def line(finding: Finding, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(finding))
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:<5}{finding.check:<14} {' '.join(finding.found.split())}{remedy}"


def look(flags: list[str], length: int | None) -> Iterator[Finding]:
    """All findings, the packages first: nothing is imported that they advise against."""
    software = look_at_software()
    packages = check.check_packages(software)
    yield from packages
    yield from check.check_surroundings(software)
    broken = any(finding.status == "FAIL" for finding in packages)
    torch = software.packages.get("torch")
    gpus: tuple[GPU, ...] = ()
    if torch is not None:
        try:
            gpus = find_gpus()
        except (ImportError, OSError, RuntimeError) as error:
            broken = True
            yield Finding("torch", "FAIL", f"{torch} cannot be used: {error}", check.INSTALL)
    machine = look_at_machine(gpus)
    if torch is not None:
        yield from check.check_gpus(machine, torch)
        yield check.check_triton(software, machine)
    yield from check.check_limits(machine)
    if flags and broken:
        yield Finding("configuration", "FAIL", "was not looked at", "mend the packages first")
    elif flags:
        from gca_lit.doctor.rehearsal import rehearse

        yield from rehearse(flags, length, software, machine)


def look_at_software() -> Software:
    """What the metadata of the installed distributions say; imports none of them."""
    if (ROOT / "pyproject.toml").is_file():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        needs_python = project["requires-python"]
        needs = project["dependencies"] + project["optional-dependencies"]["triton"]
    else:
        needs_python, needs = metadata.metadata("gca-lit")["Requires-Python"], metadata.requires("gca-lit") or []
    packages: dict[str, str] = {}
    for distribution in metadata.distributions():  # those that come first are those that are imported
        packages.setdefault(check.normalized(distribution.name or ""), distribution.version)
    kernels = find_spec("gca_kernels")
    return Software(
        python=platform.python_version(),
        needs_python=needs_python,
        needs=tuple(needs),
        packages=packages,
        interpreted=os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y"),
        encoding="utf-8" if sys.flags.utf8_mode else locale.getencoding(),
        root=ROOT,
        kernels=Path(kernels.origin).resolve().parent.parent if kernels and kernels.origin else None,
        folder=Path.cwd(),
    )


def look_at_machine(gpus: tuple[GPU, ...]) -> Machine:
    return Machine(
        gpus=gpus,
        driver=_driver(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=total_bytes(),
        available=available_bytes(),
        shm=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        locked=_limit(resource.RLIMIT_MEMLOCK),
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        open_files=_limit(resource.RLIMIT_NOFILE),
    )


def find_gpus() -> tuple[GPU, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        found.append(GPU(about.name, about.total_memory, free, (about.major, about.minor)))
    return tuple(found)


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _driver() -> str | None:
    """The version of the NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split()[0] if done.stdout.split() else None


if __name__ == "__main__":
    sys.exit(main())
