"""Records from files, folders and the Hub: rows are found, read by their format, and faults counted."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..images.bounded_download import is_url as is_web_address
from .errors import Policy, ReadReport, check_policy
from .fetching import Fetcher
from .formats.columns import check_other_media, check_pictures_are_read
from .formats.registry import make_reader, reader_class
from .formats.row import FormatReader, PictureCheck, PictureRules, Row, cause, short_key
from .records import Conversation, Document, Part, Picture, PreferencePair, Record, Turn, pictures_of
from .sources import (
    COUNT_SEED,
    RawRow,
    draw_positions,
    find_files,
    is_hub_id,
    is_saved_dataset,
    open_stream,
    picture_roots,
    read_folder,
    read_rows,
)

logger = logging.getLogger(__name__)

# Rows whose pictures are fetched at the same time.
FETCH_WINDOW = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A row with the name to use if it has none of its own, and the directories of its pictures."""

    row: RawRow
    key: str
    picture_roots: tuple[Path, ...]


class RowReader:
    """Reads single rows, for instance of a `datasets` stream, and counts what cannot be read.

    Args:
        format: Name of the format, see `formats/registry.py`.
        options: Options of the format.
        image_root: Directory of pictures that are given by name.
        policy: What becomes of broken rows: `skip` counts them in `report`, `raise` stops at the first.
        check: How far pictures are looked at; see `PictureRules`.
    """

    def __init__(
        self,
        format: str,
        *,
        options: Mapping[str, Any] | None = None,
        image_root: str | Path | None = None,
        policy: Policy = "skip",
        check: PictureCheck = "header",
    ) -> None:
        self.reader: FormatReader = make_reader(format, options)
        self.roots = _roots_of(image_root)
        self.rules = PictureRules(check=check)
        self.policy = check_policy(policy)
        self.report = ReadReport()

    def __call__(self, values: Mapping[str, Any] | DataError, *, key: str | None = None) -> list[Record]:
        """Records of a row; none if it is broken and such rows are skipped.

        Args:
            values: Fields of the row, or what is known to be wrong with it.
            key: Name of the row if it does not identify itself; its number otherwise.

        Raises:
            DataError: If the row is broken and the policy is `raise`.
        """
        return self.read_at(values, key=key or f"row {self.report.num_rows}", roots=self.roots)

    def read_at(self, values: Mapping[str, Any] | DataError, *, key: str, roots: tuple[Path, ...]) -> list[Record]:
        """Records of a row whose pictures are in one of `roots`."""
        self.report.num_rows += 1
        try:
            records = self._read(values, key, roots)
        except DataError as error:
            self.report.take(error, policy=self.policy)
            return []
        # Whatever a stranger's row leads to, lack of memory included, is the fault of that row.
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(cause(error).split())}"
            fault = DataError("unexpected error", f"Row `{key}` of `{self.reader.dataset}`: {what}.")
            fault.__cause__ = error
            self.report.take(fault, policy=self.policy)
            return []
        self.report.num_records += len(records)
        return records

    def _read(self, values: Mapping[str, Any] | DataError, key: str, roots: tuple[Path, ...]) -> list[Record]:
        if isinstance(values, DataError):
            raise values
        rules = replace(self.rules, root=roots[0] if roots else None, other_roots=roots[1:])
        row = Row(values=values, dataset=self.reader.dataset, key=key, rules=rules)
        if self.reader.has_fields_in_json:
            row = row.with_json_member()
        own = (row.values.get(name) for name in self.reader.id_fields)
        row = replace(row, key=next((short for value in own if (short := short_key(value))), key))
        check_other_media(row)
        records = self.reader.read(row)
        check_pictures_are_read(row, records)
        return records


