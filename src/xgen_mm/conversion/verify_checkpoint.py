"""Compares two checkpoints, or a checkpoint with numbers recorded from the original code, stage by stage.

The stages follow a picture through the model: vision tower, resampler, the sequence in which image tokens have taken
their places, the scores of the next token, and the text that greedy search writes.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..adapters import adapter_base, load_merged_model, whole_checkpoint
from ..checkpoint_config import load_config
from ..errors import ConversionError
from ..weight_files import INDEX_NAME, SINGLE_NAME
from .download_record import changed_downloads
from .inventory import build_inventory
from .key_rules import OUR_MARK
from .recorded_cases import RecordedCase, read_case
from .source_checkpoint import open_source, read_config
from .staging import damaged_files
from .streaming import OutputTensor, Piece, read_values, tensor_checksums
from .tensor_files import list_directory

TOWER, RESAMPLER, EMBEDDINGS, LOGITS, TEXT = "vision tower", "resampler", "merged embeddings", "logits", "greedy text"
WEIGHTS = "stored weights"
STAGES = (TOWER, RESAMPLER, EMBEDDINGS, LOGITS, TEXT)
DEFAULT_TOLERANCE = 1e-4
NUM_PROBE_WORDS = 12
GENERATION = {"max_new_tokens": 8, "do_sample": False}
SEED = 20240816


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """Outcome of one stage.

    Attributes:
        stage: Name of the stage, with the name of the case where there are several.
        difference: Largest absolute difference; for text, how many tokens differ.
        tolerance: Largest difference that passes.
        num_values: How many values were compared.
    """

    stage: str
    difference: float
    tolerance: float
    num_values: int

    @property
    def has_passed(self) -> bool:
        """Whether the stage is within its tolerance; NaN never is."""
        return self.difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self) | {"passed": self.has_passed}


def compare_checkpoints(first: Path, second: Path, *, tolerance: float = DEFAULT_TOLERANCE) -> list[StageResult]:
    """Run the same picture and text through two checkpoints, one after the other.

    Args:
        first: Checkpoint directory in any layout that `from_pretrained` reads.
        second: Another one.
        tolerance: Largest absolute difference that passes; greedy text must be identical.

    Returns:
        One result per stage.

    Raises:
        ConversionError: If the two differ in architecture, so that there is nothing to compare.
    """
    sizes = [_sizes(load_config(whole_checkpoint(path)[0])) for path in (first, second)]
    different = {name: (value, sizes[1][name]) for name, value in sizes[0].items() if value != sizes[1][name]}
    if different:
        listed = ", ".join(f"{name} {one!r} and {other!r}" for name, (one, other) in different.items())
        raise ConversionError(f"The checkpoints are not the same architecture: {listed}.")
    recorded = []
    for path in (first, second):
        model = load_model(path)
        inputs = probe_inputs(model)
        recorded.append(record_stages(model, inputs, generation=GENERATION))
        del model
    return compare_stages(*recorded, tolerance=tolerance)


def compare_with_recordings(
    checkpoint: Path, directory: Path, *, tolerance: float = DEFAULT_TOLERANCE
) -> list[StageResult]:
    """Compare a checkpoint with what the original code gave for it.

    Args:
        checkpoint: Checkpoint directory in any layout.
        directory: Recorded cases, see `recorded_cases.py`.
        tolerance: Largest absolute difference that passes; greedy text must be identical.

    Returns:
        One result per stage over all cases.

    Raises:
        ConversionError: If there are no recorded cases.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ConversionError(f"{directory} holds no recorded cases (*.safetensors).")
    worst: dict[str, StageResult] = {}
    models: dict[int | None, PreTrainedModel] = {}
    for path in paths:
        case = read_case(path)
        window = case.meta.get("sliding_window")
        if window not in models:
            models[window] = load_model(checkpoint, sliding_window=window)
        for result in compare_case(models[window], case, tolerance=tolerance):
            worst[result.stage] = _worse(worst.get(result.stage, result), result)
    return [worst[stage] for stage in STAGES if stage in worst]


def compare_case(model: PreTrainedModel, case: RecordedCase, *, tolerance: float) -> list[StageResult]:
    """Compare a model with one recorded case.

    Args:
        model: The model of the recorded checkpoint.
        case: What the original gave.
        tolerance: Largest absolute difference that passes.
    """
    grouping = "image" if case.meta.get("anyres_patch_sampling") is False else model.config.tile_grouping
    previous, model.config.tile_grouping = model.config.tile_grouping, grouping
    counts = case.tile_counts(tile_grouping=grouping)
    num_latents = model.config.tokens_per_group
    try:
        inputs = case.model_inputs(num_latents=num_latents, tile_counts=counts, padding_side="right")
        prompts = case.model_inputs(num_latents=num_latents, tile_counts=counts, padding_side="left")
        for batch in (inputs, prompts):
            batch.pop("labels")
        inputs |= case.position_arguments(inputs)
        # Training cases have no generation; the first setting of the others is greedy search.
        settings = {**(case.meta.get("generate") or [{}])[0]}
        name = settings.pop("name", None)
        ours = record_stages(model, inputs, generation=settings if name else None, prompts=prompts)
    finally:
        model.config.tile_grouping = previous
    return compare_stages(ours, _recorded_stages(case, ours, name), tolerance=tolerance)


