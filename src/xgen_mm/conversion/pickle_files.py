"""Reads and writes the `.pt` files of the original training code without running anything that they hold."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import ConversionError
from .tensor_files import DTYPE_NAMES, DTYPES, StoredTensor

# Where training checkpoints keep the state dict; the first that is there is taken.
WRAPPER_KEYS = ("model_state_dict", "state_dict", "model", "module")
# These are put before any module; `module.` only before the whole model.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER_WRAPPERS = re.compile(r"^(?:module\.)+")
# Positions in the zip format: checksum of an entry in its data descriptor and in the central directory.
DESCRIPTOR_SIGNATURE, DESCRIPTOR_CRC = b"PK\x07\x08", 4
CENTRAL_SIGNATURE, CENTRAL_CRC, CENTRAL_LENGTHS, CENTRAL_SIZE = b"PK\x01\x02", 16, 28, 46


def list_pickle(path: Path) -> tuple[dict[str, StoredTensor], str | None]:
    """Find the tensors of a `.pt` file; their values are not read.

    Args:
        path: A state dict, or a training checkpoint that holds one under one of `WRAPPER_KEYS`.

    Returns:
        Tensors by `plain_name`, and the key they were found under, if any.

    Raises:
        ConversionError: If the file is damaged, holds code, or is not a state dict.
    """
    content = _load_structure(path)
    wrapper = next(
        (key for key in WRAPPER_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)), None
    )
    state = content[wrapper] if wrapper else content
    if not isinstance(state, dict) or not state:
        known = ", ".join(f"`{key}`" for key in WRAPPER_KEYS)
        raise ConversionError(f"{path} holds no state dict; expected tensors by name, alone or under one of {known}.")
    strangers = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ConversionError(f"{path} holds entries that are not tensors: {', '.join(strangers)}.")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        plain = plain_name(str(name))
        if plain in tensors:
            raise ConversionError(f"{path} holds `{plain}` twice, the second time as `{name}`; save one state dict.")
        tensors[plain] = _locate(path, str(name), tensor)
    return tensors, wrapper


def plain_name(name: str) -> str:
    """Name of a weight without what DDP, `torch.compile`, FSDP and activation checkpointing put into it.

    >>> plain_name("module._orig_mod.lang_model._fsdp_wrapped_module.lm_head.weight")
    'lang_model.lm_head.weight'
    """
    return _OUTER_WRAPPERS.sub("", _WRAPPERS.sub("", name))


def write_skeleton(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], *, wrapper: str | None) -> None:
    """Write a `.pt` file with room for tensors whose values follow (see `list_pickle` for where, then `seal`).

    Args:
        path: File to write.
        tensors: Type name and shape by tensor name.
        wrapper: Key to put the tensors under; `None` writes a bare state dict.
    """
    # Never touched, so these take no memory.
    state = {name: torch.empty(shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    with torch.serialization.skip_data():
        torch.save({wrapper: state} if wrapper else state, path)


def seal(path: Path, checksums: dict[int, int]) -> None:
    """Enter the checksums of the values that were written into a skeleton.

    Args:
        path: The file.
        checksums: CRC-32 of each entry's bytes by the position of its first byte.
    """
    with zipfile.ZipFile(path) as archive:
        entries, directory_start = archive.infolist(), archive.start_dir
    with path.open("r+b") as stream:
        position = directory_start
        for entry in entries:
            stream.seek(position)
            central = stream.read(CENTRAL_SIZE)
            if not central.startswith(CENTRAL_SIGNATURE):
                raise ConversionError(f"{path} could not be completed: unexpected zip structure.")
            stream.seek(entry.header_offset + 26)
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
            if start in checksums:
                checksum = struct.pack("<I", checksums[start])
                stream.seek(position + CENTRAL_CRC)
                stream.write(checksum)
                stream.seek(start + entry.file_size)
                if stream.read(4) == DESCRIPTOR_SIGNATURE:
                    stream.seek(start + entry.file_size + DESCRIPTOR_CRC)
                    stream.write(checksum)
            position += CENTRAL_SIZE + sum(struct.unpack("<HHH", central[CENTRAL_LENGTHS : CENTRAL_LENGTHS + 6]))


def _load_structure(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ConversionError(
            f"{path} is not a whole file of a current `torch.save`. Plain pickles can run code and are never opened: "
            "load it where it was made and save its tensors again, or download it again."
        )
    _refuse_packed_entries(path)
    try:
        # Only tensors and plain containers are built (`weights_only`), and tensors without their values.
        return torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds Python objects besides tensors; they could run code when loaded, so nothing was loaded. "
            "Save the state dict again as plain tensors."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # A damaged stream of opcodes can raise anything.
        raise ConversionError(
            f"{path} is not a whole file written by `torch.save`. Download or copy it again."
        ) from error


def _refuse_packed_entries(path: Path) -> None:
    """`torch.save` compresses nothing; what is compressed may unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ConversionError(
            f"{path} is not a whole file written by `torch.save`. Download or copy it again."
        ) from error
    if packed:
        raise ConversionError(
            f"{path} holds compressed entries (`{packed[0]}`), which `torch.save` never writes. Do not use it."
        )


def _locate(path: Path, name: str, tensor: torch.Tensor) -> StoredTensor:
    start = tensor.untyped_storage()._checkpoint_offset
    if start is None or not tensor.is_contiguous():
        raise ConversionError(
            f"`{name}` in {path} is not stored in one piece (an old file format or a view). Load the file and save "
            "`{name: tensor.contiguous()}` with a current PyTorch."
        )
    if tensor.dtype not in DTYPE_NAMES:
        raise ConversionError(f"`{name}` in {path} is of type {tensor.dtype}; expected one of {', '.join(DTYPES)}.")
    offset = start + tensor.storage_offset() * tensor.element_size()
    return StoredTensor(path, int(offset), DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
