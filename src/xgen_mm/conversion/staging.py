"""A destination directory that appears only when it is complete, and can be continued after an interruption."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ConversionError
from ..output_directory import locked_directory
from ..weight_files import read_json
from .streaming import OutputFile, file_checksum

logger = logging.getLogger(__name__)

SUFFIX = ".partial"
PROGRESS_NAME = "progress.json"
CHECKSUMS_NAME = "checksums.json"
# Copying one file keeps one core busy; more than two at once only fight over the disk.
NUM_WORKERS = min(2, os.cpu_count() or 1)

WriteFile = Callable[[OutputFile], str]


class StagingDirectory:
    """Collects files beside the destination and moves them there at the end.

    Files that an interrupted run of the same job finished are checked and kept.

    Args:
        destination: Directory to create.
        job: Everything that decides what is written; another job does not continue this one.

    Raises:
        ConversionError: If the destination holds something already.
        DirectoryInUseError: If another process is writing it.
        DiskFullError: If there is no room for it.
    """

    def __init__(self, destination: Path, *, job: Any) -> None:
        """Prepare the directory; see the class for the arguments."""
        self.destination = destination
        self._lock = locked_directory(destination)
        self.path = destination.with_name(destination.name + SUFFIX)
        self.checksums: dict[str, str] = {}
        self.kept: list[str] = []
        self._job = hashlib.sha256(json.dumps(job, sort_keys=True, default=str).encode()).hexdigest()

    def __enter__(self) -> "StagingDirectory":
        """Create the directory, or take over what an interrupted run left."""
        self._lock.__enter__()
        try:
            self._prepare()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _prepare(self) -> None:
        check_destination(self.destination)
        progress = self.path / PROGRESS_NAME
        finished: dict[str, str] = {}
        if progress.is_file():
            try:
                state = read_json(progress)
                finished = state["files"] if state["job"] == self._job else {}
            except (ConversionError, KeyError, TypeError):
                finished = {}
        self.kept = [name for name, digest in finished.items() if self._is_intact(name, digest)]
        self.checksums = {name: finished[name] for name in self.kept}
        if self.path.exists():
            self._remove_leftovers()
        self.path.mkdir(parents=True, exist_ok=True)
        self._save_progress()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave everything as it is; a later run continues."""
        self._lock.__exit__(error_type, error, trace)

    def write(self, files: Sequence[OutputFile], write_file: WriteFile) -> None:
        """Write weight files, those that are kept excepted.

        Args:
            files: What to write.
            write_file: Writes one file and returns its checksum.
        """
        waiting = [output for output in files if output.name not in self.checksums]
        with ThreadPoolExecutor(max_workers=NUM_WORKERS) as pool:
            names = {pool.submit(write_file, output): output.name for output in waiting}
            for written in as_completed(names):
                self.checksums[names[written]] = written.result()
                self._save_progress()

    def finish(self, *, with_checksums: bool = True) -> None:
        """Add the checksums of all files and move the directory to its destination."""
        (self.path / PROGRESS_NAME).unlink()
        if with_checksums:
            write_checksums(self.path, known=self.checksums)
        if self.destination.exists():
            # Checked to be empty when the job began; `rmdir` fails if it is not any more.
            self.destination.rmdir()
        os.replace(self.path, self.destination)

    def _is_intact(self, name: str, digest: str) -> bool:
        path = self.path / name
        intact = path.is_file() and file_checksum(path) == digest
        logger.info("%s %s", "Keeping" if intact else "Writing again:", name)
        return intact

    def _remove_leftovers(self) -> None:
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(self.path).as_posix() not in self.checksums:
                path.unlink()

    def _save_progress(self) -> None:
        progress = self.path / PROGRESS_NAME
        temporary = progress.with_suffix(".tmp")
        temporary.write_text(json.dumps({"job": self._job, "files": self.checksums}))
        os.replace(temporary, progress)


def check_destination(destination: Path) -> None:
    """Refuse a destination that holds something.

    Raises:
        ConversionError: If it is a file or a directory with content.
    """
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise ConversionError(
            f"{destination} exists and is not empty; nothing is overwritten. Name another, or remove it."
        )


def write_checksums(directory: Path, *, known: dict[str, str]) -> None:
    """Write `checksums.json` with the checksum of every file.

    Args:
        directory: Directory of the files.
        known: Checksums that need no reading, by path relative to the directory.
    """
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    digests = {name: known.get(name) or file_checksum(directory / name) for name in files if name != CHECKSUMS_NAME}
    text = json.dumps({"algorithm": "crc32", "files": digests}, indent=2)
    (directory / CHECKSUMS_NAME).write_text(text + "\n", encoding="utf-8")


def damaged_files(directory: Path, *, report: Callable[[int], object] = lambda _: None) -> list[str] | None:
    """Files of a converted checkpoint that are not what was written.

    Args:
        directory: The checkpoint.
        report: Called with the number of bytes after each buffer.

    Returns:
        Names of missing and changed files, or `None` if the checkpoint has no checksums.

    Raises:
        ConversionError: If `checksums.json` itself is damaged.
    """
    path = directory / CHECKSUMS_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ConversionError(f"{path} is damaged: it lists no files.")
    return [
        name
        for name, digest in files.items()
        if not (directory / name).is_file() or file_checksum(directory / name, report=report) != digest
    ]
