"""Directories that one process writes at a time, that appear whole, and that say so when the disk is full.

A lock is a file `.NAME.lock` beside the directory, held through the operating system: it is free again when its
process ends, however that happens. Where a file system knows no such locks, the process named in the file decides.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import XGenMMError

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows
    _HAS_LOCKS = False

LOCK_NAME = ".lock"
# How a file system says that it knows no locks, and that somebody has the lock.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# Worker processes notice within five seconds that the process is gone whose lock they share.
ORPHAN_SECONDS = 10.0
_RETRY_SECONDS = 0.1
_FULL_DISK_CODES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# How libraries that hide the error number say that a file could not be written: Rust's and PyTorch's own words.
_FULL_DISK_WORDS = re.compile(
    r"no space left|file too large|disk quota exceeded|pytorchstreamwriter failed|unexpected pos \d+ vs \d+",
    re.IGNORECASE,
)


class DirectoryInUseError(XGenMMError):
    """Another process is writing the same directory."""


class DiskFullError(XGenMMError):
    """There is no room for a file."""


class DirectoryLock:
    """The right to write a directory, for one process at a time.

    Args:
        directory: The directory, which need not exist, or a file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Take nothing yet; see `acquire`."""
        self.directory = directory
        # Links are followed, so that two names of one directory have one lock.
        target = Path(directory).expanduser().resolve()
        # A directory that a disk or a share is mounted on may be all that can be written.
        is_mounted = target.is_dir() and not os.access(target.parent, os.W_OK)
        self.path = target / LOCK_NAME if is_mounted else target.with_name(f".{target.name}{LOCK_NAME}")
        self._give_back: weakref.finalize[[int, Path], DirectoryLock] | None = None

    def __enter__(self) -> "DirectoryLock":
        """Acquire the lock."""
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.release()

    def acquire(self) -> "DirectoryLock":
        """Take the lock at once, also one that a dead process left.

        It is held until `release`, or until nobody has this object any more.

        Raises:
            DirectoryInUseError: If another process has it; it is named.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + ORPHAN_SECONDS
        while self._give_back is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            state = _try_lock(file)
            # The file may have been released, and so removed, between the two calls.
            if state == "taken" and _is_same_file(file, self.path):
                os.truncate(file, 0)
                os.write(file, _describe_process())
                self._give_back = weakref.finalize(self, _give_back, file, self.path)
                continue
            os.close(file)
            if state == "held":
                self._refuse_unless_orphaned(_read_holder(self.path), deadline)
            elif state == "unknown":
                self._acquire_by_name()
        return self

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def _refuse_unless_orphaned(self, holder: dict[str, Any], deadline: float) -> None:
        if not _is_dead(holder) or time.monotonic() > deadline:
            raise DirectoryInUseError(
                f"`{self.directory}` is being written by another run: {_name_holder(holder)}. Wait for its end, stop "
                f"it, or name another directory (lock: `{self.path}`)."
            )
        time.sleep(_RETRY_SECONDS)

    def _acquire_by_name(self) -> None:
        """Take the lock where the system has none: the file appears with its content, or it was there already."""
        holder = _read_holder(self.path)
        if holder and not _is_dead(holder):
            raise DirectoryInUseError(
                f"`{self.directory}` is being written by another run: {_name_holder(holder)}. Wait for its end, or "
                f"name another directory; if that process is gone, remove `{self.path}`."
            )
        own = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        own.write_bytes(_describe_process())
        try:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                os.link(own, self.path)
                self._give_back = weakref.finalize(self, _give_back, os.open(self.path, os.O_RDWR), self.path)
        finally:
            own.unlink()


@contextlib.contextmanager
def locked_directory(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Write a directory alone, and say which one it was if the disk is full.

    Args:
        directory: What is written: a directory or a file, which need not exist.

    Raises:
        DirectoryInUseError: If another process is writing it.
        DiskFullError: If the block failed because there is no room.
    """
    with DirectoryLock(directory):
        try:
            yield
        except DiskFullError:
            raise
        except Exception as error:
            if is_full_disk(error):
                raise disk_full_error(error, directory) from error
            raise


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory that appears under its name when the block ends without an error, and not at all otherwise.

    Args:
        directory: Where it shall be; must not exist, or be empty.

    Yields:
        Where to write: a sibling with a name of its own.

    Raises:
        FileExistsError: If there is something already.
        DirectoryInUseError: If another process is writing it.
        DiskFullError: If there is no room for it.
    """
    with locked_directory(directory):
        target = check_new_directory(directory)
        partial = unfinished_path(target)
        # Of a process that was killed: nobody else writes here now.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if target.exists():
                target.rmdir()
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced_directory(directory: Path) -> Iterator[Path]:
    """Like `new_directory`, but what is there already is replaced when the block ends, and kept if it fails.

    No lock is taken: the directory lies in one that is locked.

    Args:
        directory: Where it shall be.

    Yields:
        Where to write: `unfinished_path(directory)`, an empty directory.
    """
    partial = unfinished_path(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        old = directory.with_name(f"{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            directory.rename(old)
        partial.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unfinished_path(directory: Path) -> Path:
    """Where a directory is written until it is whole."""
    return directory.with_name(f"{directory.name}.unfinished")


def check_new_directory(directory: str | os.PathLike[str]) -> Path:
    """Absolute path of a directory that can be written anew.

    Raises:
        FileExistsError: If it exists and is not an empty directory.
    """
    target = Path(directory).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"`{directory}` exists already and is not empty; remove it or choose another directory.")
    return target


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that there is no room for a file."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL_DISK_CODES:
            return True
        if not isinstance(seen, XGenMMError) and _FULL_DISK_WORDS.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full_error(error: BaseException, place: str | os.PathLike[str] | None) -> DiskFullError:
    """What to tell whoever ran out of room.

    Args:
        error: What was raised; the file that it names is named too.
        place: What was written; `None` if nobody knows.
    """
    name = getattr(error, "filename", None) or place
    what = "A file" if name is None else f"`{name}`"
    free = _free_bytes(place if place is not None else name)
    room = "" if free is None else f" ({free:,} bytes are free)"
    # Libraries write several lines, the first of which says what went wrong.
    reason = " ".join(str(error).split("\n", 1)[0].split()) or type(error).__name__
    return DiskFullError(
        f"{what} cannot be written: {reason}. The disk or the quota is full{room}: free some space or name another "
        "directory, then give the same command again."
    )


def _give_back(file: int, path: Path) -> None:
    # A process that was forked from the one with the lock shares the file, and must not take the lock away.
    if _read_holder(path).get("pid") == os.getpid():
        with contextlib.suppress(OSError):
            path.unlink()
        if _HAS_LOCKS:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _try_lock(file: int) -> str:
    """`taken`, `held` by another process, or `unknown` where there are no locks."""
    if not _HAS_LOCKS:
        return "unknown"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return "held"
        if error.errno in _NO_LOCKS:
            return "unknown"
        raise
    return "taken"


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _describe_process() -> bytes:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode()


def _read_holder(path: Path) -> dict[str, Any]:
    """What a lock says of its process; empty if it says nothing, as for a moment when it is new."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _name_holder(holder: dict[str, Any]) -> str:
    if not holder:
        return "one that has just begun"
    return f"process {holder.get('pid')} on host {holder.get('host')}, since {holder.get('since')}"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process of a lock ran on this machine and has ended. On Windows there is no harmless way to ask."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid < 1 or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _free_bytes(place: str | os.PathLike[str] | None) -> int | None:
    """Room where something was to be written; its nearest directory that exists is asked."""
    if place is None:
        return None
    path = Path(place).expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
