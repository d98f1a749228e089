"""Writes tensors that are put together from rows of stored ones, a buffer at a time.

Memory stays at a few buffers whatever the size of the checkpoint, and every file gets its checksum as it is written:
CRC-32, which finds every flipped bit and, unlike a cryptographic hash, costs less time than the copying itself.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from ..errors import ConversionError
from ..weight_files import LENGTH_BYTES
from .pickle_files import list_pickle, seal, write_skeleton
from .tensor_files import DTYPES, StoredTensor

# Small enough to stay in a core's cache between reading, checksum and writing.
BUFFER_BYTES = 2**20
HEADER_ALIGNMENT = 8
PARTIAL_SUFFIX = ".part"
Report = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a stored tensor.

    Attributes:
        tensor: Where they are.
        start: First row.
        num_rows: How many.
    """

    tensor: StoredTensor
    start: int
    num_rows: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows as they are stored."""
        return self.num_rows * self.tensor.row_bytes


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write.

    Attributes:
        name: Its name in the file.
        dtype: Type to write, a name of the safetensors format.
        shape: Its shape.
        pieces: Rows it consists of, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the values as they will be written."""
        return sum(piece.num_bytes // DTYPES[piece.tensor.dtype].itemsize for piece in self.pieces) * self._itemsize

    @property
    def _itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A weight file to write.

    Attributes:
        name: File name.
        tensors: What it holds, in order.
        header: Text of its safetensors header; `None` writes a new one.
    """

    name: str
    tensors: tuple[OutputTensor, ...]
    header: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def write_safetensors(output: OutputFile, directory: Path, *, report: Report) -> str:
    """Write one safetensors file; it appears under its name only when it is complete.

    Args:
        output: What to write.
        directory: Where.
        report: Called with the number of bytes after each buffer.

    Returns:
        Checksum of the file, see `file_checksum`.

    Raises:
        ConversionError: If a source file ends early.
    """
    header = (output.header or _header(output)).encode("utf-8")
    checksum = 0
    partial = directory / (output.name + PARTIAL_SUFFIX)
    with partial.open("wb") as sink, _Sources() as sources:
        for chunk in (struct.pack("<Q", len(header)), header):
            checksum = zlib.crc32(chunk, checksum)
            sink.write(chunk)
        for tensor in output.tensors:
            for values in _values(tensor, sources):
                sink.write(values)
                checksum = zlib.crc32(values, checksum)
                report(len(values))
    os.replace(partial, directory / output.name)
    return f"{checksum:08x}"


def write_pickle(output: OutputFile, path: Path, *, wrapper: str | None, report: Report) -> str:
    """Write one `.pt` file of tensors.

    Args:
        output: What to write; its name and header are not used.
        path: File to write; it appears only when it is complete.
        wrapper: Key to put the tensors under; `None` writes a bare state dict.
        report: Called with the number of bytes after each buffer.

    Returns:
        Checksum of the file, see `file_checksum`.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    write_skeleton(partial, {tensor.name: (tensor.dtype, tensor.shape) for tensor in output.tensors}, wrapper=wrapper)
    places, _ = list_pickle(partial)
    checksums = {}
    with partial.open("r+b") as sink, _Sources() as sources:
        for tensor in output.tensors:
            place, checksum = places[tensor.name], 0
            sink.seek(place.offset)
            for values in _values(tensor, sources):
                sink.write(values)
                checksum = zlib.crc32(values, checksum)
                report(len(values))
            checksums[place.offset] = checksum
    seal(partial, checksums)
    os.replace(partial, path)
    return file_checksum(path)


def file_checksum(path: Path, *, report: Report = lambda _: None) -> str:
    """CRC-32 of a file, eight hexadecimal digits."""
    checksum = 0
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            checksum = zlib.crc32(buffer[:count], checksum)
            report(count)
    return f"{checksum:08x}"


def tensor_checksums(tensors: Iterable[OutputTensor], *, report: Report = lambda _: None) -> dict[str, int]:
    """CRC-32 of the values of each tensor as they would be written, by name.

    Args:
        tensors: What to read.
        report: Called with the number of bytes after each buffer.
    """
    checksums = {}
    with _Sources() as sources:
        for tensor in tensors:
            checksum = 0
            for values in _values(tensor, sources):
                checksum = zlib.crc32(values, checksum)
                report(len(values))
            checksums[tensor.name] = checksum
    return checksums


def read_values(tensor: OutputTensor) -> torch.Tensor:
    """Values of one tensor as they would be written."""
    with _Sources() as sources:
        values = bytearray(b"".join(bytes(chunk) for chunk in _values(tensor, sources)))
    dtype = DTYPES[tensor.dtype]
    return (
        torch.frombuffer(values, dtype=dtype).view(tensor.shape) if values else torch.empty(tensor.shape, dtype=dtype)
    )


class _Sources:
    """Source files, each opened once."""

    def __init__(self) -> None:
        self.open_files: dict[Path, FileIO] = {}
        self.buffer = memoryview(bytearray(BUFFER_BYTES))

    def __enter__(self) -> "_Sources":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.open_files.values():
            stream.close()

    def read(self, piece: Piece, *, align: int) -> Iterator[memoryview]:
        """Bytes of a piece, a buffer at a time; a buffer is only valid until the next one."""
        path = piece.tensor.file
        if path not in self.open_files:
            self.open_files[path] = FileIO(path, "rb")
        stream = self.open_files[path]
        stream.seek(piece.tensor.offset + piece.start * piece.tensor.row_bytes)
        left = piece.num_bytes
        size = len(self.buffer) - len(self.buffer) % align
        while left:
            chunk = self.buffer[: min(left, size)]
            filled = 0
            while filled < len(chunk):
                count = stream.readinto(chunk[filled:])
                if not count:
                    raise ConversionError(f"{path} ends early; it is truncated or changed while it was read.")
                filled += count
            yield chunk
            left -= len(chunk)


def _values(tensor: OutputTensor, sources: _Sources) -> Iterator[memoryview]:
    for piece in tensor.pieces:
        stored = piece.tensor.dtype
        for chunk in sources.read(piece, align=DTYPES[stored].itemsize):
            yield chunk if stored == tensor.dtype else _cast(chunk, stored, tensor.dtype)


def _cast(values: memoryview, stored: str, wanted: str) -> memoryview:
    cast = torch.frombuffer(values, dtype=DTYPES[stored]).to(DTYPES[wanted])
    return memoryview(cast.view(torch.uint8).numpy().data)


def _header(output: OutputFile) -> str:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in output.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.num_bytes],
        }
        position += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":"))
    # Values begin on an aligned position, which lets them be mapped into memory as they are.
    return text + " " * (-(LENGTH_BYTES + len(text.encode("utf-8"))) % HEADER_ALIGNMENT)
