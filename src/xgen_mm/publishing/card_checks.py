"""Finds what is wrong with a card: its data, its metadata and its text. Every finding is one line."""

import ast
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..sections import load_yaml
from .card_facts import CardFacts, ResultTable
from .card_metadata import DATASET_TYPE, PIPELINE_TAG, eval_results, split_of
from .secret_patterns import PATH_IN_CARD, kinds_of_secrets

# Half of the last printed digit, and a little for the arithmetic.
TOLERANCE = 0.05 + 1e-9
LEAKS = {
    "a path of this machine": PATH_IN_CARD,
    "an unfilled placeholder": re.compile(r"\{\{|\}\}|\{%|More Information Needed|\bTODO\b"),
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\n]*)\)?")


def check_facts(facts: CardFacts) -> list[str]:
    """Findings in a card's data: figures out of their unit's range, wrong means, tables the metadata cannot hold.

    That every figure has a benchmark, a harness and a source is a condition of having `facts` at all.

    Args:
        facts: What the card states.
    """
    findings = [finding for table in facts.results for finding in _check_table(facts, table)]
    if facts.status != "paper_only":
        findings += _check_uniqueness(facts)
    return findings


def check_text(text: str) -> list[str]:
    """Findings in a finished card: metadata, code, links, and what must not be published.

    Args:
        text: Markdown with its metadata.
    """
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        return ["there is no metadata: the page has to start with a block between lines of `---`"]
    body = text[match.end() :]
    findings = [*_check_metadata(match.group(2), body), *_check_code(body)]
    findings += [f"`{link}` is no good link: {reason}" for link, reason in _bad_links(_FENCE.sub("", body))]
    for number, line in enumerate(text.splitlines(), start=1):
        # What was found is not repeated: it may be secret.
        found = [what for what, pattern in LEAKS.items() if pattern.search(line)]
        findings += [f"line {number} holds {what}" for what in (*found, *kinds_of_secrets(line))]
    return findings


def _check_table(facts: CardFacts, table: ResultTable) -> Iterator[str]:
    where = f"table {table.title!r}"
    if not table.locator:
        yield f"{where}: `locator` is empty; say where in the source the figures stand"
    source = facts.sources[table.source]
    reason = _bad_target(source.url) if source.url or not source.is_own else None
    if reason:
        yield f"{where}: the source's address `{source.url}` is no good: {reason}"
    for key, values in table.values.items():
        benchmark = facts.benchmarks[key]
        bounds = table.intervals.get(key, ())
        maximum = 100.0 if benchmark.unit == "percent" else benchmark.maximum
        for value in (*values, *bounds):
            if value < 0 or (maximum is not None and value > maximum):
                yield f"{where}: {benchmark.name} is {value}, outside 0 to {maximum:g} ({benchmark.unit})"
        if benchmark.unit == "percent" and not benchmark.is_lower_better and any(0 < value <= 1 for value in values):
            yield f"{where}: {benchmark.name} is {list(values)}, which looks like a share; write percent"
        if bounds and not (len(bounds) == 2 and bounds[0] <= values[0] <= bounds[1]):
            yield f"{where}: {benchmark.name} is {values[0]}, outside its interval {list(bounds)}"
        if not split_of(facts, table, key):
            yield f"{where}: {benchmark.name} has no split; write `not stated` if nobody says"
    yield from _check_averages(facts, table)
    yield from _check_sums(table)


def _check_averages(facts: CardFacts, table: ResultTable) -> Iterator[str]:
    for average in table.averages:
        keys = average.over or tuple(table.values)
        units = {facts.benchmarks[key].unit for key in keys}
        if len(table.shots) != 1 or units != {"percent"}:
            yield f"table {table.title!r}: the mean {average.label!r} is over more than one column or unit"
            continue
        mean = sum(table.values[key][0] for key in keys) / len(keys)
        if abs(mean - average.value) > TOLERANCE:
            yield f"table {table.title!r}: the mean {average.label!r} is {average.value}, but its rows give {mean:.2f}"


