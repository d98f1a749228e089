"""Reads the `config.json` of the released v1 checkpoints into the fields of `XGenMMV1Config`.

The released file stores only differences from class defaults of the original remote code, and hard-codes the
resampler; the values filled in here are those defaults. Source: released code of xGen-MM v1.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..modeling.released_config import (
    RELEASED_KEYS,
    RELEASED_PREFIX,
    as_dict,
    resampler_fields,
    translate_text_config,
)

# Model type of the very first upload; later ones carry the same one as v1.5.
FIRST_MODEL_TYPE = "blip_3"
TOWER_NAME = "ViT-H-14-378-quickgelu"
RESAMPLER_WIDTH = 1280
# Only the v1 resampler has weights of this name.
V1_WEIGHT = RELEASED_PREFIX + "vision_tokenizer.text_projection.0.weight"
# Distance of `<pad>` (32011) from the end of the released tokenizer (32012).
PAD_TOKEN_OFFSET = 1

# The image half of open_clip's `ViT-H-14-378-quickgelu`; its final projection is not used.
CLIP_VIT_H = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 378,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 1024,
}


def is_v1_config(config: dict[str, Any], *, source: str | None = None) -> bool:
    """Whether a `config.json` belongs to a v1 checkpoint in the released layout.

    The file names its tower only if that differs from the default of its release. Without a name, v1 and v1.5 files
    look alike; then the names of the weights in `source` decide.

    Args:
        config: Content of the file.
        source: Directory or repository that it came from, if known.

    Returns:
        `False` as well for configurations in our own layout.
    """
    if config.get("model_type") == FIRST_MODEL_TYPE:
        return True
    if not any(key in config for key in RELEASED_KEYS):
        return False
    encoder, tokenizer = (as_dict(config.get(key)) for key in RELEASED_KEYS)
    if "model_name" in encoder:
        return encoder["model_name"] == TOWER_NAME
    if "vis_feature_dim" in tokenizer:
        return tokenizer["vis_feature_dim"] == RESAMPLER_WIDTH
    return bool(source) and V1_WEIGHT in _weight_names(source)


def translate_released_v1_config(released: dict[str, Any], *, text_config: Any) -> dict[str, Any]:
    """Translate the sections of the released layout into fields of `XGenMMV1Config`.

    Args:
        released: The sections named in `RELEASED_KEYS`; they are not changed.
        text_config: The released `text_config` section, a dict or `None`.

    Returns:
        Values for `vision_config`, `resampler_config`, `text_config`, `image_token_id`, `prompt_pad_token_id` and
        `lm_head_bias`.

    Raises:
        ValueError: If the file asks for another tower or another kind of resampler than the v1 release has.
    """
    encoder, tokenizer = (as_dict(released.get(key)) for key in RELEASED_KEYS)
    tower_name = encoder.get("model_name", TOWER_NAME)
    if tower_name != TOWER_NAME:
        raise ValueError(
            f"`vision_encoder_config.model_name` is {tower_name!r}; v1 checkpoints have {TOWER_NAME!r}. "
            "Read files of the v1.5 release with `XGenMMConfig`."
        )
    repeats_latents, samples_tiles = tokenizer.get("repeat_latents", False), encoder.get("anyres_patch_sampling", True)
    if repeats_latents or not samples_tiles:
        raise ValueError(
            f"`repeat_latents` is {repeats_latents} and `anyres_patch_sampling` is {samples_tiles}; the v1 release "
            "has False and True, and only that can be read."
        )
    vision = CLIP_VIT_H | _clip_fields(as_dict(encoder.get("openclip_vision_cfg")))
    vision["image_size"] = encoder.get("force_image_size", vision["image_size"])
    text, tokenizer_length = translate_text_config(text_config)
    return {
        "vision_config": vision,
        "resampler_config": resampler_fields(tokenizer, vision["hidden_size"]),
        "text_config": text,
        "image_token_id": tokenizer_length,
        "prompt_pad_token_id": tokenizer_length - PAD_TOKEN_OFFSET,
        "lm_head_bias": True,
    }


def _clip_fields(openclip: dict[str, Any]) -> dict[str, Any]:
    """Fields of `CLIPVisionConfig` for a vision section in open_clip's own terms; empty for an empty one."""
    if not openclip:
        return {}
    width = openclip["width"]
    return {
        "hidden_size": width,
        "intermediate_size": int(width * openclip.get("mlp_ratio", 4.0)),
        "num_hidden_layers": openclip["layers"],
        "num_attention_heads": width // openclip["head_width"],
        "image_size": openclip["image_size"],
        "patch_size": openclip["patch_size"],
    }


def _weight_names(source: str) -> set[str]:
    """Names of the weights of a local directory or a repository; empty if there are none to be found."""
    if Path(source).is_file():
        source = str(Path(source).parent)
    single = Path(source) / SAFE_WEIGHTS_NAME
    if single.is_file():
        with safe_open(single, "pt") as handle:
            return set(handle.keys())
    index = cached_file(
        source,
        SAFE_WEIGHTS_INDEX_NAME,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return set() if index is None else set(json.loads(Path(index).read_text())["weight_map"])
