"""What a recipe would train, on what, for how long and in how much memory; no weights are read."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...checkpoint_config import reading_checkpoint
from ...errors import XGenMMError
from ..recipe import Recipe
from ..starting_point import checkpoint_of, load_processor, load_start_config, set_pictures
from .flops import StepFlops, TrainedParts, forward_cost, step_flops
from .kept_activations import Adapters, Arithmetic, Kept, kept_by_connector, kept_by_language_model, kept_by_tower
from .measured_data import NUM_SAMPLES, DataFigures, measure_data
from .part_sizes import build_on_meta, part_sizes
from .plan_warnings import collect_warnings
from .run_memory import (
    GIB,
    MemoryEstimate,
    PartSize,
    Sharding,
    activation_bytes,
    estimate_memory,
    loss_bytes,
)

# Memory of common accelerators in GB as they are sold.
ACCELERATOR_GB = (16, 24, 32, 40, 48, 80, 96, 141, 192)
# What CUDA needs for itself and gaps in its allocator leave so much of a device usable.
USABLE = 0.9
_PEAK_NAME, _PEAK, _UTILISATION, _LEAST_HOURS = "H100", 989.4e12, 0.4, 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run would be.

    Attributes:
        stage: Kind of training.
        checkpoint: What it starts from.
        world_size: Processes.
        parts: Weights of each part.
        data: What a step holds; `None` if the data cannot be read.
        steps: Optimiser steps; `None` if unknown.
        warmup_steps: Steps of warm-up; `None` if the number of steps is unknown.
        accumulation: Batches per optimiser step of one process.
        flops: FLOPs of an optimiser step over all processes.
        memory: Memory of one process, as the run is set up and as it could be.
        warnings: What looks wrong.
    """

    stage: str
    checkpoint: str
    world_size: int
    parts: list[PartSize]
    data: DataFigures | None
    steps: int | None
    warmup_steps: int | None
    accumulation: int
    flops: StepFlops | None
    memory: list[MemoryEstimate]
    warnings: list[str]

    @property
    def total_tokens(self) -> float | None:
        """Tokens of the whole run."""
        return None if self.data is None or self.steps is None else self.data.step.tokens * self.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bytes and FLOPs are not rounded."""
        content: dict[str, Any] = asdict(self)
        content["total_tokens"] = self.total_tokens
        for entry, estimate in zip(content["memory"], self.memory, strict=True):
            entry["total"] = estimate.total
        if self.flops is not None:
            content["flops"]["model"] = self.flops.model
        return content


def make_plan(
    recipe: Recipe, *, world_size: int | None = None, device_memory: int | None = None, samples: int = NUM_SAMPLES
) -> Plan:
    """Plan a run.

    Args:
        recipe: The run.
        world_size: Processes; by default those of the launcher, or 1.
        device_memory: Bytes of one device; by default those of the accelerator that is there, if one is.
        samples: Samples of the data to look at.

    Raises:
        RecipeError: If the recipe contradicts itself on so many processes.
        OSError: If the checkpoint's configuration cannot be read.
    """
    world_size = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = recipe.batches.accumulation(world_size)
    checkpoint = checkpoint_of(recipe.model)
    config = load_start_config(recipe.model)
    set_pictures(recipe.pictures, config=config)
    with reading_checkpoint(checkpoint):
        model = build_on_meta(config)
    parts, pattern = part_sizes(recipe, model)
    data, problem = _measure(recipe, config, samples)
    steps = data.steps if data is not None else recipe.optim.max_steps
    flops = None
    if data is not None:
        flops = step_flops(
            forward_cost(model),
            data.step,
            trained=_trained(recipe),
            checkpointing=recipe.model.gradient_checkpointing,
        )
        flops = _with_adapters(flops, recipe, parts, data)
    memory = [] if data is None else _memory(recipe, config, parts, data=data, pattern=pattern, world_size=world_size)
    if device_memory is None and torch.cuda.is_available():
        device_memory = torch.cuda.get_device_properties(0).total_memory
    warmup = _warmup(recipe, steps)
    warnings = collect_warnings(
        recipe, config=config, data=data, problem=problem, steps=steps, warmup_steps=warmup, memory=memory,
        usable_memory=None if device_memory is None else device_memory * USABLE,
    )  # fmt: skip
    return Plan(
        stage=recipe.stage,
        checkpoint=recipe.model.checkpoint,
        world_size=world_size,
        parts=parts,
        data=data,
        steps=steps,
        warmup_steps=warmup,
        accumulation=accumulation,
        flops=flops,
        memory=memory,
        warnings=warnings,
    )


def describe(plan: Plan) -> str:
    """The plan as text."""
    blocks = [
        f"{plan.stage} from {plan.checkpoint} on {plan.world_size} process{'es' if plan.world_size > 1 else ''}",
        _describe_parts(plan.parts),
    ]
    if plan.data is not None:
        blocks.append(_describe_data(plan, plan.data))
    if plan.memory:
        blocks.append(_describe_memory(plan.memory))
    if plan.warnings:
        blocks.append("\n".join(["Warnings", *(f"  - {warning}" for warning in plan.warnings)]))
    return "\n\n".join(blocks)


def _measure(recipe: Recipe, config: Any, samples: int) -> tuple[DataFigures | None, str | None]:
    """The data, or why they cannot be measured: a plan without them is better than none."""
    try:
        return measure_data(recipe, load_processor(recipe), config, count=samples), None
    except (XGenMMError, OSError, ValueError) as error:
        return None, " ".join(str(error).split())


def _trained(recipe: Recipe) -> TrainedParts:
    parts = recipe.model.trainable
    return TrainedParts(
        vision_tower="vision_tower" in parts,
        resampler="resampler" in parts,
        language_model="language_model" in parts,
        adapters=recipe.model.lora is not None,
    )


def _with_adapters(flops: StepFlops, recipe: Recipe, parts: list[PartSize], data: DataFigures) -> StepFlops:
    """Add what adapters cost, which the model on the meta device does not have yet."""
    adapters = sum(part.parameters for part in parts if part.name == "adapters")
    forward = 2 * adapters * data.step.tokens
    return StepFlops(
        forward=flops.forward + forward,
        backward=flops.backward + 2 * forward,
        recompute=flops.recompute + (forward if recipe.model.gradient_checkpointing else 0.0),
        parts=flops.parts | {"adapters": 3 * forward},
    )


def _warmup(recipe: Recipe, steps: int | None) -> int | None:
    if recipe.optim.warmup_steps is not None:
        return recipe.optim.warmup_steps
    if recipe.optim.warmup_ratio is None:
        return 0
    return None if steps is None else -int(-recipe.optim.warmup_ratio * steps // 1)


def _memory(
    recipe: Recipe,
    config: Any,
    parts: list[PartSize],
    *,
    data: DataFigures,
    pattern: str | None,
    world_size: int,
) -> list[MemoryEstimate]:
    section = recipe.model
    arithmetic = _arithmetic(recipe)
    kept = _kept(recipe, config, data=data, pattern=pattern, arithmetic=arithmetic)
    merged = 2.0 * data.device_rows * data.device_length * config.text_config.hidden_size * arithmetic.width
    activations = activation_bytes(kept, checkpointing=section.gradient_checkpointing, merged=merged)
    labelled = data.step.labelled / max(1.0, data.step.sequences) * data.device_rows
    if recipe.batches.grouping == "packed":
        labelled = data.step.labelled / recipe.batches.global_batch_size * data.device_rows
    loss = loss_bytes(
        config.text_config,
        labelled=labelled,
        arithmetic=arithmetic,
        is_head_trained="language_model" in section.trainable,
    )
    setups: list[tuple[int, Sharding]] = [(world_size, "ddp")]
    if world_size > 1:
        setups.append((world_size, "fsdp"))
    if recipe.distributed.fsdp_size is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        setups.reverse()
    is_fused = not torch.cuda.is_available() or "fused" in recipe.optim.optimizer
    return [
        estimate_memory(
            parts,
            world_size=size,
            sharding=sharding,
            optimizer=recipe.optim.optimizer,
            activations=activations,
            loss=loss,
            is_fused=is_fused,
        )
        for size, sharding in setups
    ]


def _arithmetic(recipe: Recipe) -> Arithmetic:
    section = recipe.model
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.optim.precision)
    # PEFT turns what is not quantised, hidden states among it, into float32.
    dtype = torch.float32 if section.quantization is not None else getattr(torch, section.dtype)
    return Arithmetic(dtype=dtype, autocast=None if autocast == dtype else autocast, attention=section.attention)


def _kept(
    recipe: Recipe, config: Any, *, data: DataFigures, pattern: str | None, arithmetic: Arithmetic
) -> list[Kept]:
    section = recipe.model
    kept = [
        kept_by_language_model(
            config.text_config,
            rows=data.device_rows,
            length=data.device_length,
            arithmetic=arithmetic,
            is_trained="language_model" in section.trainable,
            has_mask=data.device_rows > 1 or recipe.batches.grouping == "packed",
            adapters=(
                None
                if pattern is None or section.lora is None
                else Adapters(pattern=pattern, rank=section.lora.rank, dropout=section.lora.dropout)
            ),
        )
    ]
    is_tower_trained = "vision_tower" in section.trainable
    if data.device_tiles and ("resampler" in section.trainable or is_tower_trained):
        groups = data.device_tiles
        cells = config.cells_per_tile**2
        kept.append(kept_by_connector(config.resampler_config, groups=groups, cells=cells, arithmetic=arithmetic))
    if data.device_tiles and is_tower_trained:
        kept.append(kept_by_tower(config.vision_config, tiles=data.device_tiles, arithmetic=arithmetic))
    return kept


def _describe_parts(parts: list[PartSize]) -> str:
    rows = [("Part", "Parameters", "Trainable", "Precision")]
    for part in parts:
        state = "frozen" if part.parameters else ""
        if part.trainable:
            state = "all" if part.trainable == part.parameters else f"{part.trainable:,}"
        rows.append((part.name, f"{part.parameters:,}", state, part.dtype))
    total, trained = (sum(getattr(part, name) for part in parts) for name in ("parameters", "trainable"))
    rows.append(("total", f"{total:,}", f"{trained:,} ({100 * trained / total:.3g} %)", ""))
    return _table(rows)


def _describe_data(plan: Plan, data: DataFigures) -> str:
    unit = "pair" if plan.stage == "dpo" else "sample"
    each = (
        f"{data.mean_tokens:,.0f} tokens ({data.mean_image_tokens:,.0f} of pictures, {data.mean_learned_tokens:,.0f} "
        f"learned), {data.mean_pictures:.2f} pictures, {data.mean_tiles:.2f} tiles; longest sequence "
        f"{data.longest_tokens:,} tokens"
    )
    step = data.step
    rows = [
        (f"Each {unit}", f"{each} (means of {data.measured} {unit}s)"),
        (
            "Each step",
            f"{data.samples_per_step:,.0f} {unit}s, {step.tokens:,.0f} tokens, {step.pictures:,.0f} pictures, "
            f"{step.tiles:,.0f} tiles; {100 * data.padding:.0f} % padding; {plan.accumulation} batch"
            f"{'es' if plan.accumulation > 1 else ''} accumulated on each process",
        ),
    ]
    if plan.steps is not None and plan.total_tokens is not None:
        rows.append(
            ("Run", f"{plan.steps:,} steps, {plan.warmup_steps or 0:,} of warm-up, {plan.total_tokens:,.0f} tokens")
        )
    if plan.flops is not None:
        text = f"{plan.flops.model / 1e12:,.3g} TFLOP a step"
        if plan.flops.recompute:
            text += f", {plan.flops.recompute / 1e12:,.3g} more for recomputed activations"
        hours = plan.flops.model * (plan.steps or 0) / (_PEAK * _UTILISATION) / 3600
        if hours > _LEAST_HOURS:
            text += f"; at {100 * _UTILISATION:.0f} % utilisation the run takes {hours:,.3g} {_PEAK_NAME} hours"
        rows.append(("Arithmetic", text))
    return _table(rows)


def _describe_memory(estimates: list[MemoryEstimate]) -> str:
    names = ("weights", "gradients", "optimizer", "gathered", "activations", "loss")
    used = [name for name in names if any(getattr(estimate, name) for estimate in estimates)]
    unit, divisor = ("GiB", GIB) if max(estimate.total for estimate in estimates) >= GIB else ("MiB", 2**20)
    rows = [(f"Memory of a process ({unit})", *used, "peak", "fits into")]
    for estimate in estimates:
        fits = [size for size in ACCELERATOR_GB if estimate.total <= size * 1e9 * USABLE]
        values = [*(getattr(estimate, name) for name in used), estimate.total]
        rows.append(
            (
                estimate.setup,
                *(f"{value / divisor:,.1f}" for value in values),
                f"{fits[0]} GB" if fits else f"none of up to {ACCELERATOR_GB[-1]} GB",
            )
        )
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