def load_model(path: Path, *, sliding_window: int | None = None) -> PreTrainedModel:
    """Model of a checkpoint in its stored type, ready to run.

    Args:
        path: Directory of a checkpoint, or of an adapter, which is merged into its base.
        sliding_window: Window as the original counts it (`query - key <= window`); `None` takes the checkpoint's own.
    """
    config = load_config(whole_checkpoint(path)[0])
    if sliding_window is not None:
        config.text_config.sliding_window = sliding_window + 1
    model: PreTrainedModel = load_merged_model(path, config=config, dtype="auto")
    return model.eval()


def probe_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A picture of two tiles and a line of text, the same for every model of the same sizes."""
    config = model.config
    generator = torch.Generator().manual_seed(SEED)
    height, width = 2 * config.tile_size, config.tile_size
    pixel_values = torch.rand(1, 3, 3, config.tile_size, config.tile_size, generator=generator) * 2 - 1
    num_tiles = 1 if config.tile_grouping == "image" else 3
    image = [config.image_token_id] * (num_tiles * config.tokens_per_group)
    words = torch.randint(config.get_text_config().vocab_size - 1, (NUM_PROBE_WORDS,), generator=generator)
    # Any token but the placeholder, wherever in the vocabulary that is.
    words = (words + (words >= config.image_token_id)).tolist()
    ids = torch.tensor([words[:4] + image + words[4:]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixel_values,
        "image_sizes": torch.tensor([[height, width]]),
    }


def record_stages(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    generation: Mapping[str, Any] | None,
    prompts: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Run a model and keep what every stage gives.

    Args:
        model: The model.
        inputs: Arguments of `forward`.
        generation: Arguments of `generate`; `None` leaves the text out.
        prompts: Arguments of `generate` if they are not `inputs` (padded on the other side).

    Returns:
        Values in float32 by stage; padding positions are left out. Text as new token ids.
    """
    stages: dict[str, torch.Tensor] = {}
    base = model.model
    get_image_features = base.get_image_features

    def keep_features(*args: Any, **kwargs: Any) -> Any:
        outputs = get_image_features(*args, **kwargs)
        stages[TOWER] = outputs.last_hidden_state.float()
        stages[RESAMPLER] = torch.cat(list(outputs.pooler_output)).float()
        return outputs

    def keep_embeddings(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        stages[EMBEDDINGS] = kwargs["inputs_embeds"][inputs["attention_mask"].bool()].float()

    handle = base.language_model.register_forward_pre_hook(keep_embeddings, with_kwargs=True)
    # Found before the method of the class for as long as it is there.
    base.get_image_features = keep_features
    with torch.no_grad():
        try:
            logits = model(**inputs).logits
        finally:
            handle.remove()
            del base.get_image_features
        stages[LOGITS] = logits[inputs["attention_mask"].bool()].float()
        if generation is not None:
            prompts = inputs if prompts is None else prompts
            ids = model.generate(**prompts, **generation)
            stages[TEXT] = ids[:, prompts["input_ids"].shape[1] :]
    return stages


def compare_stages(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], *, tolerance: float
) -> list[StageResult]:
    """Largest difference of every stage that both have.

    Raises:
        ConversionError: If a stage has another shape on either side.
    """
    results = []
    for stage in STAGES:
        if stage not in first or stage not in second:
            continue
        ours, theirs = first[stage], second[stage]
        if stage == TEXT:
            length = max(ours.shape[1], theirs.shape[1])
            different = (_padded(ours, length) != _padded(theirs, length)).sum()
            results.append(
                StageResult(stage=stage, difference=float(different), tolerance=0.0, num_values=theirs.numel())
            )
            continue
        if ours.shape != theirs.shape:
            raise ConversionError(
                f"The {stage} gives {tuple(ours.shape)} for one checkpoint and {tuple(theirs.shape)} for the other; "
                "they are not the same architecture."
            )
        difference = (ours - theirs).abs().max().item() if ours.numel() else 0.0
        results.append(StageResult(stage=stage, difference=difference, tolerance=tolerance, num_values=theirs.numel()))
    return results


