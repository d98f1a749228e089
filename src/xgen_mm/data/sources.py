"""Raw rows from wherever they are: parquet, json, jsonl, csv and tar files, folders, and what `datasets` can load.

Rows are streamed: none of the functions here holds more than a batch of rows of a table, or one sample of a tar file.
"""

import csv
import glob
import itertools
import json
import random
import re
import reprlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import yaml

from ..errors import DataError, one_line
from ..images.bounded_download import is_url
from ..sections import load_yaml
from .splits import choose_split, split_of

# Under which releases keep the list of their rows, where the file is one object.
_LIST_NAMES = ("questions", "data", "annotations")

# A row as it came, or what is wrong with it; with its position in its file.
RawRow: TypeAlias = dict[str, Any] | DataError

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tar")
_COUNT_SUFFIXES = (".yaml", ".yml")
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
COUNT_SEED = 42
MAX_ROW_CHARACTERS = 64 * 2**20
# Brackets and commas of a row, each of which may stand for an object of a hundred bytes.
MAX_ROW_VALUES = 2_000_000
_LONG_ROW = 2**22
# Of all members of a tar sample together.
MAX_SAMPLE_BYTES = 512 * 2**20
MAX_SAMPLE_MEMBERS = 10_000
# Of a name or an extension header, which `tarfile` reads into memory as a whole.
MAX_HEADER_BYTES = 2**20
_BATCH_ROWS = 64
_CHUNK_CHARACTERS = 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IGNORED_MEMBERS = ("._", ".")
# Written by `datasets` and the Hub beside the data.
_BOOKKEEPING = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_STATISTICS = "_stats.json"
_TOO_DEEP = "too many levels of brackets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A file with the rows to take of it.

    Attributes:
        path: The file.
        count: How many rows: fewer than there are take a random part, more repeat random ones; `None` takes all.
        picture_root: Directory of its pictures, if it is not the one the file lies in.
    """

    path: Path
    count: int | None = None
    picture_root: Path | None = None


def find_files(path: str | Path, *, split: str | None = None) -> list[Selection]:
    """Data files that a path stands for.

    Args:
        path: A file, a directory, a pattern with `*`, or a YAML file `data_path: {file: count}`; a directory is
            searched at all depths and must hold one kind of data file. What `img2dataset` writes beside its shards
            (`NAME.parquet` and `NAME_stats.json` of `NAME.tar`) does not count.
        split: Of a directory or a pattern, take the files of this split alone, see `choose_split`; `None` takes all.

    Returns:
        The files in the order of their names; of a YAML file in its own order.

    Raises:
        ValueError: If there is no data file, or several kinds, or none of the split.
    """
    place = Path(path).expanduser()
    if place.suffix in _COUNT_SUFFIXES and place.is_file():
        return _read_counts(place)
    if place.is_file():
        _check_suffix(place)
        return [Selection(path=place)]
    if place.is_dir():
        found = _data_files(place)
        kinds = sorted({file.suffix for file in found})
        if len(kinds) != 1:
            what = f"holds several kinds of data files ({', '.join(kinds)})" if kinds else "holds no data file"
            raise ValueError(f"`{path}` {what}; give a file or a pattern such as `{place}/*.parquet`.")
        files = found if split is None else choose_split(found, split, root=place)
        return [Selection(path=file, picture_root=place) for file in files]
    if "*" in str(path):
        files = _without_companions([Path(name) for name in sorted(glob.glob(str(place), recursive=True))])
        for file in files:
            _check_suffix(file)
        if files:
            root = Path(*itertools.takewhile(lambda part: "*" not in part, place.parts[:-1]))
            return [
                Selection(path=file)
                for file in (files if split is None else choose_split(files, split, root=root, is_pattern=True))
            ]
    raise ValueError(f"`{path}` is no file, directory or pattern that matches one.")


def picture_roots(selection: Selection) -> tuple[Path, ...]:
    """Directories in which picture names of a file may be looked up, the likeliest first.

    The directory of the data set, that of the file, and beside the file one of its name (`train/` beside `train.json`)
    and `images`.
    """
    parent = selection.path.parent
    roots = dict.fromkeys([selection.picture_root or parent, parent, parent / selection.path.stem, parent / "images"])
    first, *others = roots
    return (first, *(root for root in others if root.is_dir()))


def read_rows(selection: Selection, *, columns: tuple[str, ...] = ()) -> Iterator[tuple[int, RawRow]]:
    """Rows of a file with their positions in it, from 0; positions repeat if more rows are asked for than there are.

    A chosen part comes in the order of the file, not in the order of the draw.

    Args:
        selection: The file, and how many of its rows.
        columns: Names of the columns of a csv or tsv file whose first line holds an address and so is no header.
    """
    if selection.count is None:
        yield from enumerate(_read_file(selection.path, columns))
        return
    total = sum(1 for _ in _read_file(selection.path, columns))
    copies = draw_positions(total, selection.count)
    for position, row in enumerate(_read_file(selection.path, columns)):
        for _ in range(copies[position]):
            yield position, row


def draw_positions(total: int, count: int, *, seed: int = COUNT_SEED) -> Counter[int]:
    """How often each of `total` rows is taken if `count` are asked for.

    Drawn as the released fine-tuning code draws: without replacement if there are enough rows, with it otherwise. The
    default seed is the release's too, so the rows are the same ones.

    >>> sorted(draw_positions(10, 3).items())
    [(0, 1), (1, 1), (4, 1)]
    """
    if total == 0:
        return Counter()
    generator = random.Random(seed)
    rows = range(total)
    return Counter(generator.sample(rows, count) if count <= total else generator.choices(rows, k=count))


def read_folder(path: str | Path, *, split: str = "train") -> Iterator[dict[str, Any]]:
    """Pictures below a directory, in the order of their names, with the text files of the same name.

    Args:
        path: The directory.
        split: Split to read, where the directories right below are named for splits.

    Raises:
        ValueError: If it is no directory, or holds no picture.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"`{path}` is no directory; format `folder` reads pictures with text files beside them.")
    pictures = [file for file in root.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise ValueError(f"`{path}` holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    # Names of pictures say nothing about splits, only the directories they are sorted into do.
    tops = sorted({root / file.relative_to(root).parts[0] for file in pictures if file.parent != root})
    kept = set(choose_split(tops, split, root=root)) if any(split_of(top.relative_to(root)) for top in tops) else tops
    for picture in sorted(pictures):
        name = picture.relative_to(root)
        if len(name.parts) > 1 and root / name.parts[0] not in kept:
            continue
        caption = picture.with_suffix(".txt")
        # Bytes, so that a file that is no UTF-8 is the fault of its row.
        text = caption.read_bytes() if caption.is_file() else None
        yield {"image": name.as_posix(), "text": text}


def is_hub_id(path: str | Path) -> bool:
    """Whether a path can only mean a data set of the Hub, `owner/name` or `owner/name:configuration`."""
    name = str(path).partition(":")[0]
    is_file_name = Path(name).suffix in (*SUFFIXES, *_COUNT_SUFFIXES)
    return _HUB_ID.fullmatch(name) is not None and not is_file_name and not Path(name).expanduser().exists()


def open_stream(path: str | Path, *, split: str = "train") -> Any:
    """A streaming `datasets.IterableDataset` whose pictures are left undecoded.

    Args:
        path: Hub id `owner/name`, with `:configuration` if it has several; or a directory written by `save_to_disk`.
        split: Split to read.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If a directory holds several splits and not this one.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Data sets of the Hub are read with `datasets`; install it: `pip install 'xgen-mm[train]'`."
        ) from error
    if Path(path).is_dir():
        stored = datasets.load_from_disk(str(path))
        if isinstance(stored, datasets.DatasetDict):
            if split not in stored:
                raise ValueError(f"`{path}` holds the splits {', '.join(stored)}; `split` is {split!r}.")
            stored = stored[split]
        stream = stored.to_iterable_dataset()
    else:
        name, _, configuration = str(path).partition(":")
        stream = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
    # Encoded bytes are a tenth of the pixels, and a broken picture is one row's fault rather than the stream's.
    return stream.decode(False) if stream.features is not None else stream


def is_saved_dataset(path: str | Path) -> bool:
    """Whether `datasets` wrote a directory with `save_to_disk`."""
    return any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _read_counts(path: Path) -> list[Selection]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"`{path}` is no YAML file that can be read: {' '.join(str(error).split())}.") from error
    counts = content.get("data_path") if isinstance(content, dict) else None
    if not isinstance(counts, dict) or not counts:
        raise ValueError(f"`{path}`: expected `data_path:` with a count per file, found {type(counts).__name__}.")
    selections = []
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(
                f"`{path}`: the count of `{name}` is {reprlib.repr(count)}; expected a whole number above 0."
            )
        file = (path.parent / str(name)).expanduser()
        if not file.is_file():
            raise ValueError(
                f"`{path}` names `{name}`, which is no file; names start at the directory of the YAML file."
            )
        _check_suffix(file)
        selections.append(Selection(path=file, count=count))
    return selections


def _data_files(place: Path) -> list[Path]:
    files = []
    for file in place.rglob("*"):
        # Caches of the Hub's client lie in hidden directories.
        is_hidden = any(part.startswith(".") for part in file.relative_to(place).parts)
        if file.suffix in SUFFIXES and not is_hidden and file.name not in _BOOKKEEPING and file.is_file():
            files.append(file)
    return _without_companions(sorted(files))


def _without_companions(files: list[Path]) -> list[Path]:
    """Files without what `img2dataset` writes beside each shard: its table of addresses and its statistics."""
    tars = {file.with_suffix("") for file in files if file.suffix == ".tar"}
    shards = tars | {file.with_suffix("") for file in files if file.suffix == ".parquet"}
    return [
        file
        for file in files
        if not (file.suffix == ".parquet" and file.with_suffix("") in tars)
        and not (file.name.endswith(_STATISTICS) and Path(str(file).removesuffix(_STATISTICS)) in shards)
    ]


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"`{path}` is no data file; expected one of {', '.join(SUFFIXES)} or a YAML file of counts.")


def _read_file(path: Path, columns: tuple[str, ...]) -> Iterator[RawRow]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".tar":
        return _read_tar(path)
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".csv", ".tsv"):
        return _read_csv(path, columns)
    return _read_lines(path)


def _read_parquet(path: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "Parquet files are read with `pyarrow`; install it: `pip install 'xgen-mm[train]'`."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    # Damaged files: pyarrow's own errors are of these kinds.
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        yield DataError("wrong nesting", f"{path.name}: the table cannot be read further ({one_line(error)}).")


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        number = 0
        while line := file.readline(MAX_ROW_CHARACTERS):
            number += 1
            where = f"{path.name}, line {number}"
            if len(line) >= MAX_ROW_CHARACTERS:
                while line and not line.endswith("\n"):
                    line = file.readline(MAX_ROW_CHARACTERS)
                yield DataError("too large", f"{where} is longer than {MAX_ROW_CHARACTERS} characters.")
            elif line.strip():
                yield _parse_object(line, where)


def _parse_object(text: str, where: str) -> RawRow:
    if has_too_many_values(text):
        return DataError("too large", f"{where}: more than {MAX_ROW_VALUES} values in one row.")
    try:
        value = json.loads(text)
    except RecursionError:
        return DataError("wrong JSON", f"{where}: {_TOO_DEEP}.")
    except (ValueError, MemoryError) as error:
        return DataError("wrong JSON", f"{where}: {one_line(error)}.")
    return (
        value
        if isinstance(value, dict)
        else DataError("wrong nesting", f"{where}: expected an object, found a {type(value).__name__}.")
    )


def has_too_many_values(text: str) -> bool:
    """Whether a JSON text would take gigabytes once it is read, whatever its own length; short ones never do."""
    return len(text) > _LONG_ROW and sum(map(text.count, "[{,")) > MAX_ROW_VALUES


def _read_json(path: Path) -> Iterator[RawRow]:
    """Objects of one long list, one after the other, or in one object by their ids.

    But for the last of these, the file is not read as a whole.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        buffer = _Buffer(file)
        is_list = buffer.skip(" \t\r\n\ufeff") == "["
        if is_list:
            buffer.position += 1
        number = 0
        while True:
            character = buffer.skip(" \t\r\n,")
            if character == "" or (is_list and character == "]"):
                if is_list and character == "":
                    yield DataError("wrong JSON", f"{path.name}: the list ends after {number} rows without `]`.")
                return
            value = buffer.decode(decoder)
            where = f"{path.name}, row {number}"
            if isinstance(value, ValueError):
                # What follows cannot be told apart, so the rest of the file is one broken row.
                yield DataError("wrong JSON", f"{where}: {value}; nothing behind it can be read.")
                return
            if number == 0 and not is_list and isinstance(value, dict) and buffer.skip(" \t\r\n") == "":
                yield from _rows_in_object(value)
                return
            yield value if isinstance(value, dict) else DataError("wrong nesting", f"{where}: expected an object.")
            number += 1


def _rows_in_object(value: dict[str, Any]) -> Iterator[RawRow]:
    """Rows of a file that is one object: those of a list in it, its values with their names, or itself."""
    lists = [value[name] for name in _LIST_NAMES if isinstance(value.get(name), list)]
    if lists:
        named: list[tuple[Any, Any]] = list(enumerate(lists[0]))
    elif sum(isinstance(item, dict) for item in value.values()) > len(value) // 2:
        named = list(value.items())
    else:
        yield value
        return
    for name, row in named:
        if not isinstance(row, dict):
            yield DataError("wrong nesting", f"row {str(name)[:60]}: expected an object.")
        else:
            yield row if lists else {"__key__": name, **row}


class _Buffer:
    """A window on a text file that grows until a JSON value fits."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self.position = 0

    def skip(self, characters: str) -> str:
        """Pass over some characters; the next other one, or nothing at the end."""
        while True:
            while self.position < len(self._text) and self._text[self.position] in characters:
                self.position += 1
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._grow(_CHUNK_CHARACTERS):
                return ""

    def decode(self, decoder: json.JSONDecoder) -> Any:
        """The value at the position, or the `ValueError` that says why there is none."""
        size = _CHUNK_CHARACTERS
        while True:
            try:
                value, self.position = decoder.raw_decode(self._text, self.position)
            except RecursionError:
                return ValueError(_TOO_DEEP)
            except (ValueError, MemoryError) as error:
                if len(self._text) - self.position > MAX_ROW_CHARACTERS:
                    return ValueError(f"a row longer than {MAX_ROW_CHARACTERS} characters")
                if has_too_many_values(self._text):
                    return ValueError(f"a row of more than {MAX_ROW_VALUES} values")
                if not self._grow(size):
                    return error
                size *= 2
            else:
                return value

    def _grow(self, size: int) -> bool:
        more = self._file.read(size)
        self._text = self._text[self.position :] + more
        self.position = 0
        return bool(more)


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        first = file.readline(MAX_ROW_CHARACTERS)
        file.seek(0)
        has_header = not columns or not any(is_url(cell.strip('"')) for cell in first.split(delimiter))
        # Tables of the web without a header know no quoting: a caption that begins with a quotation mark is no
        # beginning of a field that goes on over the lines that follow.
        is_plain = not has_header and delimiter == "\t"
        lines = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL)
        number = 0
        try:
            names = tuple(next(lines, [])) if has_header else columns
            for cells in lines:
                if cells and len(cells) != len(names):
                    expected = f"expected {len(names)} columns, found {len(cells)}"
                    yield DataError("wrong nesting", f"{path.name}, row {number}: {expected}.")
                elif cells:
                    yield dict(zip(names, cells, strict=True))
                number += 1
        except csv.Error as error:
            yield DataError(
                "wrong nesting",
                f"{path.name}, row {number} (line {lines.line_num}): {error}; nothing behind it can be read. Look for "
                "a quotation mark that is not closed.",
            )


class _BoundedTarInfo(tarfile.TarInfo):
    """A member whose names and extension headers are of a sensible size."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # `tarfile` calls this for every header, and is made to be extended here.
        is_header = self.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if is_header and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes; expected at most {MAX_HEADER_BYTES}")
        return super()._proc_member(archive)  # type: ignore[misc]


def _read_tar(path: Path) -> Iterator[RawRow]:
    """Samples of a tar shard: members of the same name up to the first dot, which follow one another.

    `datasets` reads such shards too, but takes the fields of the first samples for those of all and fails on others;
    here every sample has its own.
    """
    try:
        with tarfile.open(path, "r|*", tarinfo=_BoundedTarInfo) as archive:
            yield from _group_members(archive, path)
    # `zlib.error` and its kind are plain exceptions, and a damaged header may lead to any other.
    except Exception as error:
        reason = one_line(error)
        yield DataError("wrong nesting", f"{path.name}: the archive cannot be read further ({reason}).")


def _group_members(archive: tarfile.TarFile, path: Path) -> Iterator[RawRow]:
    sample: dict[str, Any] = {}
    fault: DataError | None = None
    num_bytes = 0
    for member in archive:
        name = PurePosixPath(member.name)
        # The archive keeps a list of its members, which is of no use here.
        archive.members = []  # type: ignore[attr-defined]
        if not member.isfile() or name.name.startswith(_IGNORED_MEMBERS):
            continue
        stem, _, suffix = name.name.partition(".")
        key = str(name.parent / stem)
        if sample and sample["__key__"] != key:
            yield fault or sample
            sample, fault, num_bytes = {}, None, 0
        sample.setdefault("__key__", key)
        num_bytes += member.size
        if fault is None and (num_bytes > MAX_SAMPLE_BYTES or len(sample) > MAX_SAMPLE_MEMBERS):
            size = f"{num_bytes} bytes and {len(sample)} members up to `{member.name}`"
            limits = f"at most {MAX_SAMPLE_BYTES} bytes and {MAX_SAMPLE_MEMBERS} members"
            fault = DataError("too large", f"{path.name}: sample `{key}` has {size}; expected {limits}.")
            sample = {"__key__": key}
        if fault is not None:
            continue
        content = archive.extractfile(member)
        sample[suffix.lower()] = content.read() if content is not None else None
    if sample:
        yield fault or sample
