"""`results.json`: what a run found, written, read and checked in one place."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import XGenMMError, one_line

FORMAT, VERSION = "xgen-mm-evaluation", 1
RESULTS_FILE, PICTURES = "results.json", "pictures"

# The whole document, one task of it, and one sample, as JSON has them.
Results: TypeAlias = dict[str, Any]
TaskResult: TypeAlias = dict[str, Any]
SampleRecord: TypeAlias = dict[str, Any]

_REMEDY = "the file is damaged, and `xgen-mm evaluate ... --resume` writes it again from the journal beside it"
# Longest part of a wrong value in a message.
_LONGEST = 60


class ResultsError(XGenMMError):
    """A file does not hold the results of an evaluation."""


def make_results(*, model: Mapping[str, Any], settings: Mapping[str, Any], tasks: Mapping[str, TaskResult]) -> Results:
    """The document.

    Args:
        model: Name, revision, hash of the configuration, dtype.
        settings: What decided the results; nothing that differs between runs of the same.
        tasks: Results by task.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        # As they will be read back: tuples become lists.
        "model": json.loads(json.dumps(dict(model))),
        "settings": json.loads(json.dumps(dict(settings))),
        "tasks": dict(tasks),
    }


def write_results(results: Results, path: str | Path) -> None:
    """Write the document so that it is there as a whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.part")
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
    os.replace(temporary, target)


def read_results(path: str | Path) -> Results:
    """Read and check a document.

    Args:
        path: The file, or the directory of a run.

    Raises:
        ResultsError: If it cannot be read, or is no document of this format and version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULTS_FILE
        if not file.is_file():
            raise ResultsError(f"`{path}` holds no `{RESULTS_FILE}`; an interrupted run goes on with `--resume`.")
    elif not file.is_file():
        raise ResultsError(f"there is no `{path}`; give the `{RESULTS_FILE}` of a run, or its directory.")
    try:
        content = json.loads(file.read_bytes())
        # What is nested too deeply to be written cannot be shown either.
        json.dumps(content)
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error)[: 3 * _LONGEST]
        raise ResultsError(f"`{path}` cannot be read as the results of an evaluation: {reason}; {_REMEDY}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultsError(f"`{path}` holds no results of an evaluation; expected `format` {FORMAT!r}.")
    if content.get("version") != VERSION:
        found = _shown(content.get("version"))
        raise ResultsError(f"`{path}` has version {found}; this package reads version {VERSION}.")
    problem = next(iter(find_faults(content)), None)
    if problem is not None:
        raise ResultsError(f"`{path}`: {problem}; {_REMEDY}.")
    return content


def find_faults(results: Mapping[str, Any]) -> list[str]:
    """What in a document is not as it should be."""
    faults = [
        f"`{name}` is missing" for name in ("model", "settings", "tasks") if not isinstance(results.get(name), dict)
    ]
    if faults:
        return faults
    model, limit = results["model"], results["settings"].get("limit")
    faults += [
        f"`model.{name}` is {_shown(model[name])}, expected a text"
        for name in ("name", "revision", "dtype")
        if not isinstance(model.get(name, ""), str) and model[name] is not None
    ]
    if limit is not None and not _is_count(limit):
        faults.append(f"`settings.limit` is {_shown(limit)}, expected a whole number")
    for name, task in results["tasks"].items():
        where = f"tasks.{name[:_LONGEST]}"
        faults += _find_field_faults(task, _TASK_FIELDS, where=where)
        samples = task.get("samples") if isinstance(task, dict) else None
        for index, sample in enumerate(samples if isinstance(samples, list) else []):
            faults += find_sample_faults(sample, where=f"{where}.samples[{index}]")
    return faults


def find_sample_faults(sample: Any, *, where: str = "sample") -> list[str]:
    """What in the record of a sample is not as it should be."""
    return _find_field_faults(sample, _SAMPLE_FIELDS, where=where)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    # Larger whole numbers than any float would fail where figures are computed.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_LARGEST < value < _LARGEST


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_interval(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(figure, dict)
        and _is_number(figure.get("value"))
        and all(isinstance(figure.get(name), str) for name in ("metric", "source", "model"))
        for figure in value
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_LARGEST = 1e300
# Per field what it must hold, and whether it may be missing.
_Fields: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], bool]]
_TASK_FIELDS: _Fields = {
    "metrics": (_are_numbers, False),
    "main_metric": (_is(str), False),
    "higher_is_better": (_is(bool), False),
    "paper": (_are_figures, False),
    "num_samples": (_is_count, False),
    "num_errors": (_is_count, False),
    "harness": (_is(dict, type(None)), False),
    "samples": (_is(list), False),
    "title": (_is(str), True),
    "interval": (_is_interval, True),
    "aggregate": (_is(str), True),
    "aggregate_options": (_is(dict, type(None)), True),
}
_SAMPLE_FIELDS: _Fields = {
    "id": (_is(str), False),
    "prompt": (_is(str), False),
    "pictures": (_are_texts, False),
    "reply": (_is(str), False),
    "scores": (_are_numbers, False),
    "groups": (_are_named_texts, False),
    "error": (_is(str, type(None)), False),
}


def _find_field_faults(value: Any, fields: _Fields, *, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"`{where}` is no object"]
    return [
        f"`{where}.{name}` is {_shown(value[name]) if name in value else 'missing'}"
        for name, (is_right, may_miss) in fields.items()
        if (name in value and not is_right(value[name])) or (name not in value and not may_miss)
    ]


def _shown(value: Any) -> str:
    return json.dumps(value)[:_LONGEST]
