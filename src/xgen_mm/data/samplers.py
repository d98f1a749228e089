"""Which samples form a batch: fixed numbers, token budgets, like lengths, packs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from .encoding import Sample
from .packing import plan_packs


class Grouping(Protocol):
    """Divides a window of samples into groups, each of which becomes a batch or a packed row."""

    def plan(self, samples: Sequence[Sample], *, rng: np.random.Generator) -> list[list[int]]:
        """Indices of each group; every sample is in exactly one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedGroups:
    """Groups of one size, in the order of the samples.

    Attributes:
        batch_size: Samples per group; the last of a window may be smaller.
    """

    batch_size: int

    def plan(self, samples: Sequence[Sample], *, rng: np.random.Generator) -> list[list[int]]:
        """Indices of each group."""
        return _chunks(range(len(samples)), self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthGroups:
    """Groups of one size, of like length and the same modality: all with pictures, or all of text alone.

    Attributes:
        batch_size: Samples per group; the last of each modality of a window may be smaller.
    """

    batch_size: int

    def plan(self, samples: Sequence[Sample], *, rng: np.random.Generator) -> list[list[int]]:
        """Indices of each group, groups in random order."""
        groups = []
        for members in _modalities([bool(sample.pictures) for sample in samples]):
            ordered = sorted(members, key=lambda index: (-len(samples[index]), index))
            groups += _chunks(ordered, self.batch_size)
        return _shuffled(groups, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudgetGroups:
    """Groups of like length and one modality, as many samples as a number of tokens allows.

    Attributes:
        max_tokens: Tokens per group, padding included. A longer sample is a group of its own.
        max_samples: Samples per group at most, if given.
    """

    max_tokens: int
    max_samples: int | None = None

    def plan(self, samples: Sequence[Sample], *, rng: np.random.Generator) -> list[list[int]]:
        """Indices of each group, groups in random order."""
        groups: list[list[int]] = []
        for members in _modalities([bool(sample.pictures) for sample in samples]):
            group: list[int] = []
            # From the longest down, the first of a group sets its padded length.
            for index in sorted(members, key=lambda index: (-len(samples[index]), index)):
                is_full = len(group) == self.max_samples
                if group and (is_full or len(samples[group[0]]) * (len(group) + 1) > self.max_tokens):
                    groups.append(group)
                    group = []
                group.append(index)
            groups += [group] if group else []
        return _shuffled(groups, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackGroups:
    """Packs for `PackingCollator`.

    Attributes:
        capacity: Tokens per row; no sample may be longer.
    """

    capacity: int

    def plan(self, samples: Sequence[Sample], *, rng: np.random.Generator) -> list[list[int]]:
        """Indices of each pack, packs in random order.

        Raises:
            ValueError: If a sample is longer than a row.
        """
        return _shuffled(plan_packs([len(sample) for sample in samples], capacity=self.capacity), rng)


class ModalityLengthSampler(Sampler[int]):
    """Order of a list of samples in which batches hold like lengths and one modality.

    The list is shuffled and cut into stretches of `stretch` batches, each sorted by length within its modality; the
    batches come in random order. For `DataLoader(sampler=...)` on one process; `accelerate` shards it over several.

    Args:
        lengths: Length of each sample in any unit.
        has_pictures: Whether each sample has pictures.
        batch_size: Samples per step: batch size times processes times accumulated batches.
        stretch: Batches per stretch; more give closer lengths and less mixing.
        seed: Seed of the order; `set_epoch` gives each pass another one.

    Source: length grouping by modality in the released fine-tuning code (after LLaVA).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        has_pictures: Sequence[bool],
        *,
        batch_size: int,
        stretch: int = 50,
        seed: int = 0,
    ) -> None:
        if len(lengths) != len(has_pictures):
            raise ValueError(
                f"`lengths` holds {len(lengths)} values but `has_pictures` {len(has_pictures)}; give one per sample."
            )
        self.lengths = np.asarray(lengths)
        self.has_pictures = list(has_pictures)
        self.batch_size = batch_size
        self.stretch = stretch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of a pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Indices of all samples; smaller groups, which each modality may leave, come last."""
        rng = np.random.default_rng([self.seed, self.epoch])
        full: list[list[int]] = []
        remainders: list[list[int]] = []
        for members in _modalities(self.has_pictures):
            shuffled = rng.permutation(members)
            for start in range(0, len(shuffled), self.batch_size * self.stretch):
                stretch = shuffled[start : start + self.batch_size * self.stretch]
                ordered = stretch[np.argsort(-self.lengths[stretch], kind="stable")]
                for group in _chunks(ordered.tolist(), self.batch_size):
                    (full if len(group) == self.batch_size else remainders).append(group)
        for group in [*_shuffled(full, rng), *remainders]:
            yield from group


def _modalities(has_pictures: Sequence[bool]) -> list[list[int]]:
    with_pictures = [index for index, has in enumerate(has_pictures) if has]
    text_only = [index for index, has in enumerate(has_pictures) if not has]
    return [members for members in (with_pictures, text_only) if members]


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _shuffled(groups: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
    return [groups[index] for index in rng.permutation(len(groups))]
