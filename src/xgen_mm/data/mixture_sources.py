"""Data sets as mixtures read them: lists of records, iterables, and `datasets` streams, sharded and resumable."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from .cursors import Cursor, Place, Shard, generator_for, permuted
from .errors import ReadReport
from .records import Record

logger = logging.getLogger(__name__)


class Source(Protocol):
    """A data set that a mixture draws from. It is sent to worker processes."""

    def open(self, shard: Shard, *, place: Place | None = None, epoch: int = 0) -> Cursor[Record]:
        """Read one part of it.

        Args:
            shard: Which part; the parts of all shards together are the whole, without overlap.
            place: Where to go on; `None` begins.
            epoch: Pass over the mixture, which decides the order of what is read in passes.
        """
        ...


class ListSource:
    """Records in memory, or any sequence that reads them on demand, such as one on a table of `datasets`.

    Args:
        records: The records.
        samples: How many records one pass takes: fewer than there are take a fixed random part, more repeat all of
            them as evenly as possible. `None` takes all once.
        repeat: Whether passes follow one another without end.
        shuffle: Whether the order is random, another one in each pass.
        seed: Seed of the choice and the order.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        samples: int | None = None,
        repeat: bool = True,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if len(records) == 0 or samples == 0:
            raise ValueError("A source needs at least one record.")
        self.records = records
        self.samples = len(records) if samples is None else samples
        self.repeat = repeat
        self.shuffle = shuffle
        self.seed = seed

    def open(self, shard: Shard, *, place: Place | None = None, epoch: int = 0) -> Cursor[Record]:
        """Read every n-th record of the order, n being the number of shards."""
        return _ListCursor(self, shard, taken=place["taken"] if place else 0, first_pass=0 if self.repeat else epoch)

    def index_at(self, position: int) -> int:
        """Index of the record at a position of the endless line of passes."""
        number, index = divmod(position, self.samples)
        if self.shuffle:
            index = permuted(index, self.samples, seed=2 * (self.seed * 1_000_003 + number) + 1)
        # Which records a part of the data set has is the same in all passes.
        length = len(self.records)
        return permuted(index % length, length, seed=2 * self.seed) if self.samples != length else index


class _ListCursor:
    def __init__(self, source: ListSource, shard: Shard, *, taken: int, first_pass: int) -> None:
        self._source = source
        self._shard = shard
        self._taken = taken
        self._first = first_pass * source.samples
        self._end = None if source.repeat else self._first + source.samples

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        position = self._first + self._shard.index + self._taken * self._shard.count
        if self._end is not None and position >= self._end:
            raise StopIteration
        self._taken += 1
        return self._source.records[self._source.index_at(position)]

    def place(self) -> Place:
        return {"taken": self._taken}


class IterableSource:
    """Records that can only be read one after the other.

    Every shard reads all of them and keeps every n-th; to go on, it reads past what it has had. Where that is too
    slow, use `DatasetsSource`, whose files are shared out.

    Args:
        open_pass: Gives the records of a pass from its number; the same ones in the same order whenever it is called
            with that number.
        repeat: Whether passes follow one another without end.
        shuffle_window: Shuffle that many records at a time; 1 keeps the order. So many are in memory.
        seed: Seed of the order.
    """

    def __init__(
        self,
        open_pass: Callable[[int], Iterable[Record]],
        *,
        repeat: bool = True,
        shuffle_window: int = 1,
        seed: int = 0,
    ) -> None:
        self.open_pass = open_pass
        self.repeat = repeat
        self.shuffle_window = shuffle_window
        self.seed = seed

    def open(self, shard: Shard, *, place: Place | None = None, epoch: int = 0) -> Cursor[Record]:
        """Read every n-th record, n being the number of shards."""

        def open_at(inner: Place | None) -> Cursor[Record]:
            return _PassesCursor(
                lambda number, at: _IterableCursor(self.open_pass(number), shard, at),
                repeat=self.repeat,
                place=inner,
                first_pass=0 if self.repeat else epoch,
            )

        return shuffled(open_at, window=self.shuffle_window, seed=self.seed, shard=shard, place=place)


class _IterableCursor:
    def __init__(self, records: Iterable[Record], shard: Shard, place: Place | None) -> None:
        self._taken = place["taken"] if place else 0
        self._records = islice(records, shard.index + self._taken * shard.count, None, shard.count)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        record = next(self._records)
        self._taken += 1
        return record

    def place(self) -> Place:
        return {"taken": self._taken}


