"""What a run has finished, on disk: one line per sample, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import XGenMMError

DIRECTORY = "journal"
SETTINGS_FILE = "settings.json"


class JournalError(XGenMMError):
    """A directory holds a run with other settings, or one that was not to be continued."""


class Journal:
    """Finished samples of a run. Every process appends to a file of its own and reads those of all.

    Args:
        directory: Of the run; the journal is a directory in it.
        rank: Number of this process.
        find_faults: What in a record is not as its reader needs it, beyond `id`, `position` and `error`, which every
            record has. Records with faults do not count.
    """

    def __init__(
        self, directory: Path, *, rank: int = 0, find_faults: Callable[[Any], list[str]] = lambda _: []
    ) -> None:
        self.directory = directory / DIRECTORY
        self._path = self.directory / f"rank-{rank:03d}.jsonl"
        self._find_faults = find_faults
        self._file: IO[bytes] | None = None
        self._finished: dict[tuple[str, str], dict[str, Any]] = {}

    def start(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Begin a run, or go on with one. Only the main process calls this.

        Args:
            settings: What decides the results.
            resume: Whether a run that is already there is continued.

        Raises:
            JournalError: If there is a run and it is not to be continued, or it had other settings.
        """
        path = self.directory / SETTINGS_FILE
        text = json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)
        if path.is_file():
            if not resume:
                raise JournalError(
                    f"`{self.directory.parent}` already holds a run: add `--resume` to go on with it, or choose "
                    "another `--output`."
                )
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise JournalError(
                    f"`{path}` cannot be read ({' '.join(str(error).split())[:80]}): choose another `--output`, or "
                    f"delete `{self.directory}` to begin anew."
                ) from error
            changed = list(_differences(before, json.loads(text)))
            if changed:
                raise JournalError(
                    f"`{self.directory.parent}` holds a run with other settings: {'; '.join(changed[:5])}. Use those "
                    "again, or choose another `--output`."
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)

    def load(self) -> None:
        """Read what all processes have finished. A line that an interruption cut off does not count."""
        self._finished = {}
        for path in sorted(self.directory.glob("rank-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                    task, sample = record["task"], record["sample"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
                if not isinstance(task, str) or not _is_record(sample) or self._find_faults(sample):
                    continue
                known = self._finished.get((task, sample["id"]))
                # A success replaces an error, whichever process has it.
                if known is None or known["error"] is not None:
                    self._finished[task, sample["id"]] = sample

    def finished(self, task: str, id: str) -> dict[str, Any] | None:
        """The record of a sample that is done; `None` if it is not, or failed and may be tried again."""
        record = self._finished.get((task, id))
        return record if record is not None and record["error"] is None else None

    def has_success(self, task: str) -> bool:
        """Whether an earlier run, as it was loaded, has finished a sample of a task."""
        return any(name == task and record["error"] is None for (name, _), record in self._finished.items())

    def records(self, task: str) -> list[dict[str, Any]]:
        """All records of a task in the order of its data."""
        found = [record for (name, _), record in self._finished.items() if name == task]
        return sorted(found, key=lambda record: record["position"])

    def append(self, task: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep finished samples, safe from a crash when this returns."""
        if self._file is None:
            self._file = self._path.open("ab")
            # A line that was cut off must not swallow the next one.
            if self._file.tell():
                self._file.write(b"\n")
        for record in records:
            line = json.dumps({"task": task, "sample": record}, ensure_ascii=False)
            self._file.write(line.encode("utf-8", "surrogatepass") + b"\n")
            self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file of this process."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_record(sample: Any) -> bool:
    return (
        isinstance(sample, dict)
        and isinstance(sample.get("id"), str)
        and isinstance(sample.get("position"), int)
        and isinstance(sample.get("error", 0), str | None)
    )


def _differences(before: Any, now: Any, name: str = "") -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"`{name}` was {json.dumps(before, ensure_ascii=False)}, now {json.dumps(now, ensure_ascii=False)}"
