"""Sizes of a model's parts as a recipe would load and freeze them, found without memory."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from ..recipe import Recipe
from ..trainable import lora_targets, set_trainable
from .run_memory import QUANTISED_BYTES, PartSize


def build_on_meta(config: Any) -> Any:
    """A model without memory."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def part_sizes(recipe: Recipe, model: Any) -> tuple[list[PartSize], str | None]:
    """Sizes of all parts, each weight counted where it first appears.

    Args:
        recipe: The run.
        model: On the meta device; its parts are frozen as the recipe says.

    Returns:
        The sizes, and with adapters the pattern of the layers that get them.

    Raises:
        RecipeError: If adapters are asked for on layers that do not exist.
    """
    section = recipe.model
    set_trainable(model, section.trainable)
    inner = model.model
    embeddings = model.get_input_embeddings()
    modules = {
        "vision_tower": inner.vision_tower,
        "resampler": inner.resampler,
        "embeddings": embeddings,
        "language_model": inner.language_model,
        "lm_head": model.lm_head,
    }
    counted: set[int] = set()
    sizes = []
    for name, module in modules.items():
        weights = [weight for weight in module.parameters() if id(weight) not in counted]
        counted |= {id(weight) for weight in weights}
        dtype, bytes_each = _precision(recipe, name, module, weights)
        sizes.append(
            PartSize(
                name=name,
                parameters=_count(weights),
                trainable=_count(weight for weight in weights if weight.requires_grad),
                dtype=dtype if weights else "shared with embeddings",
                bytes_each=bytes_each,
                in_layers=name not in ("embeddings", "lm_head"),
                largest_layer=_largest_layer(module),
            )
        )
    if section.lora is None:
        return [*sizes, *_reference(recipe, sizes)], None
    pattern = lora_targets(section.lora.targets, model)
    sizes.append(_adapters(recipe, model, pattern))
    copies = sum(size.parameters for size in sizes if size.name in section.trainable)
    if copies:
        dtype, bytes_each = _precision(recipe, "resampler", inner.resampler, [])
        sizes.append(
            # PEFT trains a copy and keeps the original, so that the adapter can be switched off.
            PartSize(name="originals", parameters=copies, trainable=0, dtype=dtype, bytes_each=bytes_each)
        )
    return sizes, pattern


def _reference(recipe: Recipe, sizes: list[PartSize]) -> list[PartSize]:
    """The frozen model that answers are compared to; with adapters it is the model itself without them."""
    has_one = recipe.stage in ("dpo", "kto") or (recipe.reward is not None and recipe.reward.beta > 0)
    if not has_one:
        return []
    total = sum(size.parameters for size in sizes)
    dtype = recipe.model.dtype
    bytes_each = getattr(torch, dtype).itemsize
    return [PartSize(name="reference", parameters=total, trainable=0, dtype=dtype, bytes_each=bytes_each)]


def _adapters(recipe: Recipe, model: Any, pattern: str) -> PartSize:
    lora = recipe.model.lora
    rank = 0 if lora is None else lora.rank
    size = sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and re.fullmatch(pattern, name)
    )
    # PEFT holds adapters in single precision whatever the weights have.
    return PartSize(name="adapters", parameters=size, trainable=size, dtype="float32", bytes_each=4)


def _precision(recipe: Recipe, name: str, module: nn.Module, weights: list[nn.Parameter]) -> tuple[str, float]:
    section = recipe.model
    if section.quantization is None:
        return section.dtype, getattr(torch, section.dtype).itemsize
    if name != "language_model":
        # PEFT turns what is not quantised into single precision.
        return "float32", 4
    matrices = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    total = _count(weights)
    return section.quantization, (matrices * QUANTISED_BYTES[section.quantization] + (total - matrices) * 4) / total


def _largest_layer(module: nn.Module) -> int:
    layers = [layer for stack in module.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    return max((_count(layer.parameters()) for layer in layers), default=0)


def _count(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)
