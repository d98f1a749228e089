"""How far figures may be off: percentile bootstrap over units of samples, the same units for every run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..metrics.aggregates import Aggregate, SampleScore, Tally

Values: TypeAlias = npt.NDArray[np.float64]

CONFIDENCE = 0.95
# Draws are made this many at a time, which bounds memory.
_CHUNK = 50


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds that hold 95 % of the resampled values."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def resample(
    aggregate: Aggregate,
    runs: Sequence[Sequence[SampleScore]],
    *,
    options: dict[str, Any],
    figure: str,
    num_resamples: int,
    seed: int,
) -> Values | None:
    """Values of one figure when the benchmark's questions are drawn anew, with replacement.

    Questions that are judged together (about one picture, or rotations of one question) are drawn together. All runs
    get the same draws, so that values of two runs may be subtracted.

    Args:
        aggregate: How samples become figures.
        runs: Per run the same samples in the same order.
        options: Options of the aggregate.
        figure: Name of the figure.
        num_resamples: How many times to draw.
        seed: Seed of the draws.

    Returns:
        Values, shape (runs, num_resamples); `None` if fewer than two units exist.
    """
    completed = [aggregate.complete(samples) for samples in runs]
    positions = aggregate.units(completed[0])
    if len(positions) < 2:
        return None
    tables = [_tally_table(aggregate, samples, positions, options) for samples in completed]
    generator = np.random.default_rng(seed)
    values = np.full((len(runs), num_resamples), np.nan)
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        drawn = generator.integers(0, len(positions), size=(size, len(positions)))
        # Shape (draws, units): how often each unit was drawn.
        counts = np.stack([np.bincount(row, minlength=len(positions)) for row in drawn]).astype(np.float64)
        for run, (keys, table) in enumerate(tables):
            for i, totals in enumerate(counts @ table):
                tally: Tally = defaultdict(float, zip(keys, totals.tolist(), strict=True))
                values[run, start + i] = aggregate.figures(tally).get(figure, np.nan)
    return values


def interval_of(values: Values) -> Interval | None:
    """The middle 95 % of values; those that do not exist, as where no question of a group was drawn, are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, (tail, 1 - tail))
    return Interval(float(low), float(high))


def _tally_table(
    aggregate: Aggregate, samples: Sequence[SampleScore], units: Sequence[Sequence[int]], options: dict[str, Any]
) -> tuple[list[tuple[str, str]], Values]:
    """What is counted, and how much of it each unit has; the table has the shape (units, what is counted)."""
    tallies = [aggregate.tally([samples[i] for i in unit], options) for unit in units]
    keys = sorted({key for tally in tallies for key in tally})
    columns = {key: i for i, key in enumerate(keys)}
    table = np.zeros((len(units), len(keys)))
    for row, tally in enumerate(tallies):
        for key, amount in tally.items():
            table[row, columns[key]] = amount
    return keys, table
