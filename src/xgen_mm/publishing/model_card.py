"""Model cards from data: one file of facts per checkpoint, one template for all.

`render_card("xgen-mm-tiny")` gives the card of a checkpoint this package knows; `card_for_directory(path, ...)` the
facts for that of a training run. `xgen-mm card` does both on the command line, and checks cards.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from ..sections import nearest, parse_section
from .card_facts import (
    STATUSES,
    CardError,
    CardFacts,
    Catalogue,
    Harness,
    ResultTable,
    Scalar,
    Source,
)
from .card_metadata import UNKNOWN_LICENSE, build_metadata, metadata_text, split_of

# Written into every card, so that a page written by hand is never overwritten by mistake.
MARKER = "<!-- Made by `xgen-mm card` from data; change the data, not this page. -->"
TEMPLATE = "_model_card.md.jinja"
CATALOGUE = "_catalogue.yaml"
_SHARED = tuple(item.name for item in fields(Catalogue))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table, ready to print."""

    name: str
    split: str
    metric: str
    unit: str
    values: tuple[str, ...]
    interval: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedAverage:
    """A mean, ready to print."""

    label: str
    rows_text: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedTable:
    """A table of figures, ready to print."""

    title: str
    source: Source
    locator: str
    harness: Harness
    shots_text: str
    columns: tuple[str, ...]
    num_questions: int | None
    has_intervals: bool
    rows: tuple[Row, ...]
    averages: tuple[PrintedAverage, ...]
    notes: tuple[str, ...]


