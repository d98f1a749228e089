"""Places in a stream that can be written down and returned to.

A cursor yields items and can say, after each, where it stands; opening the same stream at that place yields the
remaining items. Places are plain dictionaries that JSON can hold. Random choices depend on seeds and positions alone,
never on what was drawn before, so that a place needs no generator's state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

Place: TypeAlias = dict[str, Any]
ItemOut = TypeVar("ItemOut", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which part of every stream a process reads.

    Attributes:
        rank: Number of the training process.
        world_size: How many there are.
        worker: Number of the data worker within the training process.
        num_workers: How many it has; 1 if it reads the data itself.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise ValueError(f"{self}: `rank` and `worker` count from 0 and stay below `world_size`, `num_workers`.")

    @property
    def index(self) -> int:
        """Number of this part among all parts."""
        return self.rank * self.num_workers + self.worker

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.world_size * self.num_workers


class Cursor(Protocol[ItemOut]):
    """An iterator that knows its place."""

    def __next__(self) -> ItemOut:
        """The next item."""
        ...

    def __iter__(self) -> Iterator[ItemOut]:
        """The cursor itself."""
        ...

    def place(self) -> Place:
        """Where it stands after the last item it gave."""
        ...


def generator_for(*numbers: int) -> np.random.Generator:
    """Random generator that depends on the given non-negative numbers alone."""
    return np.random.default_rng(list(numbers))


def permuted(index: int, length: int, *, seed: int) -> int:
    """Where a pseudo-random permutation sends an index, without writing the permutation down.

    Args:
        index: From 0 to `length - 1`.
        length: Number of items.
        seed: Chooses the permutation.

    Returns:
        From 0 to `length - 1`, another one for every index.

    Source: Feistel network of four rounds with cycle walking (Black and Rogaway 2002).

    >>> sorted(permuted(index, 10, seed=3) for index in range(10))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right, turn, seed) & mask)
        index = (left << half) | right
        if index < length:
            return index


def _mix(value: int, turn: int, seed: int) -> int:
    """Scramble bits; multipliers as in SplitMix64."""
    mixed = (value * 0x9E3779B97F4A7C15 + (turn + 1) * 0xD1342543DE82EF95 + seed * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return mixed ^ (mixed >> 31)
