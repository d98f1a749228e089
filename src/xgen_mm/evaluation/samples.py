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

from ..data.formats.row import PictureRules, Row, is_missing
from ..data.records import Picture
from ..errors import DataError
from ..images.bounded_download import is_url
from .metrics.aggregates import AGGREGATES
from .metrics.short_answers import whole_number
from .prompts import Piece, PlaceMarker, format_options, render
from .task import Layout, Task, TaskError

_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-Z])[.)][ \t]+(.*?)[ \t]*$", re.MULTILINE)
_OPTIONS_MARK = re.compile(r"\s*Options:\s*")
_OWN_LETTER = re.compile(r"\(?([A-Z])[.):]\s*")
_MIN_BASE64 = 64
# Of columns in a message.
_MOST_NAMED, _LONGEST_NAME = 30, 60
# How tables write that there is nothing: what pandas, with which harnesses read them, takes for an empty cell.
_ABSENT = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "None", "n/a", "nan", "null"}
)
# Endings that releases leave out of the names of their pictures.
_LEFT_OUT_SUFFIXES = ("", ".jpg", ".png")
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
        options: Texts of the options in order of their letters; empty where a letter has none.
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

    @property
    def choices(self) -> dict[str, str]:
        """Texts of the options by letter."""
        return {letter: text for letter, text in zip(ascii_uppercase, self.options, strict=False) if text}


