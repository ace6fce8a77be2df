"""The checks of the doctor: every bad case of a made-up machine and configuration."""

from dataclasses import replace
from pathlib import Path

import pytest

from gca_lit.doctor import requirements as check
from gca_lit.doctor.requirements import GPU, Finding, Folder, Machine, Needs, Software
from gca_lit.units import GIB, MIB

ROOT = Path(__file__).parents[2]

SOFTWARE = Software(
    python="3.12.4",
    needs_python=">=3.11",
    needs=("torch>=2.11,<2.14", "lightning>=2.6.4,<2.7", "numpy>=2,<3", "triton>=3.6,<3.8; platform_system == 'Linux'"),
    packages={"torch": "2.13.0+cpu", "lightning": "2.6.6", "numpy": "2.4.6", "triton": "3.7.1"},
    interpreted=False,
    encoding="UTF-8",
    root=ROOT,
    kernels=ROOT / "kernels",
    folder=ROOT,
)
H200 = GPU("NVIDIA H200", total=140 * GIB, free=139 * GIB, capability=(9, 0))
MACHINE = Machine(
    gpus=(),
    driver=None,
    cores=8,
    memory=64 * GIB,
    available=60 * GIB,
    shm=32 * GIB,
    locked=8 * MIB,
    infiniband=False,
    open_files=65536,
)
WITH_GPU = replace(MACHINE, gpus=(H200,), driver="580.65.06")
NEEDS = Needs(
    device="cpu",
    ranks=1,
    shards=1,
    precision="32-true",
    impl="auto",
    weights=GIB,
    optimizer=2 * GIB,
    checkpoints=3,
    workers=2,
    batches=100 * MIB,
    evaluation="1,000 tokens",
    shortage=None,
    by_choice=False,
)
ON_GPU = replace(NEEDS, device="cuda", precision="bf16-mixed")
DISK = Folder(Path("runs/demo"), kind="ext4", free=10 * GIB, writable=True)


def of(found: list[Finding] | Finding, name: str) -> Finding:
    """The one finding of this check; what is not ok must say what to do."""
    listed = found if isinstance(found, list) else [found]
    assert all(one.remedy for one in listed if one.status != "ok")
    [one] = [one for one in listed if one.check == name]
    return one


def with_package(name: str, version: str) -> Software:
    return replace(SOFTWARE, packages=SOFTWARE.packages | {name: version})


# --- the software ---


def test_good_software() -> None:
    assert [one.status for one in check.check_packages(SOFTWARE)] == ["ok"]
    assert "torch 2.13.0+cpu" in check.check_packages(SOFTWARE)[0].found
    assert [one.status for one in check.check_surroundings(SOFTWARE)] == ["ok", "ok"]


@pytest.mark.parametrize(
    "name, version, words",
    [
        ("lightning", "2.6.2", "malicious"),
        ("lightning", "2.6.3", "malicious"),
        ("lightning", "2.5.0", "outside"),
        ("triton", "3.9.0", "3.9.0 is outside <3.8,>=3.6"),
        ("torch", "2.10.0", "outside"),
        ("torch", "2.14.0+cu130", "outside"),
        ("numpy", "1.26.4", "outside"),
    ],
)
def test_bad_versions(name: str, version: str, words: str) -> None:
    finding = of(check.check_packages(with_package(name, version)), name)
    assert finding.status == "FAIL" and words in finding.found and "install" in finding.remedy


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1", "2.13.0"])
def test_every_torch_in_range_is_fine(version: str) -> None:
    assert [one.status for one in check.check_packages(with_package("torch", version))] == ["ok"]


def test_what_is_missing() -> None:
    bare = replace(SOFTWARE, packages={"torch": "2.13.0", "numpy": "2.4.6"})
    assert of(check.check_packages(bare), "lightning").status == "FAIL"
    assert "triton" not in [one.check for one in check.check_packages(bare)]
    old = of(check.check_packages(replace(SOFTWARE, python="3.10.9")), "Python")
    assert old.status == "FAIL" and "3.10.9 is outside >=3.11" in old.found


