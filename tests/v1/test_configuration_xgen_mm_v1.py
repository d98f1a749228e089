"""v1 configuration: defaults, files of the release, round trips, contradictions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMV1Config, XGenMMV1ForConditionalGeneration

from .small_v1 import small_config

TEXT = {"initial_tokenizer_len": 32012, "model_type": "phi3", "sliding_window": 2047, "torch_dtype": "bfloat16"}
# What the original classes write for a v1 model: differences from their defaults, so no name of the tower.
FIRST_UPLOAD: dict[str, Any] = {
    "architectures": ["Blip3ModelForConditionalGeneration"],
    "auto_map": {"AutoConfig": "configuration_blip_3.Blip3Config"},
    "model_type": "blip_3",
    "text_config": TEXT,
    "torch_dtype": "float32",
    "vision_encoder_config": {
        "anyres_patch_sampling": True,
        "image_aspect_ratio": "anyres",
        "model_type": "blip_3_vision_encoder",
    },
    "vision_tokenizer_config": {"model_type": "blip_3_vision_tokenizer"},
}
RENAMED = FIRST_UPLOAD | {
    "architectures": ["XGenMMModelForConditionalGeneration"],
    "auto_map": {"AutoConfig": "modeling_xgenmm.XGenMMConfig"},
    "model_type": "xgenmm",
}
NAMED = RENAMED | {"vision_encoder_config": {"model_name": "ViT-H-14-378-quickgelu"}}
V1_WEIGHT = "vlm.vision_tokenizer.text_projection.0.weight"


def write_config(directory: Path, fields: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def write_index(directory: Path, *names: str) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_default_config_describes_released_model() -> None:
    config = XGenMMV1Config()
    vision = config.vision_config
    assert vision.model_type == "clip_vision_model"
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1280, 32, 16)
    assert (vision.intermediate_size, vision.hidden_act, vision.layer_norm_eps) == (5120, "quick_gelu", 1e-5)
    assert (config.tile_size, config.cells_per_tile) == (378, 27)
    resampler = config.resampler_config
    assert (resampler.hidden_size, resampler.output_size, resampler.intermediate_size) == (1280, 3072, 5120)
    assert (resampler.num_latents, resampler.num_hidden_layers, resampler.num_attention_heads) == (128, 6, 16)
    assert config.image_grid_pinpoints == [[756, 378], [378, 756], [756, 756], [378, 1134], [1134, 378]]
    assert (config.max_prompt_tokens, config.prompt_pad_token_id, config.image_token_id) == (256, 32011, 32012)
    assert config.mask_prompt_padding is False


@pytest.mark.parametrize("fields", [FIRST_UPLOAD, NAMED], ids=["first-upload", "named-tower"])
def test_released_config_is_read_by_the_auto_class(fields: dict[str, Any], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write_config(tmp_path, fields))
    assert type(config) is XGenMMV1Config
    assert config.model_type == "xgenmm_v1"
    assert (config.vision_config.hidden_size, config.tile_size) == (1280, 378)
    assert (config.text_config.vocab_size, config.image_token_id, config.prompt_pad_token_id) == (32015, 32012, 32011)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param([V1_WEIGHT, "vlm.vision_tokenizer.latents"], XGenMMV1Config, id="v1-weights"),
        pytest.param(["vlm.vision_tokenizer.latents"], XGenMMConfig, id="v1.5-weights"),
    ],
)
def test_released_config_without_a_tower_name_is_told_by_the_weights(
    names: list[str], expected: type, tmp_path: Path
) -> None:
    write_config(tmp_path, RENAMED)
    write_index(tmp_path, *names)
    assert type(AutoConfig.from_pretrained(tmp_path)) is expected
    assert type(AutoConfig.from_pretrained(tmp_path / "config.json")) is expected
    assert type(XGenMMConfig.from_pretrained(tmp_path)) is expected


def test_released_config_beside_a_single_weight_file_is_told_by_the_weights(tmp_path: Path) -> None:
    write_config(tmp_path, RENAMED)
    save_file({V1_WEIGHT: torch.zeros(1)}, tmp_path / "model.safetensors")
    assert type(AutoConfig.from_pretrained(tmp_path)) is XGenMMV1Config


def test_released_config_without_name_and_weights_is_taken_for_the_later_release(tmp_path: Path) -> None:
    assert type(AutoConfig.from_pretrained(write_config(tmp_path, RENAMED))) is XGenMMConfig


def test_config_is_saved_in_our_layout_and_loads_equal(tmp_path: Path) -> None:
    config = XGenMMV1Config(**NAMED, mask_prompt_padding=True)
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert '"model_type": "xgenmm_v1"' in text
    assert "vision_encoder_config" not in text
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is XGenMMV1Config
    assert loaded.mask_prompt_padding is True
    assert loaded.to_dict() | {"_name_or_path": ""} == XGenMMV1Config.from_pretrained(tmp_path).to_dict() | {
        "_name_or_path": ""
    }
    assert loaded.vision_config.to_dict() == config.vision_config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"vision_encoder_config": {"model_name": "siglip"}}, "'siglip'; v1 checkpoints have", id="tower"),
        pytest.param({"vision_tokenizer_config": {"repeat_latents": True}}, "`repeat_latents` is True", id="latents"),
        pytest.param(
            {"vision_encoder_config": {"anyres_patch_sampling": False}},
            "`anyres_patch_sampling` is False",
            id="sampling",
        ),
    ],
)
def test_released_settings_that_no_release_has_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XGenMMV1Config(**(RENAMED | fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"vision_config": {"model_type": "siglip_vision_model"}}, "takes 'clip_vision_model'", id="tower"
        ),
        pytest.param({"tile_grouping": "image"}, "'raster_chunks' as released", id="grouping"),
        pytest.param({"max_prompt_tokens": 0}, "at least 1 token", id="no-prompt"),
        pytest.param({"prompt_pad_token_id": 60}, "below the vocabulary size 60", id="pad-id"),
    ],
)
def test_contradicting_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    small = {"resampler_config": {"num_latents": 4}} if "vision_config" in changes else {}
    with pytest.raises(ValueError, match=message):
        small_config(**small, **changes)


def test_models_refuse_the_configuration_of_the_other_architecture() -> None:
    with pytest.raises(ValueError, match="'xgenmm', not 'xgenmm_v1'"):
        XGenMMForConditionalGeneration(small_config())
    with pytest.raises(ValueError, match="'xgenmm_v1', not 'xgenmm'"):
        XGenMMV1ForConditionalGeneration(XGenMMConfig())
