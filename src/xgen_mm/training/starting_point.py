"""Loads what a run starts from: model and processor of a checkpoint, set to the recipe's precision and pictures."""

from itertools import product
from pathlib import Path
from typing import Any

import torch

from .. import tiny_checkpoint
from ..adapters import adapter_base, load_merged_model, load_merged_processor, whole_checkpoint
from ..checkpoint_config import load_config
from .recipe import Recipe
from .recipe_sections import ModelSection, PictureSection, RecipeError

TINY = "tiny"
PROMPT_READING_MODEL = "xgenmm_v1"
# The papers name no list for 12 tiles; all grids of at most so many tiles a side is our reading.
MAX_TILES_PER_SIDE = 4
# Names under which bitsandbytes leaves layers alone; they match from the start of the full name.
NOT_QUANTISED = ["model.vision_tower", "model.resampler", "lm_head"]


def checkpoint_of(section: ModelSection) -> str:
    """Directory or Hub id of a checkpoint.

    Raises:
        RecipeError: If it can only be a directory, and there is none.
    """
    name = section.checkpoint
    if name == TINY:
        return str(tiny_checkpoint())
    if (name.startswith((".", "/")) or name.count("/") > 1) and not Path(name).is_dir():
        raise RecipeError(f"`model: checkpoint` is `{name}`, which is no directory; a Hub id is written `owner/name`.")
    return name


def load_processor(recipe: Recipe) -> Any:
    """Processor of the checkpoint, cutting pictures as the recipe says.

    Raises:
        RecipeError: If the recipe packs rows for a model that cannot take them.
    """
    if recipe.batches.grouping == "packed":
        _refuse_rows_read_as_one(recipe.model)
    checkpoint = checkpoint_of(recipe.model)
    processor = load_merged_processor(checkpoint, revision=recipe.model.revision)
    set_pictures(recipe.pictures, processor=processor)
    return processor


def load_model(recipe: Recipe) -> Any:
    """Model of the checkpoint, all weights trainable; see `prepare_model` for the rest.

    An adapter as checkpoint is merged into its base: training starts from both together, and further adapters are new.

    Raises:
        RecipeError: If quantised weights are asked for where they cannot be had.
    """
    section = recipe.model
    checkpoint = checkpoint_of(section)
    is_spread = recipe.distributed.fsdp_size is not None
    if (section.quantization or is_spread) and adapter_base(checkpoint, revision=section.revision) is not None:
        setting = "distributed: fsdp_size" if is_spread else "model: quantization"
        raise RecipeError(
            f"`model: checkpoint` is the adapter `{checkpoint}`, which cannot be merged with `{setting}`; merge it "
            f"first: `xgen-mm export --model {checkpoint} DIR`, and start from DIR."
        )
    options: dict[str, Any] = {}
    if section.quantization is not None:
        options["quantization_config"] = _quantisation(section)
    if is_spread:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(fsdp_size=recipe.distributed.fsdp_size)
    model = load_merged_model(
        checkpoint,
        revision=section.revision,
        dtype=getattr(torch, section.dtype),
        attn_implementation=section.attention,
        **options,
    )
    set_pictures(recipe.pictures, config=model.config)
    return model


def set_pictures(section: PictureSection, *, processor: Any = None, config: Any = None) -> None:
    """Set how pictures are cut, in a processor, a model's configuration, or both; they have to agree.

    Args:
        section: Resolution and number of tiles.
        processor: Processor whose image processor is changed.
        config: Configuration that is changed.
    """
    if section.resolution == "checkpoint":
        return
    if processor is not None:
        processor.image_processor.image_aspect_ratio = "none" if section.resolution == "base" else "anyres"
    if section.max_tiles is None:
        return
    if processor is not None:
        side = processor.image_processor.size["height"]
        processor.image_processor.image_grid_pinpoints = canvases(section.max_tiles, tile_size=side)
    if config is not None:
        config.image_grid_pinpoints = canvases(section.max_tiles, tile_size=config.tile_size)


def canvases(max_tiles: int, *, tile_size: int) -> list[list[int]]:
    """Canvases (height, width) in pixels, at most four tiles a side, that cost `max_tiles` or less with the thumbnail.

    >>> canvases(3, tile_size=384)
    [[384, 768], [768, 384]]
    """
    sides = range(1, MAX_TILES_PER_SIDE + 1)
    grids = [(rows, columns) for rows, columns in product(sides, sides) if 1 < rows * columns < max_tiles]
    grids.sort(key=lambda grid: (grid[0] * grid[1], grid))
    return [[rows * tile_size, columns * tile_size] for rows, columns in grids]


def load_start_config(section: ModelSection) -> Any:
    """Configuration of the checkpoint; of an adapter that of its base.

    Raises:
        XGenMMError: If it is damaged or that of another architecture.
    """
    checkpoint, revision = whole_checkpoint(checkpoint_of(section), revision=section.revision)
    return load_config(checkpoint, revision=revision)


def _refuse_rows_read_as_one(section: ModelSection) -> None:
    """Refuse to pack rows for the first release, whose resampler reads the row that a picture stands in."""
    config = load_start_config(section)
    if config.model_type == PROMPT_READING_MODEL:
        raise RecipeError(
            f"`batches: grouping: packed` is not possible with `{section.checkpoint}` (`{config.model_type}`): its "
            "resampler reads the whole row along with a picture, the other samples of a packed row too. Use "
            "`grouping: length`."
        )


def _quantisation(section: ModelSection) -> Any:
    try:
        import bitsandbytes  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"`model: quantization: {section.quantization}` needs bitsandbytes: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
        llm_int8_skip_modules=NOT_QUANTISED,
    )