def test_where_the_code_comes_from(tmp_path: Path) -> None:
    lost = of(check.check_surroundings(replace(SOFTWARE, kernels=None)), "checkout")
    assert lost.status == "FAIL" and "gca_kernels cannot be found" in lost.found
    mixed = of(check.check_surroundings(replace(SOFTWARE, kernels=Path("/elsewhere/kernels"))), "checkout")
    assert mixed.status == "FAIL" and "/elsewhere/kernels" in mixed.found
    (tmp_path / "gca_lit").mkdir()
    other = of(check.check_surroundings(replace(SOFTWARE, folder=tmp_path)), "checkout")
    assert other.status == "warn" and "not from this folder" in other.found
    installed = replace(SOFTWARE, root=Path("/site-packages"), kernels=Path("/site-packages"), folder=Path("/"))
    assert of(check.check_surroundings(installed), "checkout").status == "ok"
    ascii_text = of(check.check_surroundings(replace(SOFTWARE, encoding="ANSI_X3.4-1968")), "encoding")
    assert ascii_text.status == "warn" and "PYTHONUTF8=1" in ascii_text.remedy


# --- the machine ---


def test_gpus() -> None:
    assert of(check.check_gpus(MACHINE, "2.13.0"), "GPU").status == "ok"
    good = of(check.check_gpus(WITH_GPU, "2.13.0"), "GPU 0")
    assert good.status == "ok"
    assert all(part in good.found for part in ("NVIDIA H200", "140.0 GiB", "9.0", "580.65.06"))
    unseen = of(check.check_gpus(replace(WITH_GPU, gpus=()), "2.13.0+cpu"), "GPU")
    assert unseen.status == "warn" and "torch 2.13.0+cpu sees no GPU" in unseen.found
    busy = of(check.check_gpus(replace(WITH_GPU, gpus=(replace(H200, free=20 * GIB),)), "2.13.0"), "GPU 0")
    assert busy.status == "warn" and "nvidia-smi" in busy.remedy
    turing = replace(WITH_GPU, gpus=(H200, replace(H200, capability=(7, 5))))
    assert [one.status for one in check.check_gpus(turing, "2.13.0")] == ["ok", "warn"]


def test_triton() -> None:
    interpreted = replace(SOFTWARE, interpreted=True)
    assert check.check_triton(SOFTWARE, WITH_GPU) == Finding("Triton", "ok", "3.7.1 runs on the GPU")
    assert "TRITON_INTERPRET" in of(check.check_triton(SOFTWARE, MACHINE), "Triton").found
    for machine in (MACHINE, WITH_GPU):
        finding = of(check.check_triton(interpreted, machine), "Triton")
        assert finding.status == "warn" and "wrong in bf16" in finding.found
    none = replace(SOFTWARE, packages={})
    assert of(check.check_triton(none, MACHINE), "Triton").status == "ok"
    assert of(check.check_triton(none, WITH_GPU), "Triton").status == "warn"


@pytest.mark.parametrize(
    "triton, numpy, fails", [("3.6.0", "2.4.0", True), ("3.6.0", "2.10.1", True), ("3.6.0", "2.3.5", False)]
)
def test_loops_in_the_interpreter(triton: str, numpy: str, fails: bool) -> None:
    packages = {"triton": triton, "numpy": numpy}
    interpreted = replace(SOFTWARE, interpreted=True, packages=packages)
    assert (of(check.check_triton(interpreted, MACHINE), "Triton").status == "FAIL") == fails
    assert of(check.check_triton(replace(SOFTWARE, packages=packages), WITH_GPU), "Triton").status == "ok"


def test_limits() -> None:
    assert {one.status for one in check.check_limits(MACHINE)} == {"ok"}
    unknown = replace(MACHINE, memory=None, available=None, shm=None, open_files=None)
    assert [one.check for one in check.check_limits(unknown)] == ["CPU"]
    tight = replace(MACHINE, available=GIB, shm=64 * MIB, open_files=256, infiniband=True)
    found = check.check_limits(tight)
    for name in ("RAM", "/dev/shm", "open files", "locked memory"):
        assert of(found, name).status == "warn"
    assert "64.0 MiB" in of(found, "/dev/shm").found
    endless = replace(tight, locked=None)
    assert "locked memory" not in [one.check for one in check.check_limits(endless)]


