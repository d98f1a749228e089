"""Rows of benchmarks to samples: question, pictures, right answer, groups."""

import ast
import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ..data.formats.row import PictureRules, Row, has_web_scheme, is_missing
from ..data.records import Picture
from ..errors import DataError
from .prompts import Piece, PlaceMarker, format_options, render
from .task import Layout, Task, TaskError

_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-Z])[.)][ \t]+(.*?)[ \t]*$", re.MULTILINE)
_OPTIONS_MARK = re.compile(r"\s*Options:\s*")
_OWN_LETTER = re.compile(r"\(?([A-Z])[.):]\s*")
_MIN_BASE64 = 64
# How tables write that there is nothing.
_ABSENT = ("", "N/A", "nan")
_YES, _NO = ("yes", "1", "true", "y"), ("no", "0", "false", "n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        id: Tells it from the others of its task.
        position: Place in the data set, from 0.
        pieces: Prompt: texts and indices of pictures.
        pictures: Pictures, not decoded yet.
        target: Right answer as JSON: the letter of an option, a text, a list of texts, "yes" or "no", or `None`.
        options: Texts of the options in order of their letters.
        groups: What metrics group by.
        fields: Texts of the row by name, for demonstrations and scorers.
    """

    id: str
    position: int
    pieces: tuple[Piece, ...]
    pictures: tuple[Picture, ...]
    target: Any
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


def choose_layout(task: Task, values: Mapping[str, Any]) -> Layout:
    """The task's layout that fits a row.

    Raises:
        TaskError: If none does.
    """
    for layout in task.layouts:
        if all(_has(values, column) for column in layout.required_columns()):
            return layout
    wanted = "; ".join(f"{layout.name}: {', '.join(layout.required_columns())}" for layout in task.layouts)
    raise TaskError(
        f"the data of `{task.name}` have the columns {', '.join(map(str, values)) or 'none'}; expected those of one "
        f"layout ({wanted})."
    )


def is_kept(layout: Layout, values: Mapping[str, Any]) -> bool:
    """Whether a row takes part."""
    return all(_same(lookup(values, column), wanted) for column, wanted in layout.keep.items())


def build_sample(
    task: Task, layout: Layout, values: Mapping[str, Any], *, id: str, position: int, roots: Sequence[Path]
) -> Sample:
    """A sample of one row.

    Args:
        task: The benchmark.
        layout: How its columns are named.
        values: The row.
        id: What to call it.
        position: Its place in the data set.
        roots: Directories in which picture names are looked up.

    Raises:
        DataError: If the row does not hold what the layout says.
        TaskError: If the prompt cannot be filled.
    """
    row = Row(values=values, dataset=task.name, key=id)
    pictures = _pictures(row, layout, roots)
    question = _text(lookup(values, layout.question)) if layout.question else ""
    question, options = _question_and_options(row, layout, question)
    marker = PlaceMarker(layout.markers, len(pictures))
    marked_question = marker.mark(question)
    marked_options = [marker.mark_option(option) for option in options]
    texts = {name: _text(lookup(values, column)) for name, column in layout.texts.items()}
    texts = {name: "" if text == "nan" else text for name, text in texts.items()}
    fields: dict[str, Any] = {
        **{name: marker.mark(text) for name, text in texts.items()},
        "question": marked_question,
        "options": format_options(marked_options),
        "letters": ascii_uppercase[: len(options)],
        # The released evaluation code puts a space behind every picture.
        "pictures": "".join(f"{place} " for place in marker.rest()),
        "places": marker.rest(),
        "pictures_if_unplaced": "" if marker.has_placed else "".join(f"{place} " for place in marker.rest()),
    }
    groups = {name: _text(lookup(values, column)) for name, column in layout.groups.items()}
    return Sample(
        id=id,
        position=position,
        pieces=render(task.prompt, fields) if task.prompt else (),
        pictures=tuple(pictures),
        target=_target(row, layout, options),
        options=tuple(options),
        groups=groups,
        fields={**texts, "question": question},
    )


def row_id(layout: Layout, values: Mapping[str, Any], position: int) -> str:
    """What a row is called: its own id, or its number."""
    value = lookup(values, layout.id) if layout.id else None
    return str(position) if is_missing(value) or value == "" else _text(value)


def lookup(values: Any, column: str) -> Any:
    """Value of a column or path; `None` if there is none.

    >>> lookup({"answers": [{"answer": "red"}, {"answer": "blue"}]}, "answers.*.answer")
    ['red', 'blue']
    >>> lookup({"parts": [{"a": 1}, {"b": 2}]}, "parts.0.b") is None
    True
    """
    if isinstance(values, Mapping) and column in values:
        return values[column]
    for sign, derive in _DERIVATIONS.items():
        if sign in column and isinstance(values, Mapping):
            return derive(values, *column.split(sign))
    head, _, rest = column.partition(".")
    if head in ("*", "first") and isinstance(values, list | tuple):
        found = [lookup(item, rest) if rest else item for item in values]
        found = [item for item in found if item is not None]
        return found if head == "*" else next(iter(found), None)
    inner: Any = None
    if isinstance(values, Mapping) and rest:
        inner = values.get(head)
    elif isinstance(values, list | tuple) and head.isdigit() and int(head) < len(values):
        inner = values[int(head)]
    return inner if not rest or inner is None else lookup(inner, rest)


def _join(values: Mapping[str, Any], *columns: str) -> str:
    return "_".join(_text(lookup(values, column)) for column in columns)


def _part(values: Mapping[str, Any], column: str, number: str) -> str:
    parts = _text(lookup(values, column)).split("_")
    return parts[int(number)] if int(number) < len(parts) else ""


def _remainder(values: Mapping[str, Any], column: str, divisor: str) -> str:
    text = _text(lookup(values, column))
    return str(int(text) % int(divisor)) if text.isdigit() else text


_DERIVATIONS: dict[str, Callable[..., str]] = {"+": _join, "/": _part, "%": _remainder}


def _has(values: Mapping[str, Any], column: str) -> bool:
    return column in values or column.partition(".")[0] in values


def _same(value: Any, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(value == choice or _text(value) == _text(choice) for choice in choices)


def _text(value: Any) -> str:
    """A value as text; numbers that a table turned into floats are whole again."""
    if is_missing(value):
        return ""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _pictures(row: Row, layout: Layout, roots: Sequence[Path]) -> list[Picture]:
    found = []
    for column in layout.pictures:
        value = lookup(row.values, column)
        if is_missing(value) or value == "":
            continue
        items = _as_list(value)
        for index, item in enumerate(items):
            found.append(_picture(row, item, f"{column}[{index}]", roots))
    return found


def _picture(row: Row, value: Any, where: str, roots: Sequence[Path]) -> Picture:
    if isinstance(value, str) and has_web_scheme(value):
        # An evaluation never goes to the network for a picture.
        raise row.error("missing image", where, f"the picture is an address ({value[:60]}); expected the picture")
    encoded = _decode_base64(value)
    if encoded is not None:
        value = encoded
    error: DataError | None = None
    for root in roots or (None,):
        try:
            rules = PictureRules(root=root)
            return Row(values=row.values, dataset=row.dataset, key=row.key, rules=rules).picture(value, where)
        except DataError as found:
            error = error or found
    raise error or row.error("missing image", where, "no picture")


def _decode_base64(value: Any) -> bytes | None:
    """Bytes of a picture written in base64, as VLMEvalKit's files hold them."""
    if not isinstance(value, str) or len(value) < _MIN_BASE64 or "." in value[:_MIN_BASE64]:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _as_list(value: Any) -> list[Any]:
    """The value as a list; texts that hold a list, as JSON or as Python writes it, are read."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str) and value.strip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            try:
                items = parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
            if isinstance(items, list | tuple):
                return list(items)
    return [value]


def _question_and_options(row: Row, layout: Layout, question: str) -> tuple[str, list[str]]:
    if layout.options_in_question == "lines":
        found = list(_OPTION_LINE.finditer(question))
        return (question[: found[0].start()].rstrip(), [match[2] for match in found]) if found else (question, [])
    if layout.options_in_question == "inline":
        mark = _OPTIONS_MARK.search(question)
        return (question[: mark.start()], _inline_options(question[mark.end() :])) if mark else (question, [])
    return question, _options(row, layout)


def _inline_options(text: str) -> list[str]:
    """Options of `A: one, B: two`; a letter counts only where it is the next one."""
    options: list[str] = []
    letters = iter(ascii_uppercase)
    letter = next(letters)
    while start := re.search(rf"(?:^|,?\s+)\(?{letter}\)?:\s+", text):
        letter = next(letters)
        following = re.search(rf",?\s+\(?{letter}\)?:\s", text[start.end() :])
        end = start.end() + following.start() if following else len(text)
        options.append(text[start.end() : end].strip())
        text = text[end:]
    return options


def _options(row: Row, layout: Layout) -> list[str]:
    if len(layout.options) == 1:
        value = lookup(row.values, layout.options[0])
        found = [] if is_missing(value) or value == "" else [_text(item) for item in _as_list(value)]
    else:
        values = [_text(lookup(row.values, column)) for column in layout.options]
        present = [index for index, value in enumerate(values) if value not in _ABSENT]
        found = values[: max(present, default=-1) + 1]
    if not found and layout.open_alternative and layout.target:
        return [_text(lookup(row.values, layout.target)), layout.open_alternative]
    letters = [match[1] if (match := _OWN_LETTER.match(option)) else "" for option in found]
    if found and letters == list(ascii_uppercase[: len(found)]):
        # Some data sets write the letter into the option.
        return [_OWN_LETTER.sub("", option, count=1) for option in found]
    return found


def _target(row: Row, layout: Layout, options: list[str]) -> Any:
    value = lookup(row.values, layout.target) if layout.target else None
    kind = layout.target_as
    if kind == "none":
        return None
    if is_missing(value):
        raise row.error("missing field", layout.target, "there is no answer; expected one")
    if kind == "texts":
        return [_text(item) for item in _as_list(value)]
    text = _text(value).strip()
    if kind == "yes_no":
        if text.lower() not in (*_YES, *_NO):
            raise row.error("wrong type", layout.target, f"found {text!r}; expected yes or no")
        return "yes" if text.lower() in _YES else "no"
    if layout.open_alternative and options[1:] == [layout.open_alternative]:
        return ascii_uppercase[0]
    if kind == "letter":
        letter = text.strip("() .")
        # A few multiple-choice sets also hold open questions; their answer is a text.
        return letter.upper() if len(letter) == 1 and letter.isalpha() else text
    if kind == "index":
        if not text.isdigit() or int(text) >= len(ascii_uppercase):
            raise row.error("wrong type", layout.target, f"found {text!r}; expected the number of an option")
        return ascii_uppercase[int(text)]
    if kind == "option":
        if text not in options:
            raise row.error("wrong type", layout.target, f"found {text!r}; expected one of the options {options}")
        return ascii_uppercase[options.index(text)]
    return text
