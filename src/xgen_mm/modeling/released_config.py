"""Reads the `config.json` of the released v1.5 checkpoints into the fields of `XGenMMConfig`.

The released file stores only differences from class defaults of the original remote code, and hard-codes the resampler
and the tower; the values filled in here are those defaults. Source: released code of xGen-MM v1.5.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Rows appended to the tokenizer by the released code, in this order: `<image>`, `<image placeholder>`,
# `<|endofchunk|>`.
NUM_ADDED_TOKENS = 3
RELEASED_TOKENIZER_LENGTH = 32012
RELEASED_KEYS = ("vision_encoder_config", "vision_tokenizer_config")
# What every weight of the released files is called first, and what our models do not have among them.
RELEASED_PREFIX = "vlm."
RELEASED_HEAD = "vlm.lang_model.lm_head."
UNUSED_RELEASED_WEIGHTS = r"^vlm\.vision_encoder\.head\."
# Distance of Phi-3's `<|end|>` (32007) from the end of the released tokenizer (32012).
END_TOKEN_OFFSET = 5

SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
# Released Phi-3 writes `sliding_window: 2047` and means 2,048 visible keys (`query - key <= 2047`); transformers 5
# keeps `query - key < sliding_window`, hence one more.
SLIDING_WINDOW_OFFSET = 1
# Bookkeeping of the original run that means nothing to our classes.
STALE_TEXT_KEYS = ("auto_map", "torch_dtype", "dtype", "transformers_version", "architectures")


def translate_released_config(released: dict[str, Any], *, text_config: Any) -> dict[str, Any]:
    """Translate the sections of the released layout into fields of `XGenMMConfig`.

    Args:
        released: The sections named in `RELEASED_KEYS`; they are not changed.
        text_config: The released `text_config` section, a dict or `None`.

    Returns:
        Values for `vision_config`, `resampler_config`, `text_config`, `image_token_id`, `lm_head_bias`,
        `tile_grouping` and, where the file names grids, `image_grid_pinpoints`.

    Raises:
        ValueError: If the vision tower is not a SigLIP one (v1 checkpoints use an open_clip tower).
    """
    encoder, tokenizer = (as_dict(released.get(key)) for key in RELEASED_KEYS)
    tower_name = encoder.get("model_name", "google/siglip-so400m-patch14-384")
    if "siglip" not in tower_name.lower():
        raise ValueError(
            f"`vision_encoder_config.model_name` is {tower_name!r}; `XGenMMConfig` reads SigLIP towers (v1.5 layout). "
            "Use `AutoConfig`, which knows the v1 layout too."
        )

    text, tokenizer_length = translate_text_config(text_config)
    vision = SIGLIP_SO400M | as_dict(encoder.get("siglip_vision_config"))
    fields: dict[str, Any] = {
        "vision_config": vision,
        "resampler_config": resampler_fields(tokenizer, vision["hidden_size"]),
        "text_config": text,
        "image_token_id": tokenizer_length,
        "lm_head_bias": True,
        # Without "patch sampling" the released code resamples the whole picture at once.
        "tile_grouping": "raster_chunks" if encoder.get("anyres_patch_sampling", True) else "image",
    }
    grids = encoder.get("anyres_grids")
    if grids:
        # The released order is (width, height).
        fields["image_grid_pinpoints"] = [[height, width] for width, height in grids]
    return fields


def translate_text_config(text_config: Any) -> tuple[dict[str, Any], int]:
    """Translate the released `text_config` section.

    Args:
        text_config: The section, a dict or `None`; it is not changed.

    Returns:
        Fields of the language model's configuration, and the tokens of the tokenizer without the three added ones.
    """
    text = as_dict(text_config)
    for key in STALE_TEXT_KEYS:
        text.pop(key, None)
    tokenizer_length = text.pop("initial_tokenizer_len", RELEASED_TOKENIZER_LENGTH)
    text.setdefault("model_type", "phi3")
    # The decoupled tables (old rows and three added ones) are one table here, the dead rows beyond are dropped.
    text["vocab_size"] = tokenizer_length + NUM_ADDED_TOKENS
    if text.get("sliding_window") is not None:
        text["sliding_window"] += SLIDING_WINDOW_OFFSET
    return text, tokenizer_length


def was_read_from_released_layout(conversions: Iterable[Any]) -> bool:
    """Whether the host used patterns for released names (`WeightTransform` objects) to load a model."""
    anchor = "^" + re.escape(RELEASED_PREFIX)
    return any(pattern.startswith(anchor) for used in conversions for pattern in used.source_patterns)


def complete_generation_config(generation_config: "GenerationConfig", *, tokenizer_length: int) -> None:
    """Add what the released code passes to every `generate` call by hand: greedy search, and `<|end|>` ends an answer.

    Args:
        generation_config: Settings read from the released directory; changed in place.
        tokenizer_length: Tokens of the released tokenizer, without the three that the model adds.
    """
    stop_ids = generation_config.eos_token_id
    stop_ids = list(stop_ids) if isinstance(stop_ids, (list, tuple)) else [] if stop_ids is None else [stop_ids]
    end_id = tokenizer_length - END_TOKEN_OFFSET
    generation_config.eos_token_id = stop_ids if end_id in stop_ids else [*stop_ids, end_id]
    if generation_config.pad_token_id is None:
        generation_config.pad_token_id = generation_config.eos_token_id[0]
    generation_config.do_sample = False
    generation_config._from_model_config = False


def resampler_fields(tokenizer: dict[str, Any], vision_hidden_size: int) -> dict[str, Any]:
    """Fields of `XGenMMResamplerConfig` for the released `vision_tokenizer_config` section."""
    hidden_size = tokenizer.get("vis_feature_dim", vision_hidden_size)
    return {
        "hidden_size": hidden_size,
        "output_size": tokenizer.get("lang_embedding_dim"),
        "num_latents": tokenizer.get("num_vis_tokens", 128),
        "num_hidden_layers": tokenizer.get("depth", 6),
        "num_attention_heads": tokenizer.get("heads", 16),
        "head_dim": tokenizer.get("dim_head", 96),
        "intermediate_size": hidden_size * tokenizer.get("ff_mult", 4),
    }


def as_dict(section: Any) -> dict[str, Any]:
    """A copy of a section that may be missing, a dict or a configuration."""
    if section is None:
        return {}
    return dict(section if isinstance(section, dict) else section.to_dict())
