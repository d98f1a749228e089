"""The harness's own tasks on data of the user: its prompts and its metrics, without its download."""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import XGenMMError, one_line
from ..task import check_size

# Kinds of files that `datasets` reads without a script.
_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
_TASK = re.compile(r"^task:\s*[\"']?([\w.+-]+)[\"']?\s*$", re.MULTILINE)
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def find_task_files() -> dict[str, Path]:
    """Files of the harness's tasks by name, found without importing the harness or its tasks.

    Raises:
        ImportError: If the harness is not installed.
    """
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("lmms-eval is not installed: `pip install 'xgen-mm[eval]'` in an environment of its own.")
    root = Path(next(iter(spec.submodule_search_locations))) / "tasks"
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml")):
        match = _TASK.search(path.read_text(encoding="utf-8", errors="replace"))
        if match is not None:
            found.setdefault(match[1], path)
    return found


def read_task(path: Path) -> dict[str, Any]:
    """Settings of a task file with those it includes; functions are left out.

    Args:
        path: File of the task.

    Raises:
        XGenMMError: If it is no task file, holds too much, or includes itself.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = one_line(error)[:200]
        raise XGenMMError(f"`{path}` cannot be read as a task ({reason}); mend or remove it.") from error
    if not isinstance(content, dict):
        raise XGenMMError(f"`{path}` holds no task; expected a mapping of keys to values.")
    check_size(content, where=str(path))
    settings: dict[str, Any] = {}
    includes = content.pop("include", [])
    names = [includes] if isinstance(includes, str) else includes
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise XGenMMError(f"`{path}`: `include` names no files; expected a name or a list of names.")
    for name in reversed(names):
        included = Path(name) if Path(name).is_file() else path.parent / name
        if included.resolve() == path.resolve():
            raise XGenMMError(f"`{path}` includes itself; remove that line.")
        settings |= read_task(included)
    return settings | content


def write_local_tasks(data: Mapping[str, Path], directory: Path) -> dict[str, dict[str, Any]]:
    """Write task files that take everything but the data from the harness's own.

    Args:
        data: By task name a file, or a directory of files of one kind or written by `save_to_disk`.
        directory: Where to write; give it to the harness as `include_path`.

    Returns:
        Settings of the tasks by name. The names are the harness's own.

    Raises:
        XGenMMError: If a task or its data do not exist, or the data are of a kind that the harness cannot read.
        ImportError: If the harness is not installed.
    """
    files = find_task_files()
    written = {}
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in data.items():
        if name not in files:
            raise XGenMMError(unknown_task(name, files))
        settings = read_task(files[name])
        override = {
            "include": str(files[name]),
            "task": name,
            "dataset_name": None,
            **_dataset(Path(path), settings),
        }
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(override, sort_keys=False), encoding="utf-8")
        written[name] = settings | override
    return written


def unknown_task(name: str, known: Iterable[str]) -> str:
    """Message about a task that does not exist."""
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean `{close[0]}`? " if close else ""
    return f"lmms-eval has no task `{name}`; {guess}`lmms-eval tasks list` shows all."


def _dataset(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return {"dataset_path": str(path.resolve()), "dataset_kwargs": {"load_from_disk": True}}
    files = sorted(file for file in path.rglob("*") if file.suffix in _BUILDERS) if path.is_dir() else [path]
    kinds = {_BUILDERS.get(file.suffix) for file in files}
    if not path.exists() or len(kinds) != 1 or None in kinds:
        raise XGenMMError(
            f"`{path}` cannot be given to lmms-eval; expected a file ({', '.join(sorted(_BUILDERS))}), a directory of "
            "files of one such kind, or one written by `save_to_disk`."
        )
    names = [str(file.resolve()) for file in files]
    splits = {str(settings[key]) for key in _SPLITS if settings.get(key)}
    return {
        "dataset_path": kinds.pop(),
        "dataset_kwargs": {"data_files": {split: _of_split(names, split) for split in sorted(splits)}},
    }


def _of_split(names: list[str], split: str) -> list[str]:
    """Files whose names begin with the split's, as on the Hub; all of them if none does."""
    chosen = [name for name in names if re.match(rf"{re.escape(split)}(?:[-_.]|$)", Path(name).name)]
    return chosen or names


class _Loader(yaml.SafeLoader):
    """Reads task files; a function becomes `None`."""


_Loader.add_constructor("!function", lambda loader, node: None)
