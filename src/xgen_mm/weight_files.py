"""Checks the files of a checkpoint before a weight is read: an index must stay in its directory, files must be whole.

Only indices and headers are read, which takes milliseconds whatever the size of the checkpoint.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import ConversionError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = SINGLE_NAME + ".index.json"
LENGTH_BYTES = 8
# Far above any index or header of a real checkpoint, and small enough to be parsed in memory.
MAX_HEADER_BYTES = MAX_JSON_BYTES = 32_000_000


@dataclass(frozen=True, slots=True)
class RawHeader:
    """Header of one safetensors file.

    Attributes:
        text: Its JSON text as stored, padding included.
        entries: What it says of each tensor, by name.
        start: Position of the first value in the file.
    """

    text: str
    entries: dict[str, Any]
    start: int


def check_weight_files(directory: Path, *, variant: str | None = None) -> None:
    """Refuse a directory whose safetensors files cannot be what was saved; one without such files passes.

    Args:
        directory: Checkpoint directory.
        variant: Part of the file names, as in `from_pretrained`.

    Raises:
        ConversionError: If the index points outside the directory, or files are missing, truncated or damaged.
    """
    if (directory / _index_name(variant)).is_file() or (directory / _single_name(variant)).is_file():
        for name in weight_files(directory, variant=variant):
            read_raw_header(directory / name)


def weight_files(directory: Path, *, variant: str | None = None) -> list[str]:
    """Names of the weight files of a checkpoint directory, in order.

    Args:
        directory: Holds an index and its shards, or a single file.
        variant: Part of the file names, as in `from_pretrained`.

    Raises:
        ConversionError: If there are none, or the index names something that is not a file right there.
    """
    index_name, single_name = _index_name(variant), _single_name(variant)
    index = read_index(directory, variant=variant)
    if index is None:
        if (directory / single_name).is_file():
            return [single_name]
        raise ConversionError(f"{directory} has neither {index_name} nor {single_name}; give a checkpoint directory.")
    names = sorted(set(index.values()))
    unsafe = [name for name in names if not _is_plain_name(name)]
    if unsafe:
        raise ConversionError(
            f"{directory / index_name} points outside its directory: {', '.join(unsafe)}. Nothing was read; do not "
            "use it."
        )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ConversionError(f"{directory} lacks {', '.join(missing)}, which {index_name} lists. Download them.")
    return names


def read_index(directory: Path, *, variant: str | None = None) -> dict[str, str] | None:
    """File name of each tensor, by tensor name, as the index says; `None` if there is no index.

    Raises:
        ConversionError: If the index is not of that form.
    """
    path = directory / _index_name(variant)
    if not path.is_file():
        return None
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConversionError(f"{path} has no `weight_map` of tensor names to file names.")
    return weight_map


def read_raw_header(path: Path) -> RawHeader:
    """Read the header of a safetensors file and check that its tensors fill the file exactly.

    Raises:
        ConversionError: If the file is truncated or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(LENGTH_BYTES)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == LENGTH_BYTES else MAX_HEADER_BYTES + 1
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise ConversionError(f"{path} is not a whole safetensors file ({size} bytes). Download or copy it again.")
        raw = stream.read(length)
    try:
        text = raw.decode("utf-8")
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        ranges = sorted(_read_range(entry) for entry in entries.values())
    except RecursionError as error:
        raise damaged_header(path, "nested too deeply") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_header(path, error) from error
    start = position = LENGTH_BYTES + length
    for begin, end in ranges:
        if start + begin != position or end < begin:
            raise ConversionError(f"{path} has a damaged safetensors header (gap or overlap at byte {position}).")
        position = start + end
    if position != size:
        state = "truncated" if size < position else "longer than its header says"
        raise ConversionError(f"{path} is {state}: {size} bytes, expected {position}. Download or copy it again.")
    return RawHeader(text, entries, start)


def damaged_header(path: Path, reason: object) -> ConversionError:
    """Error for a file whose header makes no sense."""
    return ConversionError(f"{path} has a damaged safetensors header ({reason}). Download or copy it again.")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ConversionError: If it is not valid JSON, nested too deeply, or larger than any index.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ConversionError(f"{path} has {path.stat().st_size:,} bytes; expected at most {MAX_JSON_BYTES:,}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConversionError(f"{path} is nested too deeply to be what it should be. Download it again.") from error
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON: {error}.") from error


def _read_range(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int or begin < 0:
        raise ValueError(f"`data_offsets` {begin!r}..{end!r}; expected whole numbers")
    return begin, end


def _single_name(variant: str | None) -> str:
    return f"model.{variant}.safetensors" if variant else SINGLE_NAME


def _index_name(variant: str | None) -> str:
    return f"{SINGLE_NAME}.index.{variant}.json" if variant else INDEX_NAME


def _is_plain_name(name: str) -> bool:
    # Both path styles are judged whatever the system, so that a checkpoint is safe or unsafe everywhere.
    styles = (PurePosixPath(name), PureWindowsPath(name))
    return name not in ("", ".", "..") and all(style.name == name and not style.drive for style in styles)
