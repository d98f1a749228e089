"""Several data sets as one stream of samples, in given shares."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from ..errors import DataError, ImageInputError
from .collators import BadPolicy
from .cursors import Cursor, Place, Shard, generator_for
from .encoding import Sample, SampleError
from .mixture_sources import Source
from .records import Record

logger = logging.getLogger(__name__)

Unit: TypeAlias = Literal["samples", "tokens"]

# Sources of different shards start at different points of their turns, so that the ranks' batches are not all drawn
# from one data set. With tokens, the length of a turn is not known beforehand; any typical one will do.
FIRST_TURN = {"samples": 1.0, "tokens": 512.0}
# So many unusable records of one source in a row mean that none of its records is usable.
MAX_FAILURES_IN_A_ROW = 1000
WEIGHT_TOLERANCE = 1e-6
# What a record may lead to; programming errors are not its fault.
_RECORD_ERRORS = (ValueError, OSError, MemoryError, RecursionError, OverflowError)


class Encoder(Protocol):
    """Makes a sample of a record."""

    def __call__(self, record: Record) -> Sample:
        """Encode one record.

        Raises:
            SampleError: If it cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEntry:
    """One data set of a mixture.

    Attributes:
        name: What messages call it.
        source: Its records.
        weight: Its share, relative to the weights of the others.
        encoder: Makes its samples; each data set may have its own settings and limits.
    """

    name: str
    source: Source
    weight: float
    encoder: Encoder


class Mixture:
    """Draws samples from several sources so that each keeps its share at all times.

    The source whose turn it is, is the one furthest behind its share; nothing about that is random but the point at
    which each shard starts. After any number of samples each source is within a sample or two of its share.

    Args:
        entries: The data sets.
        unit: Whether weights count samples or tokens, image tokens included.
        seed: Seed of the starting points.
        on_bad_record: Whether a record that cannot be used is an error, or left out, counted and logged. It costs
            its source nothing of its share.

    Raises:
        ValueError: If a weight is not positive, or two entries have the same name.
    """

    def __init__(
        self,
        entries: Sequence[MixtureEntry],
        *,
        unit: Unit = "samples",
        seed: int = 0,
        on_bad_record: BadPolicy = "raise",
    ) -> None:
        names = [entry.name for entry in entries]
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated or not names:
            raise ValueError(f"`entries` needs at least one data set and distinct names; found {names}.")
        self.entries = list(entries)
        self.shares = normalise_weights({entry.name: entry.weight for entry in entries})
        self.unit: Unit = unit
        self.seed = seed
        self.on_bad_record: BadPolicy = on_bad_record

    def open(self, shard: Shard, *, place: Place | None = None, epoch: int = 0) -> "MixtureCursor":
        """Read one part of the mixture.

        Args:
            shard: Which part.
            place: Where to go on; `None` begins.
            epoch: Number of the pass, for sources that end.
        """
        return MixtureCursor(self, shard, place=place, epoch=epoch)

    def description(self) -> dict[str, object]:
        """What has to stay the same for a place to remain meaningful."""
        return {"shares": dict(self.shares), "unit": self.unit, "seed": self.seed}