# --- a configuration ---


def test_kernels_that_can_run() -> None:
    for needs, machine in ((NEEDS, MACHINE), (ON_GPU, WITH_GPU), (replace(ON_GPU, impl="triton"), WITH_GPU)):
        assert check.check_kernels(needs, SOFTWARE, machine) == []
    in_tests = replace(NEEDS, impl="triton")
    assert check.check_kernels(in_tests, replace(SOFTWARE, interpreted=True), MACHINE) == []


def test_kernels_that_cannot_run() -> None:
    asked = replace(NEEDS, impl="triton")
    finding = of(check.check_kernels(asked, SOFTWARE, MACHINE), "kernels")
    assert finding.status == "FAIL" and "needs a GPU, this runs on cpu" in finding.found
    half = replace(asked, precision="bf16-true")
    finding = of(check.check_kernels(half, replace(SOFTWARE, interpreted=True), MACHINE), "kernels")
    assert finding.status == "FAIL" and "wrong in bf16" in finding.found
    without = replace(SOFTWARE, packages={})
    for impl, status in (("auto", ["FAIL"]), ("triton", ["FAIL"]), ("reference", []), (None, [])):
        found = check.check_kernels(replace(ON_GPU, impl=impl), without, WITH_GPU)
        assert [one.status for one in found] == status, impl
    turing = replace(WITH_GPU, gpus=(replace(H200, capability=(7, 5)),))
    finding = of(check.check_kernels(ON_GPU, SOFTWARE, turing), "precision")
    assert finding.status == "FAIL" and "bf16-mixed on a GPU without bf16" in finding.found
    assert check.check_kernels(replace(ON_GPU, precision="16-mixed"), SOFTWARE, turing) == []


def test_memory() -> None:
    assert {one.status for one in check.check_memory(NEEDS, MACHINE)} == {"ok"}
    assert "optimizer 2.0 GiB: 4.0 GiB a rank" in of(check.check_memory(NEEDS, MACHINE), "training").found

    def training(needs: Needs, machine: Machine) -> str:
        return of(check.check_memory(needs, machine), "training").status

    assert training(NEEDS, replace(MACHINE, available=3 * GIB)) == "FAIL"
    assert training(replace(NEEDS, ranks=4), replace(MACHINE, available=15 * GIB)) == "FAIL"
    assert training(replace(NEEDS, optimizer=None), MACHINE) == "warn"
    assert training(NEEDS, replace(MACHINE, available=None)) == "ok"
    large = replace(ON_GPU, weights=40 * GIB, optimizer=80 * GIB, ranks=2)
    assert training(large, WITH_GPU) == "FAIL"
    assert training(replace(large, shards=2), WITH_GPU) == "ok"

    short = replace(NEEDS, shortage="needs 48.0 GiB of host memory, has 17.6 GiB")
    finding = of(check.check_memory(short, MACHINE), "evaluation")
    assert finding.status == "FAIL" and "48.0 GiB" in finding.found
    assert of(check.check_memory(replace(short, by_choice=True), MACHINE), "evaluation").status == "warn"


def test_workers() -> None:
    assert check.check_workers(NEEDS, MACHINE).status == "ok"
    docker = of(check.check_workers(NEEDS, replace(MACHINE, shm=64 * MIB)), "workers")
    assert docker.status == "FAIL" and "100.0 MiB" in docker.found and "64.0 MiB" in docker.found
    assert of(check.check_workers(replace(NEEDS, ranks=8), MACHINE), "workers").status == "warn"


def test_disk() -> None:
    assert check.check_disk(NEEDS, DISK).status == "ok"
    full = of(check.check_disk(NEEDS, replace(DISK, free=8 * GIB)), "disk")
    assert full.status == "FAIL" and "8.0 GiB free, 3 checkpoints of 3.0 GiB" in full.found
    assert of(check.check_disk(NEEDS, replace(DISK, writable=False)), "disk").status == "FAIL"
    assert of(check.check_disk(NEEDS, replace(DISK, kind="tmpfs")), "disk").status == "warn"
    assert of(check.check_disk(replace(NEEDS, checkpoints=None), DISK), "disk").status == "warn"
