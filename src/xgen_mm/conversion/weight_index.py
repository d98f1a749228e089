"""Writes the index of a checkpoint's weight files."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..weight_files import INDEX_NAME
from .streaming import OutputFile


def write_index(files: Sequence[OutputFile], directory: Path) -> None:
    """Write `model.safetensors.index.json`, unless there is only one file.

    Args:
        files: Weight files of the checkpoint.
        directory: Where to write.
    """
    if len(files) < 2:
        return
    tensors = [tensor for file in files for tensor in file.tensors]
    content = {
        "metadata": {
            "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            "total_size": sum(file.num_bytes for file in files),
        },
        "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
    }
    (directory / INDEX_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
