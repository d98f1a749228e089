"""Arithmetic of one training step, counted from the model's shapes and what is in a batch.

Counted are the matrix products that the model's mathematics asks for: a multiplication and an addition are two FLOPs,
causal attention is half the square of a sequence, padding counts nothing, and products that are computed a second time
(gradient checkpointing, fused attention kernels) count once. That is what model FLOPs utilisation (MFU) refers to.

Source: PaLM (arXiv:2204.02311), appendix B, with causal attention counted as the half it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from ...anyres import canvas_grid, content_cells

Inputs: TypeAlias = dict[str, Any]

# (images, most tiles, 3, S, S); with four dimensions the filler has been left out already.
PADDED_TILE_DIMS = 5
_ADAPTER = ".lora_"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCounts:
    """What is in a batch, or in many.

    Attributes:
        sequences: Sequences (rows); packed samples of a row are not told apart.
        pictures: Pictures.
        tiles: Tiles that the tower encodes, thumbnails included, filler not.
        groups: Groups of cells that the resampler reads at once; each becomes as many image tokens as the
            connector makes of it.
        cells: Feature cells in all groups together.
        tokens: Text and image tokens, without padding.
        pairs: Pairs of a token and one that it attends to, over all sequences.
        labelled: Tokens with a label.
    """

    sequences: float = 0
    pictures: float = 0
    tiles: float = 0
    groups: float = 0
    cells: float = 0
    tokens: float = 0
    pairs: float = 0
    labelled: float = 0

    def __add__(self, other: "BatchCounts") -> "BatchCounts":
        return BatchCounts(
            **{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)}
        )

    def scaled(self, factor: float) -> "BatchCounts":
        """All counts times a number."""
        return BatchCounts(**{item.name: getattr(self, item.name) * factor for item in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardCost:
    """FLOPs of a forward pass per unit of each count.

    Attributes:
        tile: Vision tower without its patch embedding, per tile.
        patches: Patch embedding, per tile.
        group: Resampler, per group, what does not depend on its cells.
        cell: Resampler, per cell.
        token: Language model without attention scores, adapters and output layer, per token.
        pair: Attention scores of the language model and their use, per pair.
        label: Output layer, per token that is scored.
        adapter_token: Low-rank adapters of the language model, per token.
    """

    tile: float
    patches: float
    group: float
    cell: float
    token: float
    pair: float
    label: float
    adapter_token: float = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedParts:
    """Which parts have weights that change.

    Attributes:
        vision_tower: The tower.
        resampler: The resampler.
        language_model: The language model, its embedding and output layer.
        adapters: Low-rank adapters in the language model.
    """

    vision_tower: bool = False
    resampler: bool = True
    language_model: bool = True
    adapters: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """FLOPs of the forward and backward pass of a batch.

    Attributes:
        forward: Forward pass.
        backward: Backward pass.
        recompute: Computed again because of gradient checkpointing; no part of `model`.
        parts: Forward and backward pass of `vision_tower`, `resampler`, `language_model`, `lm_head` and `adapters`.
    """

    forward: float
    backward: float
    recompute: float
    parts: dict[str, float]

    @property
    def model(self) -> float:
        """What model FLOPs utilisation counts: forward and backward pass without recomputation."""
        return self.forward + self.backward


def count_pairs(length: int, *, window: int | None = None) -> int:
    """Pairs of a token and one it attends to, itself included, in a causal sequence.

    Args:
        length: Tokens of the sequence.
        window: Most tokens that one attends to, itself included; `None` is all before it.

    >>> count_pairs(4), count_pairs(4, window=2)
    (10, 7)
    """
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full


def forward_cost(model: nn.Module) -> ForwardCost:
    """FLOPs per unit, from the shapes of a model's layers; they may lie on the meta device, be sharded or quantised.

    Language models whose blocks are not made of linear layers that every token passes (mixtures of experts) are
    counted too low, and so is the resampler of v1 models, whose prompt tokens are left out.

    Args:
        model: A model of this package, or a wrapper around one (PEFT, DDP).
    """
    inner = find_model(model)
    config = inner.config
    vision, text = config.vision_config, config.text_config
    patches = config.cells_per_tile**2
    tower = dict(_matrices(inner.vision_tower))
    patch_embedding = sum(size for name, size in tower.items() if "patch_embedding" in name)
    tower_weights = sum(tower.values()) - patch_embedding
    positions = patches + int(any("class_embedding" in name for name, _ in inner.vision_tower.named_parameters()))
    scores = 4 * positions**2 * vision.hidden_size * vision.num_hidden_layers

    group, cell = _connector_cost(config.resampler_config, patches)
    body = dict(_matrices(inner.language_model))
    adapters = sum(size for name, size in body.items() if _ADAPTER in f".{name}")
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ForwardCost(
        tile=2 * tower_weights * positions + scores,
        patches=2 * patch_embedding * patches,
        group=group,
        cell=cell,
        token=2 * (sum(body.values()) - adapters),
        pair=4 * text.num_attention_heads * head_dim * text.num_hidden_layers,
        label=2 * text.vocab_size * text.hidden_size,
        adapter_token=2 * adapters,
    )


def _connector_cost(config: Any, num_patches: int) -> tuple[float, float]:
    """FLOPs of a connector per group, and per patch of a group.

    Counted on tensors without memory, for groups of one tile and of four (also a square): a straight line goes through
    both. It is exact for these, and for every group where no two patches are multiplied.
    """
    with torch.device("meta"):
        connector = AutoModel.from_config(config, trust_remote_code=False, attn_implementation="eager")
    # The counter cannot follow weights that want gradients through a pass without them.
    connector.requires_grad_(False)
    found = []
    for count in (num_patches, 4 * num_patches):
        counter = FlopCounterMode(display=False)
        with counter:
            connector(torch.empty(1, count, config.hidden_size, device="meta"), None, return_dict=True)
        found.append(counter.get_total_flops())
    per_patch = (found[1] - found[0]) / (3 * num_patches)
    return found[0] - per_patch * num_patches, per_patch


def find_model(model: nn.Module) -> Any:
    """The module with tower, resampler and language model inside a model or a wrapper around it.

    Raises:
        TypeError: If there is none.
    """
    for module in model.modules():
        if all(hasattr(module, part) for part in ("vision_tower", "resampler", "language_model")):
            return module
    raise TypeError(f"`model` is a `{type(model).__name__}` without vision tower, resampler and language model.")


def trained_parts(model: nn.Module) -> TrainedParts:
    """Which parts of a model, or of one inside a wrapper, have weights that require gradients."""
    inner = find_model(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    adapters = {name for name in trained if _ADAPTER in name}
    others = trained - adapters
    return TrainedParts(
        vision_tower=any(weight.requires_grad for weight in inner.vision_tower.parameters()),
        resampler=any(weight.requires_grad for weight in inner.resampler.parameters()),
        language_model=any("language_model" in name or "lm_head" in name for name in others),
        adapters=bool(adapters),
    )


def step_flops(
    cost: ForwardCost, counts: BatchCounts, *, trained: TrainedParts, checkpointing: bool = False
) -> StepFlops:
    """FLOPs of the forward and backward pass.

    A part whose weights change costs its forward pass twice more: for the gradients of its weights and for those of
    its inputs. A frozen part behind trained ones costs it once more, for those of its inputs; a frozen part with
    nothing trained before it, nothing. Attention scores have no weights and cost twice more wherever gradients pass.

    Args:
        cost: FLOPs per unit.
        counts: What is in the batch.
        trained: Which parts change.
        checkpointing: Whether activations are computed again in the backward pass.
    """
    forward = {
        "vision_tower": cost.tile * counts.tiles,
        "patches": cost.patches * counts.tiles,
        "resampler": cost.group * counts.groups + cost.cell * counts.cells,
        "language_model": cost.token * counts.tokens,
        "attention": cost.pair * counts.pairs,
        "lm_head": cost.label * counts.labelled,
        "adapters": cost.adapter_token * counts.tokens,
    }
    reaches_resampler = trained.resampler or trained.vision_tower
    factors = {
        "vision_tower": 2 if trained.vision_tower else 0,
        # Nobody asks for the gradients of pixels.
        "patches": int(trained.vision_tower),
        "resampler": 2 if trained.resampler else int(trained.vision_tower),
        "language_model": 2 if trained.language_model else 1,
        "attention": 2,
        "lm_head": 2 if trained.language_model else 1,
        "adapters": 2,
    }
    both = {name: value * (1 + factors[name]) for name, value in forward.items()}
    both["language_model"] += both.pop("attention")
    both["vision_tower"] += both.pop("patches")
    again = ["language_model", "attention", "adapters"]
    again += ["resampler"] if reaches_resampler else []
    again += ["vision_tower"] if trained.vision_tower else []
    return StepFlops(
        forward=sum(forward.values()),
        backward=sum(value * factors[name] for name, value in forward.items()),
        recompute=sum(forward[name] for name in again) if checkpointing else 0.0,
        parts=both,
    )


def count_pictures(inputs: Inputs, config: Any) -> BatchCounts:
    """Pictures, tiles, groups and cells of a batch, from its sizes alone.

    Args:
        inputs: Arguments of the model's forward pass.
        config: The model's configuration.
    """
    pixels, sizes = inputs.get("pixel_values"), inputs.get("image_sizes")
    given: Any = (inputs.get("mm_encoder_outputs") or {}).get("image")
    cells_per_tile = config.cells_per_tile**2
    if pixels is None and given is None:
        return BatchCounts()
    if sizes is None:
        tiles = pixels.shape[0] if pixels is not None else given.last_hidden_state.shape[0]
        counts = BatchCounts(pictures=tiles, tiles=tiles, groups=tiles, cells=tiles * cells_per_tile)
    else:
        rows = sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes
        counts = count_tiled([(int(height), int(width)) for height, width in rows], config)
    if pixels is None:
        # The tower's work was done beforehand.
        return BatchCounts(pictures=counts.pictures, groups=counts.groups, cells=counts.cells)
    return counts


def count_tiled(sizes: list[tuple[int, int]], config: Any) -> BatchCounts:
    """Pictures, tiles, groups and cells of any-resolution pictures of `(height, width)`."""
    grids = [canvas_grid(size, pinpoints=config.image_grid_pinpoints, tile_size=config.tile_size) for size in sizes]
    tiles = sum(rows * cols + 1 for rows, cols in grids)
    groups, cells = tiles, tiles * config.cells_per_tile**2
    if config.tile_grouping == "image":
        groups, cells = len(sizes), 0
        for size, grid in zip(sizes, grids, strict=True):
            box = content_cells(size, grid=grid, cells_per_tile=config.cells_per_tile)
            cells += config.cells_per_tile**2 + (box.bottom - box.top) * (box.right - box.left)
    return BatchCounts(pictures=len(sizes), tiles=tiles, groups=groups, cells=cells)


def _matrices(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Weights of every matrix product of a module, by the layer's name.

    Sizes come from what a layer says of itself, because quantised weights are packed into other shapes.
    """
    for name, layer in module.named_modules():
        # PEFT keeps the frozen original beside a trained copy; only the copy is called.
        if isinstance(layer, nn.Embedding) or "original_module" in name:
            continue
        if hasattr(layer, "in_features") and hasattr(layer, "out_features") and not hasattr(layer, "base_layer"):
            yield name, layer.in_features * layer.out_features
        elif isinstance(layer, nn.Conv2d) or (hasattr(layer, "nf") and hasattr(layer, "weight")):
            yield name, layer.weight.numel()