class MixtureCursor:
    """Samples of one shard of a mixture; made by `Mixture.open`."""

    def __init__(self, mixture: Mixture, shard: Shard, *, place: Place | None, epoch: int) -> None:
        self._mixture = mixture
        self._is_whole = shard.count == 1
        # What was wrong with the latest record that each source had to leave out.
        self._latest: dict[int, str] = {}
        places: list[Place | None] = place["sources"] if place else [None] * len(mixture.entries)
        self._sources: list[Cursor[Record]] = [
            entry.source.open(shard, place=where, epoch=epoch)
            for entry, where in zip(mixture.entries, places, strict=True)
        ]
        self._clocks: list[float] = list(place["clocks"]) if place else self._first_clocks(shard, epoch)
        self._finished: list[bool] = list(place["finished"]) if place else [False] * len(places)
        self._skipped = Counter[str](place["skipped"] if place else {})
        self._amounts: list[int] = list(place["amounts"]) if place else [0] * len(places)

    def __iter__(self) -> Iterator[Sample]:
        """The cursor itself."""
        return self

    def __next__(self) -> Sample:
        """The next sample of the source whose turn it is."""
        while not all(self._finished):
            running = (index for index, is_finished in enumerate(self._finished) if not is_finished)
            turn = min(running, key=lambda index: (self._clocks[index], index))
            sample = self._draw(turn)
            if sample is None:
                self._finished[turn] = True
                continue
            amount = len(sample) if self._mixture.unit == "tokens" else 1
            self._amounts[turn] += amount
            self._clocks[turn] += amount / self._mixture.shares[self._mixture.entries[turn].name]
            return sample
        raise StopIteration

    def place(self) -> Place:
        """Where it stands, with what was drawn and left out so far."""
        return {
            "sources": [source.place() for source in self._sources],
            "clocks": list(self._clocks),
            "finished": list(self._finished),
            "amounts": list(self._amounts),
            "skipped": dict(self._skipped),
        }

    def drawn(self) -> dict[str, int]:
        """Samples or tokens drawn from each source so far."""
        return {entry.name: amount for entry, amount in zip(self._mixture.entries, self._amounts, strict=True)}

    def skipped(self) -> dict[str, int]:
        """How many records were left out, by source and reason."""
        return dict(self._skipped)

    def _first_clocks(self, shard: Shard, epoch: int) -> list[float]:
        starts = generator_for(self._mixture.seed, shard.index, epoch).random(len(self._mixture.entries))
        turn = FIRST_TURN[self._mixture.unit]
        return [
            float(start) * turn / self._mixture.shares[entry.name]
            for start, entry in zip(starts, self._mixture.entries, strict=True)
        ]

    def _draw(self, turn: int) -> Sample | None:
        """The next usable record of a source as a sample; nothing if it has ended."""
        entry = self._mixture.entries[turn]
        for _ in range(MAX_FAILURES_IN_A_ROW):
            try:
                record = next(self._sources[turn])
            except StopIteration:
                self._check_usable(turn)
                return None
            try:
                sample = entry.encoder(record)
            except _RECORD_ERRORS as error:
                if self._mixture.on_bad_record == "raise":
                    raise
                self._latest[turn] = f"{type(error).__name__}: {error}"
                self._count(f"{entry.name}: {_reason(error)}", error)
                continue
            if sample.is_cut:
                self._skipped[f"{entry.name}: cut to its limits, not left out"] += 1
            return sample
        raise SampleError(
            "no usable record",
            f"{MAX_FAILURES_IN_A_ROW} records of `{entry.name}` in a row cannot be used; left out so far: "
            f"{dict(self._skipped)}. Latest: {self._latest.get(turn)}",
        )

    def _check_usable(self, turn: int) -> None:
        """Refuse a source that has ended with all of its records left out; another part of it may still be usable."""
        name = self._mixture.entries[turn].name
        if self._amounts[turn] or turn not in self._latest:
            return
        if self._is_whole:
            raise SampleError(
                "no usable record",
                f"None of the records of `{name}` can be used; left out: {dict(self._skipped)}. Latest: "
                f"{self._latest[turn]}",
            )
        logger.warning("None of the records of `%s` in this part can be used. Latest: %s", name, self._latest[turn])

    def _count(self, reason: str, error: Exception) -> None:
        self._skipped[reason] += 1
        count = self._skipped[reason]
        # The 1st, 10th, 100th ...: enough to notice, too few to fill a disk.
        if str(count).strip("0") == "1":
            logger.warning("Left out %d record(s), %s. Latest: %s", count, reason, error)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageInputError):
        return "unreadable picture"
    return error.reason if isinstance(error, DataError) else type(error).__name__


def normalise_weights(weights: dict[str, float]) -> dict[str, float]:
    """Scale weights so that they add up to 1, and say so where they did not.

    Args:
        weights: Positive weights by name. Counts are fine; a notice is given for weights that look like shares.

    Returns:
        Shares by name.

    Raises:
        ValueError: If a weight is not positive.

    >>> normalise_weights({"a": 3, "b": 1})
    {'a': 0.75, 'b': 0.25}
    """
    bad = {name: weight for name, weight in weights.items() if not 0 < weight < float("inf")}
    if bad:
        raise ValueError(f"Weights must be positive and finite; found {bad}. Leave out a data set to give it none.")
    total = sum(weights.values())
    is_share = max(weights.values()) <= 1
    if is_share and abs(total - 1) > WEIGHT_TOLERANCE:
        logger.warning(
            "The weights of %d data sets add up to %.4g, not to 1; each is divided by that.", len(weights), total
        )
    return {name: weight / total for name, weight in weights.items()}
