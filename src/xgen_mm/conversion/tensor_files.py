"""Finds tensors in checkpoint files without reading them, and refuses files that cannot be trusted.

Only headers are read here. A header that does not describe its file exactly, an index that points outside its
directory and a name that occurs twice are errors that name the file.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from ..errors import ConversionError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LENGTH_BYTES = 8
# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file.

    Attributes:
        file: Where it is.
        offset: Position of its first byte in the file.
        dtype: Name in the safetensors format, for example `BF16`.
        shape: Its shape.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Size along the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one slice along the first axis."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.num_rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Header of one safetensors file.

    Attributes:
        text: Its JSON text as stored, padding included.
        tensors: What it lists, by name.
    """

    text: str
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file and check that it describes the file exactly.

    Raises:
        ConversionError: If the file is truncated, damaged or holds a type that is not supported.
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
        start = LENGTH_BYTES + length
        tensors = {name: _stored_tensor(path, entry, start) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path} has a damaged safetensors header ({error}). Download or copy it again."
        ) from error
    _check_coverage(path, tensors, start=start, size=size)
    return SafetensorsHeader(text=text, tensors=tensors)


def list_directory(directory: Path) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint directory, from its index or its single file.

    Args:
        directory: Holds `model.safetensors.index.json` and its shards, or `model.safetensors`.

    Returns:
        Tensors by name, in file order.

    Raises:
        ConversionError: If there is no such file, the index points outside the directory, or index and files disagree.
    """
    tensors: dict[str, StoredTensor] = {}
    homes: dict[str, str] = {}
    for file_name in weight_files(directory):
        for name, tensor in read_header(directory / file_name).tensors.items():
            if name in tensors:
                raise ConversionError(f"`{name}` is in {homes[name]} and in {file_name}; a tensor may be stored once.")
            tensors[name], homes[name] = tensor, file_name
    index = _read_index(directory)
    if index is not None:
        wrong = sorted({*index.items()} ^ {*homes.items()})
        if wrong:
            names = sorted({name for name, _ in wrong})
            raise ConversionError(
                f"{directory / INDEX_NAME} and the files it lists disagree about {', '.join(names)}."
            )
    return tensors


def weight_files(directory: Path) -> list[str]:
    """Names of the weight files of a checkpoint directory, in order.

    Raises:
        ConversionError: If there are none, or the index names something that is not a file right there.
    """
    index = _read_index(directory)
    if index is None:
        if (directory / SINGLE_NAME).is_file():
            return [SINGLE_NAME]
        raise ConversionError(f"{directory} has neither {INDEX_NAME} nor {SINGLE_NAME}; give a checkpoint directory.")
    names = sorted(set(index.values()))
    unsafe = [name for name in names if not _is_plain_name(name)]
    if unsafe:
        raise ConversionError(
            f"{directory / INDEX_NAME} points outside its directory: {', '.join(unsafe)}. Nothing was read; do not "
            "use it."
        )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ConversionError(f"{directory} lacks {', '.join(missing)}, which {INDEX_NAME} lists. Download them.")
    return names


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ConversionError: If it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON: {error}.") from error


def _read_index(directory: Path) -> dict[str, str] | None:
    path = directory / INDEX_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConversionError(f"{path} has no `weight_map` of tensor names to file names.")
    return weight_map


def _is_plain_name(name: str) -> bool:
    # Both path styles are judged whatever the system, so that a checkpoint is safe or unsafe everywhere.
    styles = (PurePosixPath(name), PureWindowsPath(name))
    return name not in ("", ".", "..") and all(style.name == name and not style.drive for style in styles)


def _stored_tensor(path: Path, entry: dict[str, Any], start: int) -> StoredTensor:
    dtype = entry["dtype"]
    if dtype not in DTYPES:
        raise ValueError(f"type `{dtype}`; expected one of {', '.join(DTYPES)}")
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(isinstance(side, int) and side >= 0 for side in (*shape, begin, end)):
        raise ValueError(f"sizes {shape}, offsets {begin}..{end}")
    tensor = StoredTensor(path, start + begin, dtype, shape)
    if tensor.num_bytes != end - begin:
        raise ValueError(f"shape {shape} of {dtype} does not fill {end - begin} bytes")
    return tensor


def _check_coverage(path: Path, tensors: dict[str, StoredTensor], *, start: int, size: int) -> None:
    position = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != position:
            raise ConversionError(f"{path} has a damaged safetensors header (gap or overlap at byte {position}).")
        position += tensor.num_bytes
    if position != size:
        state = "truncated" if size < position else "longer than its header says"
        raise ConversionError(f"{path} is {state}: {size} bytes, expected {position}. Download or copy it again.")
