"""Converts checkpoints of the xGen-MM v1.5 releases into our layout, file by file and without loading a model.

What is written is what `from_pretrained` would have made of the same files: weights, configuration, generation
settings, tokenizer, processor and chat template. See `restore_checkpoint.py` for the way back.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ..modeling.configuration_xgen_mm import XGenMMConfig
from ..modeling.released_config import complete_generation_config
from ..weight_files import SINGLE_NAME
from .inventory import Inventory, build_inventory
from .original_record import EXTRAS_NAME, FOLDER, describe_original, save_record
from .processor_files import write_processor
from .source_checkpoint import SourceCheckpoint, add_vision_tower, open_source, read_config
from .staging import StagingDirectory, check_destination
from .streaming import OutputFile, OutputTensor, Report, write_safetensors
from .tensor_files import DTYPES, StoredTensor
from .weight_index import write_index

logger = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionOptions:
    """How to convert.

    Attributes:
        config: Configuration file or directory; `None` takes the checkpoint's own.
        vision_tower: Checkpoint to take the tower from where the source has none.
        tokenizer: Directory of the tokenizer; `None` takes the checkpoint's own.
        dtype: Floating-point type to write, a name of the safetensors format (`BF16`); `None` changes nothing.
        max_shard_bytes: Most bytes per weight file; a larger tensor gets a file of its own.
        keep_original: Whether to keep what is needed to undo the conversion exactly.
        dry_run: Check and plan only.
        show_progress: Whether to draw a progress bar on a terminal.
    """

    config: Path | None = None
    vision_tower: Path | None = None
    tokenizer: Path | None = None
    dtype: str | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    keep_original: bool = True
    dry_run: bool = False
    show_progress: bool = False


@dataclass(kw_only=True, slots=True)
class ConversionReport:
    """What was, or with a dry run would be, written.

    Attributes:
        source: Checkpoint that was read.
        destination: What was written.
        num_tensors: Tensors in the destination.
        num_parameters: Their values in all.
        num_bytes: Bytes of their values.
        dtypes: Number of values by type.
        files: Weight files.
        left_over: What our layout has no place for, with the reason, by released name.
        kept: Files that an interrupted run had finished.
        seconds: Time taken.
    """

    source: str
    destination: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: dict[str, int]
    files: list[str]
    left_over: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def convert_checkpoint(
    source: Path, destination: Path, *, options: ConversionOptions | None = None
) -> ConversionReport:
    """Convert a released v1.5 checkpoint into our layout.

    Every tensor of the source is used exactly once, and every tensor of the model is filled exactly once. The
    destination appears when everything is written; until then a directory with `.partial` in its name holds finished
    files, and the same call continues there.

    Args:
        source: Hub directory or `.pt` file of the training code.
        destination: Directory to create.
        options: See `ConversionOptions`.

    Returns:
        What was written.

    Raises:
        ConversionError: If the source does not fit its layout, cannot be read safely, or the destination is taken.
    """
    options = options or ConversionOptions()
    check_destination(destination)
    checkpoint = add_vision_tower(open_source(source), options.vision_tower)
    config = read_config(checkpoint, options.config)
    inventory = build_inventory(config, checkpoint.rules)
    hint = (
        ""
        if checkpoint.directory or options.config
        else "If its sizes are not those of the 4B models, pass `--config`."
    )
    inventory.check(checkpoint.tensors, prefix=checkpoint.prefix, hint=hint)

    def write_rest(directory: Path) -> None:
        write_processor(checkpoint.directory, directory, config=config, tokenizer=options.tokenizer)
        _generation_config(checkpoint.directory, config).save_pretrained(directory)

    return write_converted(
        checkpoint, destination, config=config, inventory=inventory, options=options, write_rest=write_rest
    )


def write_converted(
    checkpoint: SourceCheckpoint,
    destination: Path,
    *,
    config: PreTrainedConfig,
    inventory: Inventory,
    options: ConversionOptions,
    write_rest: Callable[[Path], None],
) -> ConversionReport:
    """Write a checkpoint that passed the check of its inventory.

    Args:
        checkpoint: What to convert.
        destination: Directory to create.
        config: Configuration of the model; its type is set to that of most values.
        inventory: Names and rows of both layouts.
        options: See `ConversionOptions`.
        write_rest: Writes what else the model's family needs into the directory it is given.

    Returns:
        What was written.

    Raises:
        ConversionError: If the destination is taken, or a source file ends early.
    """
    started = time.monotonic()
    tensors = inventory.our_tensors(checkpoint.tensors, dtype=options.dtype)
    files = shard(in_file_order(tensors), max_bytes=options.max_shard_bytes)
    left_over = inventory.left_over(checkpoint.tensors, dtype=options.dtype)
    report = ConversionReport(
        source=str(checkpoint.path),
        destination=str(destination),
        num_tensors=len(tensors),
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        num_bytes=sum(file.num_bytes for file in files),
        dtypes=_count_dtypes(tensors),
        files=[file.name for file in files],
        left_over=_explain(inventory, left_over),
    )
    if not options.dry_run:
        config.dtype = DTYPES[max(report.dtypes, key=report.dtypes.__getitem__)]
        with StagingDirectory(destination, job=[_fingerprint(checkpoint.tensors), files, str(config)]) as staging:
            report.kept = staging.kept
            _write_weights(staging, files, show_progress=options.show_progress)
            if options.keep_original:
                _keep_original(staging, checkpoint, left_over)
            write_rest(staging.path)
            config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].__name__]
            config.save_pretrained(staging.path)
            write_index(files, staging.path)
            staging.finish()
    report.seconds = time.monotonic() - started
    return report


def in_file_order(tensors: Sequence[OutputTensor]) -> list[OutputTensor]:
    """Tensors in the order in which their first rows are stored, so that source files are read front to back."""
    return sorted(tensors, key=lambda tensor: (str(tensor.pieces[0].tensor.file), _position(tensor)))


def shard(tensors: Sequence[OutputTensor], *, max_bytes: int) -> list[OutputFile]:
    """Distribute tensors over weight files.

    Args:
        tensors: Tensors in the order to write them.
        max_bytes: Most bytes of values per file; a larger tensor gets a file of its own.

    Returns:
        One file named `model.safetensors`, or several numbered ones.
    """
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.num_bytes
    if len(groups) == 1:
        return [OutputFile(SINGLE_NAME, tuple(groups[0]))]
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    return [OutputFile(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def progress_bar(num_bytes: int, *, title: str, is_shown: bool) -> tqdm:
    """Progress bar over bytes; drawn only if wanted and stderr is a terminal."""
    return tqdm(total=num_bytes, desc=title, unit="B", unit_scale=True, disable=None if is_shown else True)


def _write_weights(staging: StagingDirectory, files: Sequence[OutputFile], *, show_progress: bool) -> None:
    num_bytes = sum(file.num_bytes for file in files)
    with progress_bar(num_bytes, title="Converting", is_shown=show_progress) as bar:
        bar.update(sum(file.num_bytes for file in files if file.name in staging.checksums))
        staging.write(files, _writer(staging.path, bar.update))


def _writer(directory: Path, report: Report) -> Callable[[OutputFile], str]:
    return lambda output: write_safetensors(output, directory, report=report)


def _keep_original(staging: StagingDirectory, source: SourceCheckpoint, left_over: Sequence[OutputTensor]) -> None:
    folder = staging.path / FOLDER
    folder.mkdir(exist_ok=True)
    save_record(describe_original(source), source, folder)
    if left_over:
        extras = OutputFile(EXTRAS_NAME, tuple(left_over))
        staging.checksums[f"{FOLDER}/{EXTRAS_NAME}"] = write_safetensors(extras, folder, report=lambda _: None)


def _generation_config(directory: Path | None, config: XGenMMConfig) -> GenerationConfig:
    if directory is not None and (directory / "generation_config.json").is_file():
        generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    else:
        text_config = config.get_text_config()
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        generation_config = GenerationConfig(**{name: getattr(text_config, name) for name in names})
    complete_generation_config(generation_config, tokenizer_length=config.image_token_id)
    return generation_config


def _position(tensor: OutputTensor) -> int:
    first = tensor.pieces[0]
    return first.tensor.offset + first.start * first.tensor.row_bytes


def _count_dtypes(tensors: Sequence[OutputTensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return counts


def _explain(inventory: Inventory, left_over: Sequence[OutputTensor]) -> dict[str, str]:
    reasons = {}
    for tensor in left_over:
        rule = inventory.rules.drop_rule(tensor.name)
        reasons[tensor.name] = rule.reason if rule else "rows of a token table beyond the tokenizer, never looked up"
    return reasons


def _fingerprint(tensors: Mapping[str, StoredTensor]) -> list[tuple[str, int, int]]:
    paths = sorted({tensor.file for tensor in tensors.values()})
    return [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def parse_dtype(name: str) -> str:
    """Name of a floating-point type in the safetensors format, from the name PyTorch gives it.

    >>> parse_dtype("bfloat16")
    'BF16'
    """
    names = {str(dtype).removeprefix("torch."): key for key, dtype in DTYPES.items() if dtype.is_floating_point}
    if name not in names:
        raise ValueError(f"Type {name!r}; expected one of {', '.join(names)}.")
    return names[name]