def compare_weights(first: Path, second: Path, *, tolerance: float = DEFAULT_TOLERANCE) -> StageResult | None:
    """Compare the stored values of two checkpoint directories tensor by tensor, whatever their layouts.

    Args:
        first: Checkpoint directory.
        second: Another one.
        tolerance: Largest absolute difference that passes.

    Returns:
        The largest difference; the stage's name tells how many tensors are not the same bit by bit, the first of
        them, and its files. `None` if the values are not stored as safetensors, or differ in type or shape.

    Raises:
        ConversionError: If files are damaged or do not fit their layout.
    """
    if any(adapter_base(path) is not None for path in (first, second)):
        return None
    if not all(any((path / name).is_file() for name in (INDEX_NAME, SINGLE_NAME)) for path in (first, second)):
        return None
    ours, theirs = (_stored_tensors(path) for path in (first, second))
    if ours.keys() != theirs.keys() or any(
        (tensor.dtype, tensor.shape) != (theirs[name].dtype, theirs[name].shape) for name, tensor in ours.items()
    ):
        return None
    with ThreadPoolExecutor(max_workers=2) as pool:
        one, other = pool.map(tensor_checksums, (ours.values(), theirs.values()))
    changed = [name for name in one if one[name] != other[name]]
    stage, difference = WEIGHTS, 0.0
    if changed:
        files = (tensors[changed[0]].pieces[0].tensor.file.name for tensors in (ours, theirs))
        stage += f" ({len(changed)} changed; the first is {changed[0]} in {' and '.join(files)})"
        distances = [(read_values(ours[name]).double() - read_values(theirs[name])).abs().max() for name in changed]
        # Unlike Python's `max`, this one does not lose a NaN.
        difference = torch.stack(distances).max().item()
    num_values = sum(math.prod(tensor.shape) for tensor in ours.values())
    return StageResult(stage=stage, difference=difference, tolerance=tolerance, num_values=num_values)


def _stored_tensors(directory: Path) -> dict[str, OutputTensor]:
    """Tensors of a checkpoint in our layout, or put together from a released one."""
    stored = list_directory(directory)
    if OUR_MARK in stored:
        return {
            name: OutputTensor(name, tensor.dtype, tensor.shape, (Piece(tensor, 0, tensor.num_rows),))
            for name, tensor in stored.items()
        }
    source = open_source(directory)
    inventory = build_inventory(read_config(source, None), source.rules)
    inventory.check(source.tensors, prefix=source.prefix)
    return {tensor.name: tensor for tensor in inventory.our_tensors(source.tensors, dtype=None)}


def check_files(directory: Path) -> StageResult | None:
    """Compare files with the checksums that `convert` wrote, or a download with the hashes noted then.

    Returns:
        How many files differ, with their names; `None` if there is nothing to compare them with.
    """
    if not directory.is_dir():
        return None
    damaged = damaged_files(directory)
    if damaged is None:
        damaged = changed_downloads(directory)
    if damaged is None:
        return None
    name = f"files of {directory}" + (f" ({', '.join(damaged)})" if damaged else "")
    return StageResult(stage=name, difference=float(len(damaged)), tolerance=0.0, num_values=0)


def format_results(results: list[StageResult]) -> list[str]:
    """Results as lines of a table."""
    width = max(len("stage"), *(len(result.stage) for result in results))
    lines = [f"{'stage':<{width}}  {'difference':>10}  {'tolerance':>9}  {'values':>9}"]
    for result in results:
        difference = "nan" if math.isnan(result.difference) else f"{result.difference:.3g}"
        verdict = "ok" if result.has_passed else "DIFFERENT"
        lines.append(
            f"{result.stage:<{width}}  {difference:>10}  {result.tolerance:>9.1g}  {result.num_values:>9}  {verdict}"
        )
    return lines


def _sizes(config: Any) -> dict[str, Any]:
    """What two models must share to read the same inputs."""
    return {
        "model type": config.model_type,
        "tile size": config.tile_size,
        "tile grouping": config.tile_grouping,
        "image tokens per tile": config.tokens_per_group,
        "width": config.get_text_config().hidden_size,
        "vocabulary": config.get_text_config().vocab_size,
        "id of `<image>`": config.image_token_id,
    }


def _worse(known: StageResult, new: StageResult) -> StageResult:
    """The larger difference of two cases (NaN is the largest), over the values of both."""
    worse = known if known is new or new.difference <= known.difference else new
    num_values = new.num_values if known is new else known.num_values + new.num_values
    return replace(worse, num_values=num_values)


def _recorded_stages(
    case: RecordedCase, ours: Mapping[str, torch.Tensor], name: str | None
) -> dict[str, torch.Tensor]:
    recorded = case.tensors
    real = recorded["out.lm_attention_mask"].bool()
    stages = {LOGITS: recorded["out.logits"][real]}
    if "out.lm_inputs_embeds" in recorded:
        stages[EMBEDDINGS] = recorded["out.lm_inputs_embeds"][real]
    if TOWER in ours:
        # The original encoded pictures too that no `<image>` refers to; they come last.
        stages[TOWER] = recorded["out.vision_features"][: len(ours[TOWER])]
        stages[RESAMPLER] = recorded["out.vision_tokens"].flatten(0, 1)[: len(ours[RESAMPLER])]
    if name is not None:
        ids = recorded[f"out.generated.{name}"]
        # Recorded with the prompt where there are no pictures.
        prompt = recorded["inputs.input_ids"].shape[1] if case.meta["image_mode"] == "text" else 0
        stages[TEXT] = ids[:, prompt:]
    return stages


def _padded(ids: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=-1)