def card_names() -> tuple[str, ...]:
    """Names of all checkpoints that have a card, in alphabetical order."""
    names = (entry.name.removesuffix(".yaml") for entry in _cards().iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load_card(name: str) -> CardFacts:
    """Facts about a checkpoint.

    Args:
        name: One of `card_names()`, or its Hub id.

    Raises:
        CardError: If there is no such card, or its file is wrong.
    """
    short = name.rpartition("/")[2]
    if short not in card_names():
        raise CardError(f"There is no card `{name}`; {nearest(short, card_names())}")
    facts = parse_card(_read_packaged(f"{short}.yaml"), where=f"{short}.yaml")
    if facts.name != short or (name != short and name != facts.repo_id):
        raise CardError(f"`{short}.yaml` is the card of `{facts.repo_id or facts.name}`, not of `{name}`.")
    return facts


def parse_card(content: Mapping[str, Any], *, where: str) -> CardFacts:
    """Facts from plain values; benchmarks, harnesses, sources and citations of the catalogue are at hand.

    Args:
        content: Fields of `CardFacts`.
        where: What messages call it.

    Raises:
        CardError: If a key is unknown or missing, or a value has the wrong type.
    """
    shared = load_catalogue()
    merged = dict(content)
    for name in _SHARED:
        own = content.get(name) or {}
        if not isinstance(own, Mapping):
            raise CardError(f"`{where}: {name}` is {own!r}; expected a mapping.")
        merged[name] = {**getattr(shared, name), **own}
    return parse_section(CardFacts, merged, where=where)


@functools.cache
def load_catalogue() -> Catalogue:
    """Definitions that all cards share."""
    return parse_section(Catalogue, _read_packaged(CATALOGUE), where=CATALOGUE)


def render_card(card: str | CardFacts) -> str:
    """Markdown of a card, metadata included.

    Args:
        card: Name of a checkpoint that has a card, or facts.

    Raises:
        CardError: If there is no such card, or its facts are wrong.
    """
    facts = load_card(card) if isinstance(card, str) else card
    tables = tuple(_print_table(facts, table) for table in facts.results)
    usage = facts.usage
    text = _template().render(
        metadata=metadata_text(build_metadata(facts)),
        marker=MARKER,
        facts=facts,
        status=STATUSES[facts.status],
        license_name=facts.license.id if facts.license else UNKNOWN_LICENSE,
        model_id=usage.model_id or facts.repo_id or facts.name,
        base_id=facts.base_models[0] if facts.base_models else "",
        dtype=f', dtype="{usage.dtype}"' if usage.dtype else "",
        tables=tables,
        has_published=any(not table.source.is_own for table in tables),
        citations=[facts.bibliography[key].rstrip() for key in facts.citations],
    )
    return _squeeze_blank_lines(text)


def card_for_directory(directory: str | Path, **facts: Any) -> CardFacts:
    """Facts about a checkpoint directory, for `render_card`; see `card_directory.facts_of_directory`.

    Args:
        directory: Holds `config.json` or `adapter_config.json`, as a training run leaves it.
        **facts: Fields of `CardFacts`, and `training_args` of the run; they go before what the directory says.

    Raises:
        CardError: If it is no checkpoint directory, or a fact has an unknown name or a wrong type.
    """
    from .card_directory import facts_of_directory

    card = parse_card(facts_of_directory(Path(directory), facts), where=str(directory))
    return replace(card, parts=card.parts | _licenses_of(card.base_models))


def _licenses_of(base_models: tuple[str, ...]) -> dict[str, Scalar]:
    """Licences of those base models that have a card; they may bind what derives from them."""
    known = [name for name in base_models if name.rpartition("/")[2] in card_names()]
    licenses = {name: load_card(name).license for name in known}
    return {f"Licence of {name}": terms.id for name, terms in licenses.items() if terms is not None}


def write_card(card: str | CardFacts, path: str | Path) -> None:
    """Write a card; a page that was not made from data is left alone.

    Raises:
        CardError: If `path` holds a page without our marker.
    """
    target = Path(path)
    if target.is_file() and MARKER not in target.read_text(encoding="utf-8"):
        raise CardError(f"`{target}` was not made by `xgen-mm card`; move it away or choose another file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render_card(card), encoding="utf-8", newline="\n")


def _print_table(facts: CardFacts, table: ResultTable) -> PrintedTable:
    benchmarks = [facts.benchmarks[key] for key in table.values]
    few = table.shots != (0,)
    harness = facts.harnesses[table.harness]
    notes = [*table.notes, *([harness.note] if harness.note else [])]
    notes += [f"{benchmark.name}: {benchmark.note}" for benchmark in benchmarks if benchmark.note]
    notes += [average.note for average in table.averages if average.note]
    names = {key: facts.benchmarks[key].name for key in table.values}
    return PrintedTable(
        title=table.title,
        source=facts.sources[table.source],
        locator=table.locator,
        harness=harness,
        shots_text="Examples in the prompt: as the columns say." if few else "No examples in the prompt.",
        columns=tuple(f"{shots}-shot" for shots in table.shots) if few else ("value",),
        num_questions=table.num_questions,
        has_intervals=bool(table.intervals),
        rows=tuple(_print_row(facts, table, key) for key in table.values),
        averages=tuple(
            PrintedAverage(
                label=average.label,
                rows_text=", ".join(names[key] for key in average.over) or "all rows",
                value=f"{average.value:.1f}",
            )
            for average in table.averages
        ),
        notes=tuple(notes),
    )


def _print_row(facts: CardFacts, table: ResultTable, key: str) -> Row:
    benchmark = facts.benchmarks[key]
    unit = "%" if benchmark.unit == "percent" else "points"
    if benchmark.unit == "points" and benchmark.maximum is not None and benchmark.metric_type == "score":
        unit += f" of {benchmark.maximum:,.0f}"
    interval = table.intervals.get(key, ())
    return Row(
        name=benchmark.name,
        split=split_of(facts, table, key),
        metric=benchmark.metric + (" (lower is better)" if benchmark.is_lower_better else ""),
        unit=unit,
        values=tuple(_print_value(value, unit=unit) for value in table.values[key]),
        interval="-".join(f"{bound:.1f}" for bound in interval),
    )


def _print_value(value: float, *, unit: str) -> str:
    """Percentages and CIDEr with one decimal, as published; sums of points without, if they have none."""
    return f"{value:,.0f}" if unit.startswith("points of") and value == int(value) else f"{value:.1f}"


def _cell(value: object) -> str:
    """Text of a table's cell: one line, bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


@functools.cache
def _template() -> Any:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["cell"] = _cell
    return environment.from_string((_cards() / TEMPLATE).read_text(encoding="utf-8"))


def _squeeze_blank_lines(text: str) -> str:
    """At most one blank line in a row, none inside the metadata or at the end."""
    return "\n".join(_without_repeats(text.strip().split("\n"))) + "\n"


def _without_repeats(lines: list[str]) -> Iterator[str]:
    previous = ""
    for line in lines:
        line = line.rstrip()
        if line or previous:
            yield line
        previous = line


@functools.cache
def _read_packaged(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_cards() / name).read_text(encoding="utf-8"))
    return content


def _cards() -> Traversable:
    return files(__package__) / "cards"
