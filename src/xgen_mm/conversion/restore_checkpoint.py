"""Undoes a conversion: writes a checkpoint in our layout back into the released one, byte for byte."""

import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from ..blip3o.configuration_blip3o import Blip3oConfig
from ..checkpoint_config import BLIP3O_MODEL_TYPES, MODEL_TYPES, load_config
from ..errors import ConversionError
from ..output_directory import locked_directory
from ..v1.configuration_xgen_mm_v1 import XGenMMV1Config
from .convert_blip3o import build_blip3o_inventory
from .convert_checkpoint import ConversionReport, progress_bar
from .inventory import Inventory, build_inventory, output_dtype
from .key_rules import V1_5
from .original_record import FOLDER, OriginalFile, OriginalRecord, load_record, small_files
from .staging import StagingDirectory, check_destination, damaged_files
from .streaming import OutputFile, OutputTensor, write_pickle, write_safetensors
from .tensor_files import StoredTensor, list_directory
from .v1_rules import V1

logger = logging.getLogger(__name__)


def restore_checkpoint(
    source: Path,
    destination: Path,
    *,
    original: Path | None = None,
    dry_run: bool = False,
    show_progress: bool = False,
) -> ConversionReport:
    """Write a converted checkpoint back into the layout it came from.

    Args:
        source: Checkpoint in our layout.
        destination: Directory to create, or a `.pt` file if the original was one.
        original: Converted checkpoint that keeps the record of the original; `None` takes the source's own.
        dry_run: Check and plan only.
        show_progress: Whether to draw a progress bar on a terminal.

    Returns:
        What was written. Where no weight changed type, the weight files are those of the original bit by bit.

    Raises:
        ConversionError: If files are damaged, weights are missing or too many, or there is no record of the original.
    """
    started = time.monotonic()
    check_destination(destination)
    record, extras = load_record((original or source) / FOLDER)
    for directory in {source, original or source}:
        _refuse_damaged(directory)
    ours = list_directory(source)
    config = load_config(source, known=(*MODEL_TYPES, *BLIP3O_MODEL_TYPES), local_files_only=True)
    if isinstance(config, Blip3oConfig):
        inventory = build_blip3o_inventory(config, ours)
    else:
        inventory = build_inventory(config, V1 if isinstance(config, XGenMMV1Config) else V1_5)
    _check_ours(inventory, ours)
    files = [_output_file(file, record, inventory, ours=ours, extras=extras) for file in record.files]
    tensors = [tensor for file in files for tensor in file.tensors]
    report = ConversionReport(
        source=str(source),
        destination=str(destination),
        num_tensors=len(tensors),
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        num_bytes=sum(file.num_bytes for file in files),
        dtypes=dict.fromkeys(sorted({tensor.dtype for tensor in tensors}), 0),
        files=[file.name for file in files],
    )
    for tensor in tensors:
        report.dtypes[tensor.dtype] += math.prod(tensor.shape)
    if not dry_run:
        with progress_bar(report.num_bytes, title="Restoring", is_shown=show_progress) as bar:
            if record.is_pickle:
                with locked_directory(destination):
                    write_pickle(files[0], destination, wrapper=record.wrapper, report=bar.update)
            else:
                folder = (original or source) / FOLDER
                with StagingDirectory(destination, job=[str(source), files]) as staging:
                    report.kept = staging.kept
                    staging.write(files, lambda output: write_safetensors(output, staging.path, report=bar.update))
                    for path in small_files(folder):
                        shutil.copyfile(path, staging.path / path.name)
                    staging.finish(with_checksums=False)
    report.seconds = time.monotonic() - started
    return report


def _refuse_damaged(directory: Path) -> None:
    damaged = damaged_files(directory)
    if damaged is None:
        logger.warning("%s has no checksums; whether its files are intact cannot be told.", directory)
    if damaged:
        raise ConversionError(
            f"{directory} is damaged: {', '.join(damaged)} are not what was written. Convert it again."
        )


def _check_ours(inventory: Inventory, ours: Mapping[str, StoredTensor]) -> None:
    missing = [name for name in inventory.ours if name not in ours]
    unknown = [name for name in ours if name not in inventory.ours]
    wrong = [
        f"{name} {list(ours[name].shape)} instead of {list(shape)}"
        for name, shape in inventory.ours.items()
        if name in ours and ours[name].shape != shape
    ]
    problems = (("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong))
    found = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems if names]
    if found:
        raise ConversionError(f"The checkpoint does not fit its configuration: {'; '.join(found)}.")


def _output_file(
    file: OriginalFile,
    record: OriginalRecord,
    inventory: Inventory,
    *,
    ours: Mapping[str, StoredTensor],
    extras: Mapping[str, StoredTensor],
) -> OutputFile:
    tensors, missing = [], []
    for full_name, (_, shape) in file.tensors.items():
        name = full_name.removeprefix(record.prefix)
        pieces = inventory.released_pieces(name, shape[0], ours=ours, extras=extras)
        if pieces is None:
            missing.append(full_name)
        else:
            tensors.append(OutputTensor(full_name, output_dtype(pieces, None), shape, pieces))
    if missing:
        raise ConversionError(f"Neither the checkpoint nor its record holds {', '.join(missing)}.")
    is_unchanged = all(tensor.dtype == file.tensors[tensor.name][0] for tensor in tensors)
    return OutputFile(file.name, tuple(tensors), header=file.header if is_unchanged else None)
