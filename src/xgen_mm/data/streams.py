"""Batches without end: a mixture, grouped, collated, shared out over processes, and resumable at any batch."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from torch.utils.data import IterableDataset, get_worker_info

from .collators import BadPolicy, Batch
from .cursors import Place, Shard, generator_for
from .encoding import Sample, SampleError
from .mixture import Mixture
from .samplers import Grouping

Group: TypeAlias = list[Sample]
Collator: TypeAlias = Callable[[list[Group]], Batch]


class BatchStream(IterableDataset[tuple[int, Place, Batch]]):
    """Batches of a mixture, each with the place behind it. Give it to `ResumableLoader`.

    Args:
        mixture: What is drawn.
        grouping: How samples are grouped: into batches, or into rows that are packed.
        collator: Makes a batch of groups.
        window: Samples that are grouped at a time; more waste less room and need more memory. Their pictures are
            encoded, not decoded.
        groups_per_batch: Groups per batch; packed rows in a batch, else 1.
        rank: Number of this training process.
        world_size: How many there are.
        on_bad_batch: Whether a batch of which nothing is left, because all its pictures are damaged, is an error or
            left out.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        grouping: Grouping,
        collator: Collator,
        window: int = 256,
        groups_per_batch: int = 1,
        rank: int = 0,
        world_size: int = 1,
        on_bad_batch: BadPolicy = "raise",
    ) -> None:
        super().__init__()
        self.mixture = mixture
        self.grouping = grouping
        self.collator = collator
        self.window = window
        self.groups_per_batch = groups_per_batch
        self.rank = rank
        self.world_size = world_size
        self.on_bad_batch = on_bad_batch
        # Set by the loader before it starts its workers.
        self.epoch = 0
        self.places: dict[int, Place] = {}
        self.first_part = 0

    def __iter__(self) -> Iterator[tuple[int, Place, Batch]]:
        """Part of this process, place behind the batch, and the batch."""
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        # Workers are asked in turn, the first one first: after a resumption that has to be the next part's.
        part = (number + self.first_part) % count
        shard = Shard(rank=self.rank, world_size=self.world_size, worker=part, num_workers=count)
        place = self.places.get(part)
        groups = _GroupCursor(self, shard, place)
        while batch_groups := list(islice(groups, self.groups_per_batch)):
            try:
                batch = self.collator(batch_groups)
            except SampleError:
                if self.on_bad_batch == "raise":
                    raise
                continue
            yield part, groups.place(), batch

    def description(self) -> dict[str, Any]:
        """What has to stay the same for a place to remain meaningful."""
        return {
            "mixture": self.mixture.description(),
            "grouping": repr(self.grouping),
            "window": self.window,
            "groups_per_batch": self.groups_per_batch,
            "rank": self.rank,
            "world_size": self.world_size,
        }


class _GroupCursor:
    """Groups of one shard, planned window by window."""

    def __init__(self, stream: BatchStream, shard: Shard, place: Place | None) -> None:
        self._stream = stream
        self._shard = shard
        self._number = place["window"] if place else 0
        self._start: Place | None = place["start"] if place else None
        self._given = place["given"] if place else 0
        self._samples = stream.mixture.open(shard, place=self._start, epoch=stream.epoch)
        self._groups: list[Group] = []
        self._counts: dict[str, dict[str, int]] = {"drawn": {}, "skipped": {}}
        if place:
            self._read_window()

    def __iter__(self) -> Iterator[Group]:
        return self

    def __next__(self) -> Group:
        if self._given == len(self._groups):
            if self._groups:
                self._number += 1
            self._start, self._given = self._samples.place(), 0
            self._read_window()
            if not self._groups:
                raise StopIteration
        group = self._groups[self._given]
        # Given away for good: encoded pictures are most of what a window holds.
        self._groups[self._given] = []
        self._given += 1
        return group

    def place(self) -> Place:
        return {"start": self._start, "window": self._number, "given": self._given, "counts": self._counts}

    def _read_window(self) -> None:
        samples = list(islice(self._samples, self._stream.window))
        self._counts = {"drawn": self._samples.drawn(), "skipped": self._samples.skipped()}
        rng = generator_for(self._stream.mixture.seed, self._shard.index, self._stream.epoch, self._number)
        self._groups = [[samples[index] for index in group] for group in self._stream.grouping.plan(samples, rng=rng)]