@dataclass(kw_only=True)
class RecordSource:
    """All records of a data set, in the order of its files. It can be sent to worker processes and read again.

    A call gives the records of a pass, so that a source is what `IterableSource` of a mixture asks for.

    Attributes:
        path: File, directory, pattern, YAML file of counts, folder of pictures, or Hub id `owner/name[:config]`.
        format: Name of the format.
        options: Options of the format.
        image_root: Directory of pictures that are given by name; by default that of the file, or of the data set,
            then those of `sources.picture_roots`.
        policy: What becomes of broken rows.
        check: How far pictures are looked at.
        split: Split of a data set of the Hub, of a directory or of a pattern whose files are named for splits.
        count: Take so many random rows instead of all; more than there are repeat some. Local files only.
        seed: Seed of that choice.
        fetcher: Fetches pictures that are given as URLs; without one they stay URLs.
        report: What was read in the pass that was begun last.
    """

    path: str | Path
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    image_root: str | Path | None = None
    policy: Policy = "skip"
    check: PictureCheck = "header"
    split: str = "train"
    count: int | None = None
    seed: int = COUNT_SEED
    fetcher: Fetcher | None = None
    report: ReadReport = field(default_factory=ReadReport)

    def __post_init__(self) -> None:
        """Check what can be checked without reading."""
        self._reader()
        if self.count is not None and self.count < 1:
            raise ValueError(f"`count` is {self.count}; expected at least 1, or `None` for all rows.")

    def __iter__(self) -> Iterator[Record]:
        """Records of one pass.

        Raises:
            ValueError: If there is nothing to read at `path`.
            DataError: If a row is broken and the policy is `raise`; or, at the end, if all rows were.
        """
        for records in self.read_rows():
            yield from records
        self.report.check_usable(str(self.path))

    def __call__(self, number: int = 0) -> Iterator[Record]:
        """Records of the pass of that number; all passes are alike."""
        del number
        return iter(self)

    def read_rows(self, *, limit: int | None = None) -> Iterator[list[Record]]:
        """Records row by row; of broken rows that are skipped, none.

        Args:
            limit: Stop after so many rows.

        Raises:
            ValueError: If there is nothing to read at `path`.
            DataError: If a row is broken and the policy is `raise`.
        """
        reader = self._reader()
        self.report = reader.report
        rows = (
            reader.read_at(place.row, key=place.key, roots=place.picture_roots)
            for place in islice(self._places(), limit)
        )
        yield from rows if self.fetcher is None else self._with_fetched(rows, self.fetcher)
        if self.report.num_bad_rows or self.report.pictures_left_out:
            logger.warning("%s", describe_report(self.report, name=str(self.path)))

    def _reader(self) -> RowReader:
        return RowReader(
            self.format, options=self.options, image_root=self.image_root, policy=self.policy, check=self.check
        )

    def _places(self) -> Iterator[_Place]:
        if self.count is None:
            yield from self._all_places()
            return
        copies = draw_positions(sum(1 for _ in self._all_places()), self.count, seed=self.seed)
        for position, place in enumerate(self._all_places()):
            for _ in range(copies[position]):
                yield place

    def _all_places(self) -> Iterator[_Place]:
        roots = _roots_of(self.image_root)
        if self.format == "folder":
            for row in read_folder(self.path, split=self.split):
                yield _Place(row=row, key=row["image"], picture_roots=_roots_of(self.path))
        elif is_hub_id(self.path) or is_saved_dataset(self.path):
            for position, row in enumerate(open_stream(self.path, split=self.split)):
                yield _Place(row=row, key=f"{self.split}:{position}", picture_roots=roots)
        else:
            columns = reader_class(self.format).columns
            for selection in find_files(self.path, split=self.split):
                places = roots or picture_roots(selection)
                for position, found in read_rows(selection, columns=columns):
                    yield _Place(row=found, key=f"{selection.path.name}:{position}", picture_roots=places)

    def _with_fetched(self, rows: Iterator[list[Record]], fetcher: Fetcher) -> Iterator[list[Record]]:
        while window := list(islice(rows, FETCH_WINDOW)):
            urls = [_url_of(picture) for records in window for record in records for picture in pictures_of(record)]
            fetched = fetcher.fetch_many([url for url in urls if is_url(url)])
            for records in window:
                yield [kept for record in records if (kept := self._with_pictures(record, fetched)) is not None]

    def _with_pictures(self, record: Record, fetched: Mapping[str, Path | DataError]) -> Record | None:
        """The record with fetched pictures; `None` if it cannot do without one that is missing."""
        missing = [
            error for picture in pictures_of(record) if isinstance(error := fetched.get(_url_of(picture)), DataError)
        ]
        num_left = sum(1 for _ in pictures_of(record)) - len(missing)
        where = f"Row `{record.provenance.key}` of `{record.provenance.dataset}`"
        faults = [DataError(error.reason, f"{where}: {error}") for error in missing]
        if faults and not (isinstance(record, Document) and num_left):
            self.report.num_records -= 1
            self.report.take(faults[0], policy=self.policy)
            return None
        for fault in faults:
            self.report.leave_out(fault, policy=self.policy)
        return _replace_pictures(record, fetched)


