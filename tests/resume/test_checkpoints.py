"""Checkpoint files: whole or not there, refused when damaged, the newest two kept."""

import errno
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gca_lit.checkpoints.files import WholeCheckpointIO, check_checkpoint, damage, newest
from gca_lit.cli import main
from gca_lit.whole_file import NotSaved
from tests.resume.conftest import Run, fault

LAST = ("--ckpt_path", "last")
SHORT = ("--trainer.max_steps", "9")
MakeRun = Callable[[str], Run]


def save(folder: Path, step: int, **more: object) -> Path:
    path = folder / f"last-step={step}.ckpt"
    WholeCheckpointIO().save_checkpoint({"gca_lit": {}, "global_step": step, "w": torch.rand(5000), **more}, path)
    return path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def test_saves_and_loads(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", 7)
    assert os.listdir(path.parent) == [path.name]
    assert WholeCheckpointIO().load_checkpoint(path)["global_step"] == 7
    check_checkpoint(path)
    save(path.parent, 7, more=1)
    assert WholeCheckpointIO().load_checkpoint(path)["more"] == 1


def test_loads_no_objects(tmp_path: Path) -> None:
    path = save(tmp_path, 7, code=Path("x"))
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        WholeCheckpointIO().load_checkpoint(path)


def test_a_full_disk(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    before = path.read_bytes()
    tensor = torch.rand(10_000)
    size = save(tmp_path / "enough", 7, w=tensor).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(NotSaved, match=rf"{path} could not be saved: .* takes {size:,} bytes, and .* make room"):
            save(tmp_path, 7, w=tensor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["enough", path.name]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    """Room is asked for where it lacks, and a checkpoint is told of where one is."""
    if earlier:
        save(tmp_path, 6)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(
        NotSaved, match=r"could not be saved: Read-only file system; set trainer.default_root"
    ) as refused:
        save(tmp_path, 7)
    assert ("--ckpt_path last" in str(refused.value)) == earlier and "room" not in str(refused.value)


def test_no_part_stays_whatever_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickle"):
        save(tmp_path, 7, w=(one for one in ()))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("harm", [flip_a_bit, truncate])
def test_damage_is_found_and_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = save(tmp_path, 7)
    assert damage(path) is None
    harm(path)
    assert damage(path)
    with pytest.raises(ValueError, match=rf"{path} .*damaged"):
        check_checkpoint(path)


def test_the_newest_is_chosen_by_its_step(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    for step, time in ((9, 3), (10, 1), (8, 2)):
        os.utime(save(tmp_path, step), (time, time))
    assert newest(tmp_path) == tmp_path / "last-step=10.ckpt"


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_one_is_passed_over_with_a_warning(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    paths = [save(tmp_path, step) for step in (8, 9)]
    harm(paths[1])
    with pytest.warns(UserWarning, match=rf"{paths[1]} is damaged: .*{paths[0]}, of step 8, is used instead"):
        assert newest(tmp_path) == paths[0]
    harm(paths[0])
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*last-step=8.ckpt is damaged") as refused:
        newest(tmp_path)
    assert len(str(refused.value)) < 2 * len(str(tmp_path)) + 250


@pytest.mark.parametrize(
    "content, message",
    [
        (b"# Words\n", "it is a file of another kind"),
        (b"", "it is empty"),
        (b"PK\3\4" + bytes(500), "it is cut off"),
        (b"\x80\2" + bytes(500), "it is a file of another kind"),  # what torch.save wrote long ago
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(ValueError, match=rf"README.md is not a checkpoint of gca_lit, .*: {message}$"):
        check_checkpoint(tmp_path / "README.md")


def test_folders(tmp_path: Path) -> None:
    """Weights in shards are a folder with a file of everything else."""
    path = tmp_path / "last-step=7.ckpt"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=f"{path} is a folder, not a checkpoint: name a file$"):
        check_checkpoint(path)
    torch.save({"gca_lit": {}, "global_step": 7}, path / "meta.pt")
    check_checkpoint(path)
    assert newest(tmp_path) == path
    torch.save({"global_step": 7}, path / "meta.pt")
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint of gca_lit$"):
        check_checkpoint(path)


def test_a_step_that_is_saved_needs_no_second_time(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is saved before its validation and behind it; the disk takes the first of the two."""
    run, seen = make_run("run"), []
    whole = WholeCheckpointIO.save_checkpoint

    def full_after_step_4(io: WholeCheckpointIO, checkpoint: dict[str, int], path: Path, storage_options: None) -> None:
        seen.append(checkpoint["global_step"])
        if seen == [4, 4]:
            raise NotSaved("last-step=4.ckpt could not be saved.")
        whole(io, checkpoint, path)

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", full_after_step_4)
    with pytest.warns(UserWarning, match=r"last-step=4.ckpt could not be saved. The one of this step .* stays"):
        main(run.arguments("--trainer.max_steps", "4", "--trainer.val_check_interval", "4"))
    assert seen == [4, 4] and run.checkpoints() == ["last-step=4.ckpt"]
    check_checkpoint(run.folder / "checkpoints" / "last-step=4.ckpt")


def test_the_newest_two_stay_and_the_last_step(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run("run")
    with caplog.at_level(logging.INFO):
        main(run.arguments(*SHORT, *LAST))
    assert "yet: training starts from step 0" in caplog.text
    assert run.checkpoints() == ["last-step=8.ckpt", "last-step=9.ckpt"]

    flip_a_bit(run.folder / "checkpoints" / "last-step=9.ckpt")
    with pytest.warns(UserWarning, match=r"last-step=8.ckpt, of step 8, is used instead"):
        main(run.arguments(*LAST, "--trainer.max_steps", "10"))
    assert run.checkpoints() == ["last-step=10.ckpt", "last-step=8.ckpt", "last-step=9.ckpt.1"]

    with pytest.warns(UserWarning, match=r"training starts at step 0: .*last-step=10.ckpt is set aside"):
        main(run.arguments("--trainer.max_steps", "1"))
    assert run.checkpoints() == ["last-step=1.ckpt", "last-step=10.ckpt.1", "last-step=8.ckpt.1", "last-step=9.ckpt.1"]


@pytest.mark.parametrize("kind, raised", [("raise", RuntimeError), ("SIGTERM", SystemExit)])
def test_all_load_with_weights_only(make_run: MakeRun, kind: str, raised: type[BaseException]) -> None:
    run = make_run("run")
    with pytest.raises(raised):
        main(run.arguments(*SHORT, fault(15, kind)))
    assert len(run.checkpoints()) == 2
    for name in run.checkpoints():
        assert "gca_lit" in torch.load(run.folder / "checkpoints" / name, weights_only=True)


def test_a_full_disk_in_training(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second checkpoint does not fit any more: the run ends with one line, the first one is whole."""
    run = make_run("run")
    whole = WholeCheckpointIO.save_checkpoint

    def full_at_step_8(io: WholeCheckpointIO, checkpoint: dict[str, int], path: Path, storage_options: None) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if checkpoint["global_step"] == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            whole(io, checkpoint, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", full_at_step_8)
    with pytest.raises(SystemExit) as stop:
        main(run.arguments(*SHORT))
    assert stop.value.code == 1 and "last-step=8.ckpt could not be saved" in capsys.readouterr().err.splitlines()[-1]
    assert run.checkpoints() == ["last-step=4.ckpt"]
    check_checkpoint(run.folder / "checkpoints" / "last-step=4.ckpt")
