"""Finds tensors in checkpoint files without reading them, and refuses files that cannot be trusted.

Only headers are read here. A header that does not describe its file exactly, an index that points outside its
directory and a name that occurs twice are errors that name the file.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConversionError
from ..weight_files import INDEX_NAME, damaged_header, read_index, read_raw_header, weight_files

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
    header = read_raw_header(path)
    try:
        tensors = {name: _stored_tensor(path, entry, header.start) for name, entry in header.entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_header(path, error) from error
    return SafetensorsHeader(text=header.text, tensors=tensors)


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
    index = read_index(directory)
    if index is not None:
        wrong = sorted({*index.items()} ^ {*homes.items()})
        if wrong:
            names = sorted({name for name, _ in wrong})
            raise ConversionError(
                f"{directory / INDEX_NAME} and the files it lists disagree about {', '.join(names)}."
            )
    return tensors


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
