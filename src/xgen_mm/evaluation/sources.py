"""Where the rows of a benchmark come from: files and directories of the user, a generator, or, if asked, the Hub."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ..data.sources import RawRow, Selection, find_files, is_saved_dataset, open_stream, picture_roots, read_rows
from ..errors import DataError, one_line
from .task import HubData, Task, TaskError

# Columns that rows get beside their own: name of their file without its ending, and their name in an object of rows.
FILE_COLUMN, KEY_COLUMN = "__file__", "__key__"
# Rows that are looked at for the columns that data have: not every row has all.
_FIRST_ROWS = 32
# MME's release has a directory per category with these two, or their files beside one another.
_MME_TEXTS, _MME_PICTURES = "questions_answers_YN", "images"
# Draws the rows of a task that has no files.
Generator: TypeAlias = Callable[[], Iterator[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Rows of one split, which can be read again and again in the same order.

    Attributes:
        path: File, directory of files, or directory written by `save_to_disk`; `None` for the other kinds.
        hub: Data set of the Hub; read through its cache, filled if need be.
        generator: Draws rows.
        split: Picks files by name if a directory holds several splits.
        configs: Pick files by directory if a directory holds several configurations.
    """

    path: Path | None = None
    hub: HubData | None = None
    generator: Generator | None = None
    split: str = ""
    configs: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[RawRow, tuple[Path, ...]]]:
        """Rows in order, each with the directories in which its picture names may be looked up.

        Raises:
            TaskError: If there is nothing to read.
            ImportError: If a package that reads the files is not installed.
        """
        if self.generator is not None:
            yield from ((row, ()) for row in self.generator())
        elif self.hub is not None:
            yield from ((row, ()) for row in _open_hub(self.hub))
        elif self.path is not None and is_saved_dataset(self.path):
            yield from ((row, (self.path,)) for row in open_stream(self.path, split=self.split))
        elif self.path is not None and (texts := _find_question_texts(self.path)):
            yield from ((row, (self.path,)) for path in texts for row in _read_question_text(path, root=self.path))
        elif self.path is not None:
            for selection in self._files(self.path):
                roots = picture_roots(selection)
                rows = _until_fault((row for _, row in read_rows(selection)), name=selection.path.name)
                for row in rows:
                    yield {FILE_COLUMN: selection.path.stem, **row} if isinstance(row, Mapping) else row, roots

    def first_rows(self) -> dict[str, Any]:
        """The first rows that can be read, in one: each column with the first value it has.

        Raises:
            TaskError: If there is none.
        """
        rows = [row for row, _ in islice(self.rows(), _FIRST_ROWS)]
        found = [row for row in rows if isinstance(row, Mapping)]
        if not found:
            reason = f" ({str(rows[0]).rstrip('.')})" if rows else ""
            raise TaskError(f"{self.describe()} holds no row that can be read{reason}.")
        return {name: value for row in reversed(found) for name, value in row.items()}

    def count(self) -> int:
        """Number of rows."""
        if self.path is not None and not is_saved_dataset(self.path):
            files = self._files(self.path)
            if all(selection.path.suffix == ".parquet" for selection in files):
                return sum(_count_parquet(selection.path) for selection in files)
        return sum(1 for _ in self.rows())

    def describe(self) -> str:
        """What messages call it."""
        if self.path is not None:
            return f"`{self.path}`"
        return f"`{self.hub.id}`" if self.hub is not None else "the generator"

    def _files(self, path: Path) -> list[Selection]:
        try:
            selections = find_files(path)
        except ValueError as error:
            raise TaskError(str(error)) from error
        if self.configs:
            selections = [item for item in selections if {*self.configs} & {*item.path.parts}] or selections
        if self.split and len(selections) > 1:
            starts = (f"{self.split}-", f"{self.split}.")
            chosen = [item for item in selections if f"{item.path.stem}.".startswith(starts)]
            selections = chosen or selections
        return selections