class DatasetsSource:
    """A streaming `datasets.IterableDataset`; it shares out its files and keeps its own place.

    Args:
        dataset: The stream. Its own `shuffle` keeps a buffer that no place can hold, so shuffle here instead.
        read: Records of a row; none, one or several.
        repeat: Whether passes follow one another without end.
        shuffle_window: Shuffle that many records at a time; 1 keeps the order. So many are in memory.
        seed: Seed of the order.
    """

    def __init__(
        self,
        dataset: Any,
        read: Callable[[dict[str, Any]], Iterable[Record]],
        *,
        repeat: bool = True,
        shuffle_window: int = 1000,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.read = read
        self.repeat = repeat
        self.shuffle_window = shuffle_window
        self.seed = seed

    def open(self, shard: Shard, *, place: Place | None = None, epoch: int = 0) -> Cursor[Record]:
        """Read the files that `datasets` gives to this shard, or its rows where files cannot be divided evenly."""
        from datasets.distributed import split_dataset_by_node

        def split() -> Any:
            return split_dataset_by_node(self.dataset, rank=shard.index, world_size=shard.count)

        if self.dataset.num_shards % shard.count:
            logger.warning(
                "A stream of %d files is read by %d parts (ranks times workers), so each reads all rows and keeps "
                "some. A multiple of that many files is shared out instead (`dataset.reshard()` splits some formats).",
                self.dataset.num_shards,
                shard.count,
            )

        def open_at(inner: Place | None) -> Cursor[Record]:
            return _PassesCursor(
                lambda number, at: _RowsCursor(split(), self.read, number, at),
                repeat=self.repeat,
                place=inner,
                first_pass=0 if self.repeat else epoch,
            )

        return shuffled(open_at, window=self.shuffle_window, seed=self.seed, shard=shard, place=place)


class _RowsCursor:
    """Records of the rows of one pass over a `datasets` stream."""

    def __init__(
        self, dataset: Any, read: Callable[[dict[str, Any]], Iterable[Record]], number: int, place: Place | None
    ) -> None:
        self._dataset = dataset
        self._read = read
        dataset.set_epoch(number)
        # Place of `datasets` before and after the row that the records come from; `None` is the beginning.
        self._before: Place | None = place["rows"] if place else None
        self._after = self._before
        if self._before is not None:
            dataset.load_state_dict(self._before)
        # Within a worker process, plain iteration would divide the files among the workers once more.
        self._rows = dataset.iter(batch_size=1)
        self._records: Iterator[Record] = iter(())
        self._given = 0
        for _ in range(place["given"] if place else 0):
            next(self)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        while True:
            for record in self._records:
                self._given += 1
                return record
            try:
                row = {name: values[0] for name, values in next(self._rows).items()}
            except StopIteration:
                # As `RowReader` keeps it.
                report = getattr(self._read, "report", None)
                if isinstance(report, ReadReport):
                    report.check_usable("stream of `datasets`")
                raise
            self._before, self._after, self._given = self._after, self._dataset.state_dict(), 0
            self._records = iter(self._read(row))

    def place(self) -> Place:
        return {"rows": self._before, "given": self._given}


class _PassesCursor:
    """One pass after the other."""

    def __init__(
        self,
        open_pass: Callable[[int, Place | None], Cursor[Record]],
        *,
        repeat: bool,
        place: Place | None,
        first_pass: int,
    ) -> None:
        self._open_pass = open_pass
        self._repeat = repeat
        self._pass = place["pass"] if place else first_pass
        self._has_records = place["has_records"] if place else False
        self._inner = open_pass(self._pass, place["inner"] if place else None)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        while True:
            for record in self._inner:
                self._has_records = True
                return record
            if not self._repeat:
                raise StopIteration
            if not self._has_records:
                raise ValueError("A pass over a source gave no record to this shard; use fewer ranks or workers.")
            self._pass += 1
            self._inner = self._open_pass(self._pass, None)

    def place(self) -> Place:
        return {"pass": self._pass, "has_records": self._has_records, "inner": self._inner.place()}


class _ShuffledCursor:
    """Records in random order within windows."""

    def __init__(
        self,
        open_at: Callable[[Place | None], Cursor[Record]],
        *,
        window: int,
        seeds: tuple[int, ...],
        place: Place | None,
    ) -> None:
        self._window = window
        self._seeds = seeds
        self._number = place["window"] if place else 0
        self._inner = open_at(place["start"] if place else None)
        self._start = place["start"] if place else None
        self._order: list[Record] = []
        self._given = 0
        if place and place["given"]:
            self._read_window(place["start"])
            self._given = place["given"]

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if self._given == len(self._order):
            if self._order:
                self._number += 1
            self._read_window(self._inner.place())
            if not self._order:
                raise StopIteration
        self._given += 1
        return self._order[self._given - 1]

    def place(self) -> Place:
        return {"start": self._start, "window": self._number, "given": self._given}

    def _read_window(self, start: Place | None) -> None:
        records = list(islice(self._inner, self._window))
        order = generator_for(*self._seeds, self._number).permutation(len(records))
        self._order, self._start, self._given = [records[index] for index in order], start, 0


def shuffled(
    open_at: Callable[[Place | None], Cursor[Record]], *, window: int, seed: int, shard: Shard, place: Place | None
) -> Cursor[Record]:
    """Shuffle a stream window by window, so that a place is the start of a window and a count.

    Args:
        open_at: Opens the stream at a place.
        window: Records per window; 1 keeps the order.
        seed: Seed of the order.
        shard: Which part of the stream this is; each has its own order.
        place: Where to go on; `None` begins.
    """
    if window < 1:
        raise ValueError(f"`shuffle_window` is {window}; it counts records in memory and is at least 1.")
    if window == 1:
        return open_at(place)
    return _ShuffledCursor(open_at, window=window, seeds=(seed, shard.index), place=place)
