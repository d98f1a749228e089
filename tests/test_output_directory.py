"""One process writes a directory at a time; a full disk is named; what is not whole does not appear."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from xgen_mm import output_directory
from xgen_mm.cli.main import main
from xgen_mm.output_directory import (
    DirectoryInUseError,
    DirectoryLock,
    DiskFullError,
    is_full_disk,
    locked_directory,
    new_directory,
    replaced_directory,
)

HOLD = (
    "import sys; from xgen_mm.output_directory import DirectoryLock; lock = DirectoryLock(sys.argv[1]).acquire();"
    "sys.stdout.write('held'); sys.stdout.flush(); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process that is writing `tmp_path / "out"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == "held"
    return process


def test_second_process_is_refused_by_name_until_the_first_one_ends(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    expected = (
        rf"out` is being written by another run: process {holder.pid} on host {socket.gethostname()}, since \d{{4}}-"
    )
    with pytest.raises(DirectoryInUseError, match=expected):
        DirectoryLock(tmp_path / "out").acquire()
    holder.communicate("")
    with DirectoryLock(tmp_path / "out"):
        assert (tmp_path / ".out.lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / ".out.lock").is_file(), "it left its lock"
    with DirectoryLock(tmp_path / "out"):
        assert json.loads((tmp_path / ".out.lock").read_text())["pid"] == os.getpid()


def test_two_names_of_one_directory_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with DirectoryLock(tmp_path / "real"), pytest.raises(DirectoryInUseError):
        DirectoryLock(tmp_path / "link").acquire()


def test_lock_is_free_when_its_owner_is_gone(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "out").acquire()
    with pytest.raises(DirectoryInUseError):
        DirectoryLock(tmp_path / "out").acquire()
    del lock
    DirectoryLock(tmp_path / "out").acquire().release()


def test_file_systems_without_locks_go_by_the_named_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_directory.fcntl, "flock", refuse)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / ".out.lock"
    path.write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname(), "since": "then"}))
    ours = f"process {os.getpid()} on host"
    with DirectoryLock(tmp_path / "out"), pytest.raises(DirectoryInUseError, match=ours):
        DirectoryLock(tmp_path / "out").acquire()
    assert list(tmp_path.iterdir()) == []
    path.write_text(json.dumps({"pid": ended.pid, "host": "elsewhere", "since": "then"}))
    with pytest.raises(DirectoryInUseError, match=rf"on host elsewhere, since then.*remove `{re.escape(str(path))}`"):
        DirectoryLock(tmp_path / "out").acquire()


def test_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").mkdir()
    with pytest.raises(NotADirectoryError), new_directory(tmp_path / "out") as partial:
        (partial / "file" / "below").write_text(str((partial / "file").write_text("half")))
    assert list(tmp_path.iterdir()) == [], "nor does anything remain of a killed process"
    with new_directory(tmp_path / "out") as partial:
        (partial / "all").write_text("all")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "all").read_text() == "all"


def test_replaced_directory_keeps_the_old_one_if_the_new_one_fails(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with pytest.raises(RuntimeError), replaced_directory(tmp_path / "final") as partial:
            raise RuntimeError
        with replaced_directory(tmp_path / "final") as partial:
            (partial / text).write_text(text)
        assert [path.name for path in tmp_path.iterdir()] == ["final"]
        assert [path.name for path in (tmp_path / "final").iterdir()] == [text]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["errno", "quota", "torch position", "torch writer", "safetensors"],
)
def test_full_disk_names_directory_and_remedy(tmp_path: Path, error: Exception) -> None:
    assert is_full_disk(error)
    with (
        pytest.raises(DiskFullError, match=r"out` cannot be written: .* free some space"),
        locked_directory(tmp_path / "out"),
    ):
        raise error


def test_full_disk_names_the_file_where_it_is_known(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out" / "model.safetensors"))
    with (
        pytest.raises(DiskFullError, match=r"out/model\.safetensors` cannot be written"),
        locked_directory(tmp_path / "out"),
    ):
        raise error


def test_full_disk_is_seen_behind_the_errors_of_libraries() -> None:
    outer = RuntimeError("saving failed")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full_disk(outer)


def test_other_errors_are_no_full_disk() -> None:
    assert not is_full_disk(RuntimeError("shape mismatch at position 3 vs 4"))
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "command", [["evaluate", "digits_one", "--limit", "1", "--output"], ["export"]], ids=lambda command: command[0]
)
def test_command_leaves_a_directory_alone_that_is_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with DirectoryLock(tmp_path / "out"):
        assert main([*command, str(tmp_path / "out")]) == 2
    assert f"out` is being written by another run: process {os.getpid()}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("command", "writer", "error"),
    [
        (["export"], "safetensors.torch.serialize_file", Exception("I/O error: No space left (os error 28)")),
        (["card", "xgen-mm-tiny", "-o"], "pathlib.Path.write_text", FULL_DISK),
        (["evaluate", "digits_one", "--limit", "1", "--output"], "pathlib.Path.write_bytes", FULL_DISK),
        (["demo", "--output"], "PIL.Image.Image.save", FULL_DISK),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_command_on_a_full_disk_ends_with_one_line_that_names_its_output(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    writer: str,
    error: Exception,
) -> None:
    def fill_disk(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(writer, fill_disk)
    assert main([*command, str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"xgen-mm: error: `\S+out` cannot be written: .*No space left.* free some space .*", last)
