"""What a converted checkpoint keeps of its original, so that the conversion can be undone exactly.

The folder `original/` holds the rows that our layout has no place for, how the original's weight files were laid out,
and copies of its JSON files. Loading a model never looks into it. Its weights are in a folder of their own because
serving engines read every weight file that lies next to the configuration.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from ..weight_files import read_json, weight_files
from .source_checkpoint import SourceCheckpoint
from .tensor_files import StoredTensor, read_header

FOLDER = "original"
RECORD_NAME = "layout.json"
EXTRAS_NAME = "left_over.safetensors"
FORMAT_VERSION = 1
# Small files that go back as they were; code is never copied.
COPIED_SUFFIXES = (".json", ".model", ".txt", ".md", ".jinja")
MAX_COPIED_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class OriginalFile:
    """One weight file of the original.

    Attributes:
        name: File name.
        header: Text of its safetensors header; `None` for a `.pt` file.
        tensors: Type name and shape by full tensor name, in file order.
    """

    name: str
    header: str | None
    tensors: dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class OriginalRecord:
    """Layout of the original.

    Attributes:
        prefix: What its tensor names begin with.
        wrapper: Key of the state dict inside a `.pt` file, if any.
        files: Its weight files.
    """

    prefix: str
    wrapper: str | None
    files: tuple[OriginalFile, ...]

    @property
    def is_pickle(self) -> bool:
        """Whether the original is a `.pt` file."""
        return self.files[0].header is None


def describe_original(source: SourceCheckpoint) -> OriginalRecord:
    """Layout of a checkpoint that is about to be converted."""
    if source.is_pickle:
        # Weights of a vision tower that came from elsewhere were not in the file.
        stored = {name: tensor for name, tensor in source.tensors.items() if tensor.file == source.path}
        tensors = {source.prefix + name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
        return OriginalRecord(source.prefix, source.wrapper, (OriginalFile(source.path.name, None, tensors),))
    directory = source.path if source.path.is_dir() else source.path.parent
    names = weight_files(directory) if source.path.is_dir() else [source.path.name]
    files = []
    for name in names:
        header = read_header(directory / name)
        ordered = sorted(header.tensors.items(), key=lambda item: item[1].offset)
        files.append(OriginalFile(name, header.text, {key: (t.dtype, t.shape) for key, t in ordered}))
    return OriginalRecord(source.prefix, None, tuple(files))


def save_record(record: OriginalRecord, source: SourceCheckpoint, folder: Path) -> None:
    """Write the layout and copy the original's small files.

    Args:
        record: Layout of the original.
        source: The original.
        folder: Where to write; it exists.
    """
    content = {
        "version": FORMAT_VERSION,
        "prefix": record.prefix,
        "wrapper": record.wrapper,
        "files": [{"name": file.name, "header": file.header, "tensors": file.tensors} for file in record.files],
    }
    (folder / RECORD_NAME).write_text(json.dumps(content), encoding="utf-8")
    for path in small_files(source.directory):
        shutil.copyfile(path, folder / path.name)


def load_record(folder: Path) -> tuple[OriginalRecord, Mapping[str, StoredTensor]]:
    """Read the layout of the original and find the rows that were kept aside.

    Args:
        folder: The folder `original/` of a converted checkpoint.

    Raises:
        ConversionError: If it is missing or damaged.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise ConversionError(
            f"{path} does not exist: {folder.parent} keeps no record of its original. Name a converted checkpoint "
            "that has one with `--original` (a fine-tuned model can use that of the checkpoint it started from)."
        )
    content = read_json(path)
    try:
        files = tuple(_original_file(entry) for entry in content["files"])
        record = OriginalRecord(content["prefix"], content["wrapper"], files)
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path} is damaged ({error}).") from error
    unsafe = [file.name for file in files if Path(file.name).name != file.name]
    if unsafe or not files:
        raise ConversionError(f"{path} names files outside its directory: {', '.join(unsafe)}.")
    extras = folder / EXTRAS_NAME
    return record, read_header(extras).tensors if extras.is_file() else {}


def small_files(directory: Path | None) -> list[Path]:
    """Files of a checkpoint directory that are neither weights nor code."""
    if directory is None:
        return []
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file()
        and path.suffix in COPIED_SUFFIXES
        and path.name not in (RECORD_NAME,)
        and path.stat().st_size <= MAX_COPIED_BYTES
    ]


def _original_file(entry: dict[str, Any]) -> OriginalFile:
    tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in entry["tensors"].items()}
    return OriginalFile(entry["name"], entry["header"], tensors)