def safety_sources(
    vlguard: str | Path,
    helpful: str | Path,
    *,
    vlguard_images: str | Path | None = None,
    helpful_images: str | Path | None = None,
    num_helpful: int = 5000,
    seed: int = COUNT_SEED,
    policy: Policy = "skip",
) -> tuple[RecordSource, RecordSource]:
    """The two parts of safety fine-tuning: VLGuard, and random helpful samples so that the model does not refuse all.

    Args:
        vlguard: `train.json` of VLGuard.
        helpful: Fine-tuning data as LLaVA JSON.
        vlguard_images: Directory of VLGuard's pictures; by default that of the JSON, or `train` beside it.
        helpful_images: Directory of the other pictures; by default that of the JSON, or `images` beside it.
        num_helpful: How many helpful rows; the paper took 5,000.
        seed: Seed of their choice.
        policy: What becomes of broken rows.

    Source: xGen-MM technical report (arXiv:2408.08872), first version, section on safety fine-tuning.
    """
    return (
        RecordSource(path=vlguard, format="vlguard", image_root=vlguard_images, policy=policy),
        RecordSource(
            path=helpful, format="llava_json", image_root=helpful_images, count=num_helpful, seed=seed, policy=policy
        ),
    )


def describe_report(report: ReadReport, *, name: str) -> str:
    """What was left out, in one line."""
    parts = [f"{count} {reason}" for reason, count in report.bad_rows.most_common()]
    line = f"{name}: {report.num_bad_rows} of {report.num_rows} rows left out ({', '.join(parts) or 'none'})"
    if report.pictures_left_out:
        left_out = ", ".join(f"{count} {reason}" for reason, count in report.pictures_left_out.most_common())
        line += f"; pictures left out of documents: {left_out}"
    return line


def is_url(source: Any) -> bool:
    """Whether a picture has to be fetched."""
    return isinstance(source, str) and is_web_address(source)


def _roots_of(directory: str | Path | None) -> tuple[Path, ...]:
    return () if directory is None else (Path(directory).expanduser(),)


def _url_of(picture: Picture) -> str:
    return picture.source if isinstance(picture.source, str) else ""


def _replace_pictures(record: Record, fetched: Mapping[str, Path | DataError]) -> Record:
    if isinstance(record, Document):
        return replace(record, parts=_replace_parts(record.parts, fetched))
    if isinstance(record, Conversation):
        return replace(record, turns=_replace_turns(record.turns, fetched))
    if isinstance(record, PreferencePair):
        return replace(record, prompt=_replace_turns(record.prompt, fetched))
    raise TypeError(f"`record` is a `{type(record).__name__}`; expected a record.")


def _replace_turns(turns: Iterable[Turn], fetched: Mapping[str, Path | DataError]) -> tuple[Turn, ...]:
    return tuple(replace(turn, parts=_replace_parts(turn.parts, fetched)) for turn in turns)


def _replace_parts(parts: Iterable[Part], fetched: Mapping[str, Path | DataError]) -> tuple[Part, ...]:
    changed: list[Part] = []
    for part in parts:
        found = fetched.get(_url_of(part)) if isinstance(part, Picture) else None
        if found is None:
            changed.append(part)
        elif isinstance(found, Path):
            changed.append(Picture(found))
    return tuple(changed)
