"""Reads the `config.json` of the released BLIP3-o models: that of Qwen2.5-VL with fields of the training code."""

from typing import Any

from ..checkpoint_config import BLIP3O_MODEL_TYPES

# As trained, and as exported for drawing; the first is our own.
RELEASED_MODEL_TYPES = BLIP3O_MODEL_TYPES[1:]
# Vocabulary of the released models: the tokenizer's own, cut from Qwen's padded one.
VOCAB_SIZE = 151668

_QWEN2_5_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_QWEN2_5_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 151643,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
}
_QWEN2_5_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
QWEN2_5_VL_7B: dict[str, Any] = _QWEN2_5_VL | {
    "text_config": _QWEN2_5_TEXT
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": _QWEN2_5_VISION | {"out_hidden_size": 3584},
}
QWEN2_5_VL_3B: dict[str, Any] = _QWEN2_5_VL | {
    "text_config": _QWEN2_5_TEXT
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "vision_config": _QWEN2_5_VISION | {"out_hidden_size": 2048},
    "tie_word_embeddings": True,
}
# By the size of the whole model.
RELEASED_LANGUAGE_MODELS = {"4B": QWEN2_5_VL_3B, "8B": QWEN2_5_VL_7B}

# Settings of the training code that say nothing about the model.
_UNUSED = frozenset(
    (
        "architectures",
        "auto_map",
        "freeze_mm_mlp_adapter",
        "gen_vision_tower",
        "image_aspect_ratio",
        "mm_patch_merge_type",
        "mm_projector_lr",
        "mm_projector_type",
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "mm_vision_select_feature",
        "mm_vision_select_layer",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "transformers_version",
        "tune_mm_mlp_adapter",
        "use_mm_proj",
        "vision_tower_pretrained",
    )
)
_POOLING = "early_pool2d_"
TOWER_PATCHES = 32


def translate_released_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Blip3oConfig` from those of a released file.

    The sizes of the diffusion transformer are not in the file: they are the defaults, but for the pooling, the width
    of the features and that of the language model.

    Args:
        fields: Content of the file, or keyword arguments made of it.

    Raises:
        ValueError: If the features are pooled in a way that is not known here.
    """
    fields = {name: value for name, value in fields.items() if name not in _UNUSED}
    fields["model_type"] = _QWEN2_5_VL["model_type"]
    pooling = str(fields.pop("gen_pooling", f"{_POOLING}4"))
    size = pooling.removeprefix(_POOLING)
    if not (pooling.startswith(_POOLING) and size.isascii() and size.isdigit() and int(size) > 0):
        raise ValueError(f"`gen_pooling` is {pooling!r}; expected `{_POOLING}` and the edge of the pooled square.")
    translated: dict[str, Any] = {
        "num_queries": fields.pop("n_query", 64),
        "diffusion_config": {
            "num_channels": fields.pop("gen_hidden_size", 1792),
            "sample_size": TOWER_PATCHES // int(size),
        },
        "text_config": fields,
    }
    return translated
