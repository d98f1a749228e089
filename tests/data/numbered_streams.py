"""Streams of numbered records, with everything that takes time left out: what remains is which record comes when."""

from collections.abc import Iterable
from typing import Any

from tests.data.made_records import numbered_sample
from xgen_mm.data.encoding import Sample, SampleError
from xgen_mm.data.mixture import Mixture, MixtureEntry
from xgen_mm.data.mixture_sources import DatasetsSource, IterableSource, ListSource, Source
from xgen_mm.data.records import Document, Provenance, Record, Text
from xgen_mm.data.samplers import Grouping, PackGroups
from xgen_mm.data.streams import BatchStream, Group

CAPACITY = 40


def record(number: int) -> Record:
    return Document((Text("x"),), Provenance(dataset="made", key=str(number)))


def records(start: int, count: int) -> list[Record]:
    return [record(number) for number in range(start, start + count)]


def number_of(made: Record | Sample) -> int:
    return int(made.provenance.key)


class NumberEncoder:
    """Samples of lengths that depend on the number; multiples of `bad` cannot be used."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __call__(self, made: Record) -> Sample:
        number = number_of(made)
        if self.bad is not None and number % self.bad == 0:
            raise SampleError("bad number", f"{number} is a multiple of {self.bad}.")
        return numbered_sample(number, length=4 + number * 7 % 13)


def collate(groups: list[Group]) -> dict[str, Any]:
    return {"numbers": [[number_of(sample) for sample in group] for group in groups]}


class PassOfRecords:
    """Opens a pass over records `start` to `start + count - 1`."""

    def __init__(self, start: int, count: int) -> None:
        self.start, self.count = start, count

    def __call__(self, number: int) -> Iterable[Record]:
        return (record(self.start + (index + number) % self.count) for index in range(self.count))


def read_row(row: dict[str, Any]) -> Iterable[Record]:
    """No record, one or two, depending on the row."""
    return [record(row["number"] + 10_000 * copy) for copy in range(row["number"] % 3)]


def datasets_source(start: int, count: int, **arguments: Any) -> DatasetsSource:
    from datasets import Dataset

    table = Dataset.from_dict({"number": list(range(start, start + count))})
    return DatasetsSource(table.to_iterable_dataset(num_shards=8), read_row, **arguments)


def three_sources(*, repeat: bool = True) -> dict[str, Source]:
    return {
        "list": ListSource(records(0, 97), repeat=repeat, seed=1),
        "iterable": IterableSource(PassOfRecords(1000, 61), repeat=repeat, shuffle_window=7, seed=2),
        "datasets": datasets_source(2000, 80, repeat=repeat, shuffle_window=5, seed=3),
    }


def stream(
    sources: dict[str, Source],
    *,
    rank: int = 0,
    world_size: int = 1,
    grouping: Grouping | None = None,
    groups_per_batch: int = 2,
    bad: int | None = None,
    seed: int = 0,
) -> BatchStream:
    """Packs of a mixture of sources, half of the tokens from the first."""
    weights = [0.5, *[0.5 / max(1, len(sources) - 1)] * (len(sources) - 1)]
    entries = [
        MixtureEntry(name=name, source=source, weight=weight, encoder=NumberEncoder(bad))
        for (name, source), weight in zip(sources.items(), weights, strict=True)
    ]
    return BatchStream(
        Mixture(entries, unit="tokens", seed=seed, on_bad_record="skip"),
        grouping=grouping or PackGroups(capacity=CAPACITY),
        collator=collate,
        window=16,
        groups_per_batch=groups_per_batch,
        rank=rank,
        world_size=world_size,
    )
