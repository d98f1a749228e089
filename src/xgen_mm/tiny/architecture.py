"""Configuration of the small model: the classes of the released models at 1/1000 of their size."""

from transformers import PreTrainedTokenizerBase

from ..modeling.configuration_xgen_mm import RELEASED_GRIDS, XGenMMConfig
from .recipe import ModelRecipe
from .tokenizer import END_TOKEN, IMAGE_TOKEN


def build_config(model: ModelRecipe, tokenizer: PreTrainedTokenizerBase) -> XGenMMConfig:
    """Configuration for a recipe and a tokenizer.

    Args:
        model: Sizes.
        tokenizer: Names the vocabulary size and the special tokens.

    Returns:
        A configuration that resamples tile by tile and shares the embedding table with the output layer.
    """
    return XGenMMConfig(
        vision_config=vision_fields(model),
        resampler_config={
            "num_latents": model.num_latents,
            "hidden_size": model.vision_width,
            "num_hidden_layers": model.resampler_layers,
            "num_attention_heads": model.resampler_heads,
            "head_dim": model.vision_width // model.resampler_heads,
            "intermediate_size": 4 * model.vision_width,
        },
        text_config={
            "model_type": "phi3",
            "vocab_size": len(tokenizer),
            "hidden_size": model.text_width,
            "num_hidden_layers": model.text_layers,
            "num_attention_heads": model.text_heads,
            "num_key_value_heads": model.text_heads,
            "intermediate_size": model.text_mlp,
            "max_position_embeddings": model.max_positions,
            "original_max_position_embeddings": model.max_positions,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.convert_tokens_to_ids(END_TOKEN),
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=pinpoints(model.tile_size),
        tile_grouping="tile",
        lm_head_bias=False,
        tie_word_embeddings=True,
    )


def vision_fields(model: ModelRecipe) -> dict[str, str | int | bool]:
    """Fields of the vision tower's configuration."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": model.tile_size,
        "patch_size": model.patch_size,
        "hidden_size": model.vision_width,
        "num_hidden_layers": model.vision_layers,
        "num_attention_heads": model.vision_heads,
        "intermediate_size": model.vision_mlp,
        "vision_use_head": False,
    }


def pinpoints(tile_size: int) -> list[list[int]]:
    """The released five grids as [height, width] in pixels of this tile size, in the released order."""
    return [[rows * tile_size, cols * tile_size] for rows, cols in RELEASED_GRIDS]