def choose_layout(task: Task, values: Mapping[str, Any]) -> Layout:
    """The task's layout that fits the data: of those whose required columns are there, the one that lacks fewest.

    Args:
        task: The benchmark.
        values: A row, or several in one, as releases leave out keys where there is nothing to say.

    Raises:
        TaskError: If none fits.
    """
    needs = AGGREGATES[task.aggregate].needs if task.aggregate in AGGREGATES else ()
    required = {layout.name: layout.required_columns(groups=needs) for layout in task.layouts}
    fitting = [layout for layout in task.layouts if all(_has(values, column) for column in required[layout.name])]
    if fitting:
        return min(fitting, key=lambda layout: sum(not _has(values, column) for column in layout.columns()))
    names = [str(name) for name in values if not str(name).startswith("__")]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    shown = ", ".join(name[:_LONGEST_NAME] for name in names[:_MOST_NAMED])
    wanted = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in required.items())
    raise TaskError(
        f"the data of `{task.name}` have the columns {shown or 'none'}{more}; expected those of one layout ({wanted})."
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
    pictures = _pictures(row, layout, [root / folder for root in roots for folder in ("", *layout.folders)])
    question, options = _question_and_options(row, layout, _question(row, layout))
    marker = PlaceMarker(layout.markers, len(pictures))
    marked_question = marker.mark(question)
    marked_options = [marker.mark_option(option) for option in options]
    texts = {name: _optional_text(lookup(values, column)) for name, column in layout.texts.items()}
    fields: dict[str, Any] = {
        **{name: marker.mark(text) for name, text in texts.items()},
        "question": marked_question,
        "options": format_options(marked_options),
        "letters": "".join(letter for letter, text in zip(ascii_uppercase, options, strict=False) if text),
        # The released evaluation code puts a space behind every picture.
        "pictures": "".join(f"{place} " for place in marker.rest()),
        "places": marker.rest(),
        "pictures_if_unplaced": "" if marker.has_placed else "".join(f"{place} " for place in marker.rest()),
    }
    groups = {name: _optional_text(lookup(values, column)) for name, column in layout.groups.items()}
    pieces = render(task.prompt, fields) if task.prompt else ()
    if task.prompt and not any(isinstance(piece, str) and piece.strip() for piece in pieces):
        raise row.error("empty text", ", ".join(layout.texts.values()), "there is nothing to ask; expected a text")
    return Sample(
        id=id,
        position=position,
        pieces=pieces,
        pictures=tuple(pictures),
        target=_target(row, layout, options),
        options=tuple(options),
        groups=groups,
        fields={**texts, "question": question},
    )


def row_id(layout: Layout, values: Mapping[str, Any], position: int) -> str:
    """What a row is called: its own id, its name in an object of rows, or its number."""
    name = _optional_text(lookup(values, layout.id)) if layout.id else ""
    return name or _optional_text(values.get("__key__")) or str(position)


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
    elif isinstance(values, list | tuple) and (index := whole_number(head)) is not None and index < len(values):
        inner = values[index]
    return inner if not rest or inner is None else lookup(inner, rest)


def _join(values: Mapping[str, Any], *columns: str) -> str:
    return "_".join(_text(lookup(values, column)) for column in columns)


def _part(values: Mapping[str, Any], column: str, number: str) -> str:
    parts = _text(lookup(values, column)).split("_")
    return parts[int(number)] if int(number) < len(parts) else ""


def _remainder(values: Mapping[str, Any], column: str, divisor: str) -> str:
    text = _text(lookup(values, column))
    number = whole_number(text)
    return text if number is None else str(number % int(divisor))


def _path(values: Mapping[str, Any], *columns: str) -> str:
    return "/".join(_text(lookup(values, column)) for column in columns)


_DERIVATIONS: dict[str, Callable[..., str]] = {"+": _join, "/": _part, "%": _remainder, ">": _path}


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing, as pandas reads it.

    >>> is_absent("N/A"), is_absent(float("nan")), is_absent("none of these")
    (True, True, False)
    """
    return is_missing(value) or (isinstance(value, str) and value.strip() in _ABSENT)


def _has(values: Mapping[str, Any], column: str) -> bool:
    return column in values or column.partition(".")[0] in values


def _optional_text(value: Any) -> str:
    return "" if is_absent(value) else _text(value)


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
        if is_absent(value):
            continue
        items = _as_list(value)
        for index, item in enumerate(items):
            found.append(_picture(row, item, f"{column}[{index}]", roots))
    if layout.pictures and not found:
        raise row.error("missing image", ", ".join(layout.pictures[:1]), "there is no picture; expected one")
    return found


def _picture(row: Row, value: Any, where: str, roots: Sequence[Path]) -> Picture:
    if isinstance(value, str) and is_url(value):
        # An evaluation never goes to the network for a picture.
        raise row.error("missing image", where, f"the picture is an address ({value[:60]}); expected the picture")
    encoded = _decode_base64(value)
    if encoded is not None:
        value = encoded
    suffixes = _LEFT_OUT_SUFFIXES if isinstance(value, str) and value.strip() else ("",)
    error: DataError | None = None
    for root in roots or (None,):
        rules = PictureRules(root=root)
        for suffix in suffixes:
            try:
                found = value + suffix if suffix else value
                return Row(values=row.values, dataset=row.dataset, key=row.key, rules=rules).picture(found, where)
            except DataError as fault:
                # What is wrong with a picture that is there says more than that there is none elsewhere.
                if error is None or (error.reason == "missing image" and fault.reason != "missing image"):
                    error = fault
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


def _question(row: Row, layout: Layout) -> str:
    if not layout.question:
        return ""
    value = lookup(row.values, layout.question)
    if is_absent(value):
        raise row.error("missing field", layout.question, "there is no question; expected one")
    return _plain_text(row, value, layout.question)


def _plain_text(row: Row, value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        raise row.error("wrong type", where, "found an object; expected a text or a number")
    return _text(value)


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
        # Cells may be empty; what stands in a list was put there.
        found = [] if is_absent(value) else [_text(item) for item in _as_list(value)]
    else:
        found = [_optional_text(lookup(row.values, column)) for column in layout.options]
    while found and not found[-1]:
        found.pop()
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
    # "None" and the like may be the right answer, where that is a text.
    names_option = kind == "index" or (kind == "letter" and options)
    is_empty = is_absent(value) if names_option else is_missing(value) or value == ""
    if is_empty or (kind == "texts" and value in ([], ())):
        raise row.error("missing field", layout.target, "there is no answer; expected one")
    if kind == "texts":
        return [_plain_text(row, item, layout.target) for item in _as_list(value)]
    text = _plain_text(row, value, layout.target).strip()
    match kind:
        case "yes_no":
            return _yes_or_no(row, text, layout.target)
        case "letter":
            return _letter(row, text, layout.target, options)
        case "index":
            return _letter_at(row, whole_number(text), text, layout.target, options)
        case "option":
            place = options.index(text) if text in options else None
            return _letter_at(row, place, text, layout.target, options)
    return text


def _yes_or_no(row: Row, text: str, where: str) -> str:
    if text.lower() not in (*_YES, *_NO):
        raise row.error("wrong type", where, f"found {text!r}; expected yes or no")
    return "yes" if text.lower() in _YES else "no"


def _letter(row: Row, text: str, where: str, options: list[str]) -> str:
    letter = text.strip("() .").upper()
    is_letter = len(letter) == 1 and letter.isalpha()
    if not options:
        # A few multiple-choice sets also hold open questions; their answer is a text.
        return letter if is_letter else text
    if not is_letter or letter not in ascii_uppercase:
        raise row.error("wrong type", where, f"found {text[:_LONGEST_NAME]!r}; expected the letter of an option")
    return _letter_at(row, ascii_uppercase.index(letter), text, where, options)


def _letter_at(row: Row, place: int | None, text: str, where: str, options: list[str]) -> str:
    """Letter of the option at a place, if there is one."""
    if place is None or place >= min(len(options), len(ascii_uppercase)) or not options[place]:
        raise row.error(
            "wrong type", where, f"found {text[:_LONGEST_NAME]!r}; expected one of the {len(options)} options"
        )
    return ascii_uppercase[place]
