"""Raw rows from wherever they are: parquet, json, jsonl, csv and tar files, folders, and what `datasets` can load.

Rows are streamed: none of the functions here holds more than a batch of rows of a table, or one sample of a tar file.
"""

import csv
import glob
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import yaml

from ..errors import DataError
from ..images.bounded_download import is_url
from ..sections import load_yaml

# A row as it came, or what is wrong with it; with its position in its file.
RawRow: TypeAlias = dict[str, Any] | DataError

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tar")
_COUNT_SUFFIXES = (".yaml", ".yml")
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
COUNT_SEED = 42
MAX_ROW_CHARACTERS = 64 * 2**20
MAX_MEMBER_BYTES = 512 * 2**20
_BATCH_ROWS = 64
_CHUNK_CHARACTERS = 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IGNORED_MEMBERS = ("._", ".")


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


def find_files(path: str | Path) -> list[Selection]:
    """Data files that a path stands for.

    Args:
        path: A file, a directory, a pattern with `*`, or a YAML file `data_path: {file: count}`; a directory is
            searched at all depths and must hold one kind of data file.

    Returns:
        The files in the order of their names; of a YAML file in its own order.

    Raises:
        ValueError: If there is no data file, or several kinds.
    """
    text = str(path)
    place = Path(path).expanduser()
    if place.suffix in _COUNT_SUFFIXES and place.is_file():
        return _read_counts(place)
    if place.is_file():
        _check_suffix(place)
        return [Selection(path=place)]
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        kinds = sorted({file.suffix for file in found})
        if len(kinds) != 1:
            what = f"holds several kinds of data files ({', '.join(kinds)})" if kinds else "holds no data file"
            raise ValueError(f"`{path}` {what}; give a file or a pattern such as `{place}/*.parquet`.")
        return [Selection(path=file, picture_root=place) for file in found]
    if "*" in text:
        files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        for file in files:
            _check_suffix(file)
        if files:
            return [Selection(path=file) for file in files]
    raise ValueError(f"`{path}` is no file, directory or pattern that matches one.")


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


def read_folder(path: str | Path) -> Iterator[dict[str, Any]]:
    """Pictures below a directory, in the order of their names, with the text files of the same name.

    Raises:
        ValueError: If it is no directory, or holds no picture.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"`{path}` is no directory; format `folder` reads pictures with text files beside them.")
    is_empty = True
    for picture in sorted(file for file in root.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES):
        caption = picture.with_suffix(".txt")
        # Bytes, so that a file that is no UTF-8 is the fault of its row.
        text = caption.read_bytes() if caption.is_file() else None
        is_empty = False
        yield {"image": picture.relative_to(root).as_posix(), "text": text}
    if is_empty:
        raise ValueError(f"`{path}` holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")


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
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Data sets of the Hub are read with `datasets`; install it: `pip install 'xgen-mm[train]'`."
        ) from error
    if Path(path).is_dir():
        stored = datasets.load_from_disk(str(path))
        stored = stored[split] if isinstance(stored, datasets.DatasetDict) else stored
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
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` cannot be read as YAML: {' '.join(str(error).split())}") from error
    counts = content.get("data_path") if isinstance(content, dict) else None
    if not isinstance(counts, dict) or not counts:
        raise ValueError(f"`{path}`: expected `data_path:` with a count per file, found {type(counts).__name__}.")
    selections = []
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"`{path}`: the count of `{name}` is {count!r}; expected a whole number above 0.")
        file = (path.parent / str(name)).expanduser()
        if not file.is_file():
            raise ValueError(
                f"`{path}` names `{name}`, which is no file; names start at the directory of the YAML file."
            )
        _check_suffix(file)
        selections.append(Selection(path=file, count=count))
    return selections


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
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        number = 0
        while line := file.readline(MAX_ROW_CHARACTERS):
            number += 1
            if len(line) >= MAX_ROW_CHARACTERS:
                raise ValueError(f"`{path}`, line {number} is longer than {MAX_ROW_CHARACTERS} characters.")
            if line.strip():
                yield _parse_object(line, f"{path.name}, line {number}")


def _parse_object(text: str, where: str) -> RawRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return DataError("wrong JSON", f"{where}: {error}.")
    return (
        value
        if isinstance(value, dict)
        else DataError("wrong nesting", f"{where}: expected an object, found a {type(value).__name__}.")
    )


def _read_json(path: Path) -> Iterator[RawRow]:
    """Objects of one long list, or one after the other, without reading the file as a whole."""
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
            yield value if isinstance(value, dict) else DataError("wrong nesting", f"{where}: expected an object.")
            number += 1


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
                return ValueError("too many levels of brackets")
            except ValueError as error:
                if len(self._text) - self.position > MAX_ROW_CHARACTERS:
                    return ValueError(f"a row longer than {MAX_ROW_CHARACTERS} characters")
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
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = next(lines, [])
        is_row = any(is_url(cell) for cell in header)
        names = columns if is_row and columns else tuple(header)
        for number, cells in enumerate(chain([header], lines) if names is columns else lines):
            if not cells:
                continue
            if len(cells) != len(names):
                expected = f"expected {len(names)} columns, found {len(cells)}"
                yield DataError("wrong nesting", f"{path.name}, row {number}: {expected}.")
            else:
                yield dict(zip(names, cells, strict=True))


def _read_tar(path: Path) -> Iterator[RawRow]:
    """Samples of a tar shard: members of the same name up to the first dot, which follow one another.

    `datasets` reads such shards too, but takes the fields of the first samples for those of all and fails on others;
    here every sample has its own.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            yield from _group_members(archive, path)
    except (tarfile.TarError, EOFError, OSError) as error:
        yield DataError("wrong nesting", f"{path.name}: the archive cannot be read further ({error}).")


def _group_members(archive: tarfile.TarFile, path: Path) -> Iterator[RawRow]:
    sample: dict[str, Any] = {}
    fault: DataError | None = None
    for member in archive:
        name = PurePosixPath(member.name)
        if not member.isfile() or name.name.startswith(_IGNORED_MEMBERS):
            continue
        stem, _, suffix = name.name.partition(".")
        key = str(name.parent / stem)
        if sample and sample["__key__"] != key:
            yield fault or sample
            sample, fault = {}, None
        sample.setdefault("__key__", key)
        if member.size > MAX_MEMBER_BYTES:
            fault = DataError("too large", f"{path.name}: `{member.name}` has {member.size} bytes.")
            continue
        content = archive.extractfile(member)
        sample[suffix.lower()] = content.read() if content is not None else None
    if sample:
        yield fault or sample
