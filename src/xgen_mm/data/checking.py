"""Look through a data set as a model will see it: rows, pictures, faults, and how long the samples are."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import DataError
from .encoding import RecordEncoder, Sample, SampleError, describe
from .errors import ReadReport
from .reading import RecordSource, is_url
from .records import Conversation, Document, PreferencePair, Record, pictures_of

PERCENTILES = {"min": 0, "median": 50, "p95": 95, "max": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A record with what is encoded of it: one sample, or two of a preference pair, the chosen side first."""

    record: Record
    samples: tuple[Sample, ...]


@dataclass(kw_only=True)
class DataCheck:
    """What was found.

    Attributes:
        report: Rows, records and faults.
        num_pictures: Pictures of all good records.
        num_urls: How many of them are URLs that were not fetched; such records are not measured.
        num_tokens: Tokens of each measured record, image tokens included; of a preference pair, of its longer side.
        num_learned: Tokens of each measured record that are learned.
        num_image_tokens: Image tokens of all measured records.
        kinds: Records by kind.
        examples: The first records that could be measured.
    """

    report: ReadReport
    num_pictures: int = 0
    num_urls: int = 0
    num_tokens: list[int] = field(default_factory=list)
    num_learned: list[int] = field(default_factory=list)
    num_image_tokens: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    def histogram(self) -> list[tuple[int, int]]:
        """Records by length: bounds that double, each with the number of records up to it and above the one before."""
        if not self.num_tokens:
            return []
        bounds = [16]
        while bounds[-1] < max(self.num_tokens):
            bounds.append(2 * bounds[-1])
        counts, _ = np.histogram(self.num_tokens, bins=[0, *(bound + 1 for bound in bounds)])
        first = int(np.flatnonzero(counts)[0])
        return [(bound, int(count)) for bound, count in zip(bounds, counts, strict=True)][first:]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        tokens: dict[str, Any] = {}
        if self.num_tokens:
            tokens = {name: int(np.percentile(self.num_tokens, rank)) for name, rank in PERCENTILES.items()}
            tokens |= {
                "total": sum(self.num_tokens),
                "image": self.num_image_tokens,
                "learned": sum(self.num_learned),
                "histogram": [{"up_to": bound, "records": count} for bound, count in self.histogram()],
            }
        return {
            **self.report.to_dict(),
            "kinds": self.kinds,
            "pictures": self.num_pictures,
            "unfetched_urls": self.num_urls,
            "measured_records": len(self.num_tokens),
            "tokens": tokens,
        }


def check_data(
    source: RecordSource,
    encoder: RecordEncoder,
    *,
    limit: int | None = None,
    num_examples: int = 6,
    on_row: Callable[[], object] | None = None,
) -> DataCheck:
    """Read a data set, decode all of its pictures and measure its samples.

    Args:
        source: What is read.
        encoder: Makes samples, with the processor of the model that is to be trained.
        limit: Stop after so many rows.
        num_examples: How many records are kept to be looked at.
        on_row: Called after each row, for a progress bar.

    Raises:
        DataError: If a row is broken and the source's policy is `raise`.
        ValueError: If there is nothing to read.
    """
    source = replace(source, check="full")
    check = DataCheck(report=ReadReport())
    for records in source.read_rows(limit=limit):
        check.report = source.report
        for record in records:
            _measure(record, check, encoder, num_examples=num_examples, source=source)
        if on_row is not None:
            on_row()
    check.report = source.report
    return check


def _measure(
    record: Record, check: DataCheck, encoder: RecordEncoder, *, num_examples: int, source: RecordSource
) -> None:
    pictures = list(pictures_of(record))
    num_urls = sum(is_url(picture.source) for picture in pictures)
    try:
        samples = [] if num_urls else [encoder(form) for form in _forms(record)]
    # Whatever a picture or a text leads to, lack of memory included, is the fault of that row.
    except Exception as error:
        check.report.num_records -= 1
        reason = error.reason if isinstance(error, SampleError) else "unexpected error"
        where = "" if isinstance(error, SampleError) else f"{describe(record.provenance)}: {type(error).__name__}: "
        check.report.take(DataError(reason, f"{where}{error}"), policy=source.policy)
        return
    kind = type(record).__name__
    check.kinds[kind] = check.kinds.get(kind, 0) + 1
    check.num_pictures += len(pictures)
    check.num_urls += num_urls
    if not samples:
        return
    longest = max(samples, key=len)
    check.num_tokens.append(len(longest))
    check.num_learned.append(int((longest.labels[1:] >= 0).sum()))
    check.num_image_tokens += int((longest.input_ids == encoder.processor.image_token_id).sum())
    if len(check.examples) < num_examples:
        check.examples.append(Example(record=record, samples=tuple(samples)))


def _forms(record: Record) -> list[Document | Conversation]:
    """What is encoded of a record: itself, or both sides of a preference pair."""
    if isinstance(record, PreferencePair):
        return [
            Conversation((*record.prompt, answer), record.provenance) for answer in (record.chosen, record.rejected)
        ]
    return [record]