def _check_sums(table: ResultTable) -> Iterator[str]:
    """MME's total is the sum of its two halves."""
    parts = [table.values.get(key) for key in ("mme_perception", "mme_cognition", "mme_total")]
    if all(parts):
        perception, cognition, total = (values[0] for values in parts if values)
        # Each half is rounded to a whole point.
        if abs(perception + cognition - total) > 1:
            yield f"table {table.title!r}: MME is {total:g}, but its halves give {perception + cognition:g}"


def _check_uniqueness(facts: CardFacts) -> Iterator[str]:
    seen: dict[tuple[object, ...], str] = {}
    for result in eval_results(facts):
        if not DATASET_TYPE.fullmatch(result.dataset_type):
            yield f"{result.dataset_name}: `{result.dataset_type}` is no name of a data set for the Hub's metadata"
        key = (*result.unique_identifier, result.metric_name)
        if key in seen:
            yield f"{result.dataset_name} ({result.metric_name}) is stated twice; the Hub's metadata can hold one"
        origin = f"{result.dataset_name}, {result.source_name}"
        if seen.setdefault(result.unique_identifier, origin) != origin:
            yield f"{result.dataset_name} has two sources; the Hub's metadata would show the first for both"
        seen[key] = origin


def _check_metadata(block: str, body: str) -> Iterator[str]:
    try:
        content = load_yaml(block)
        data = ModelCardData(**content)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        yield f"the metadata cannot be read: {' '.join(str(error).split())}"
        return
    if load_yaml(data.to_yaml()) != content:
        yield "the metadata changes when the Hub's library reads and writes it"
    if content.get("pipeline_tag") != PIPELINE_TAG:
        yield f"`pipeline_tag` is {content.get('pipeline_tag')!r}; expected {PIPELINE_TAG!r}"
    for key in ("library_name", "license", "tags"):
        if not content.get(key):
            yield f"`{key}` is missing from the metadata"
    for result in data.eval_results or ():
        if not isinstance(result.metric_value, int | float) or isinstance(result.metric_value, bool):
            yield f"{result.dataset_name}: the metadata's value {result.metric_value!r} is no number"
        if not DATASET_TYPE.fullmatch(str(result.dataset_type)):
            yield f"{result.dataset_name}: `{result.dataset_type}` is no name of a data set for the Hub's metadata"
        # Our own figures have no address; then the page itself has to say where they come from.
        if not result.source_url and not _has_sourced_table(body, str(result.dataset_name)):
            yield f"{result.dataset_name}: the metadata states a figure without a source"


def _has_sourced_table(body: str, name: str) -> bool:
    sections = re.split(r"^#+ ", body, flags=re.MULTILINE)
    return any(f"| {name} |" in section and re.search(r"^Source: \S", section, re.MULTILINE) for section in sections)


def _check_code(body: str) -> Iterator[str]:
    if body.count("\n```") % 2:
        yield "a block of code is not closed"
    for language, code in _FENCE.findall(body):
        if language == "python":
            try:
                ast.parse(code)
            except SyntaxError as error:
                yield f"a block of Python does not parse: {error}"


def _bad_links(body: str) -> Iterator[tuple[str, str]]:
    for match in _LINK.finditer(body):
        if not match[0].endswith(")"):
            yield match[0], "the bracket is not closed"
            continue
        reason = "there is no text" if not match[1].strip() else _bad_target(match[2])
        if reason:
            yield match[0], reason


def _bad_target(target: str) -> str | None:
    """What is wrong with an address or a path inside the repository; `None` if nothing is."""
    if not target or re.search(r"\s", target):
        return "the target is empty or holds white space"
    parts = urlsplit(target)
    if parts.scheme:
        if parts.scheme not in ("https", "http", "mailto"):
            return f"`{parts.scheme}` is no scheme for a public page"
        is_host = parts.scheme == "mailto" or re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.hostname or "")
        return None if is_host else "the host is not a public name"
    if target.startswith("/") or ".." in target.split("/"):
        return "a path has to stay inside the repository"
    return None