def question_source(
    task: Task, *, path: Path | None, generators: Mapping[str, Generator], download: bool
) -> DataSource:
    """Where the questions of a task come from.

    Args:
        task: The benchmark.
        path: What the user gave for it.
        generators: Generators by name.
        download: Whether the Hub may be asked.

    Raises:
        TaskError: If there is nothing to read them from.
    """
    hub = task.hub
    # Where no data set of the Hub says it, the split's name in words begins with it.
    split, configs = (hub.split, hub.config) if hub else (task.split.partition(",")[0], ())
    if path is not None:
        _check_path(task, path)
        return DataSource(path=path, split=split, configs=configs)
    if task.generator:
        if task.generator not in generators:
            raise TaskError(f"`{task.name}` needs the generator `{task.generator}`, which is not part of this run.")
        return DataSource(generator=generators[task.generator])
    if download and hub is not None:
        return DataSource(hub=hub)
    remedy = f"give `--data {task.name}=PATH`"
    if hub is not None:
        where = f"`{hub.id}`" + (f" ({', '.join(hub.config)})" if hub.config else "")
        remedy += f", or `--download` to get split `{hub.split}` of {where} from the Hub"
    raise TaskError(f"`{task.name}` has no data: {remedy}.")


def train_source(task: Task, *, path: Path | None, download: bool) -> DataSource:
    """Where the demonstrations of a few-shot task come from.

    Raises:
        TaskError: If there is nothing to read them from.
    """
    hub = task.hub
    split = hub.train_split if hub is not None and hub.train_split else "train"
    if path is not None:
        _check_path(task, path)
        return DataSource(path=path, split=split)
    if download and hub is not None and hub.train_split is not None:
        return DataSource(hub=HubData(id=hub.id, split=hub.train_split, config=hub.config))
    raise TaskError(
        f"`{task.name}` has no training questions to draw demonstrations from: give `--data {task.name}:train=PATH`."
    )


def _check_path(task: Task, path: Path) -> None:
    # Patterns such as `test/*.json` are checked where files are looked for.
    if "*" not in str(path) and not path.exists():
        raise TaskError(f"`{task.name}`: there is no `{path}`.")


def _until_fault(rows: Iterable[RawRow], *, name: str) -> Iterator[RawRow]:
    """Rows up to a fault of their file, which takes the place of the next row."""
    try:
        yield from rows
    except ImportError:
        raise
    except Exception as error:
        reason = one_line(error)
        yield DataError("wrong nesting", f"{name}: {reason.rstrip('.')}; nothing behind it can be read.")


def _find_question_texts(path: Path) -> list[Path]:
    """Files of MME's release, a text per picture in a directory per category; none if there are data files."""
    if not path.is_dir():
        return []
    texts = sorted({*path.glob("*/*.txt"), *path.glob(f"*/{_MME_TEXTS}/*.txt")})
    try:
        find_files(path)
    except ValueError:
        return texts
    return []


def _read_question_text(path: Path, *, root: Path) -> Iterator[RawRow]:
    """Lines `question<TAB>answer` about one picture."""
    category, *inner = path.parent.relative_to(root).parts
    folder = _MME_PICTURES if inner else "."
    name = f"{category}/{path.stem}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        yield DataError("wrong type", f"{path.name}: {error}.")
        return
    for line in filter(str.strip, lines):
        question, _, answer = line.rpartition("\t")
        row = {"question": question, "answer": answer, "category": category}
        yield {**row, KEY_COLUMN: name, "image": f"{category}/{folder}/{path.stem}"}


def _count_parquet(path: Path) -> int:
    from pyarrow import parquet  # type: ignore[import-untyped]

    return int(parquet.ParquetFile(path).metadata.num_rows)


def _open_hub(hub: HubData) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Data of the Hub are read with `datasets`: `pip install 'xgen-mm[train]'`.") from error
    for config in hub.config or (None,):
        stored = datasets.load_dataset(hub.id, config, split=hub.split)
        # Undecoded, so that a broken picture is the fault of its row.
        yield from stored.to_iterable_dataset().decode(False)
