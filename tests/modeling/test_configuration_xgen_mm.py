"""Configuration: defaults, released layout, round trips, contradictions."""

from pathlib import Path
from typing import Any

import pytest

from xgen_mm import XGenMMConfig

# All fields of the released v1.5 base checkpoint's config.json.
RELEASED = {
    "architectures": ["XGenMMModelForConditionalGeneration"],
    "auto_map": {
        "AutoConfig": "modeling_xgenmm.XGenMMConfig",
        "AutoModelForVision2Seq": "modeling_xgenmm.XGenMMModelForConditionalGeneration",
    },
    "model_type": "xgenmm",
    "text_config": {
        "initial_tokenizer_len": 32012,
        "model_type": "phi3",
        "sliding_window": 2047,
        "torch_dtype": "bfloat16",
    },
    "torch_dtype": "float32",
    "transformers_version": "4.41.1",
    "vision_encoder_config": {
        "anyres_patch_sampling": True,
        "image_aspect_ratio": "anyres",
        "model_type": "xgenmm_vision_encoder",
    },
    "vision_tokenizer_config": {"model_type": "xgenmm_vision_tokenizer"},
}
RELEASED_CANVASES = [[768, 384], [384, 768], [768, 768], [384, 1152], [1152, 384]]


def test_default_config_describes_released_model() -> None:
    config = XGenMMConfig()
    assert config.vision_config.model_type == "siglip_vision_model"
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1152, 27)
    assert config.vision_config.vision_use_head is False
    assert (config.resampler_config.hidden_size, config.resampler_config.output_size) == (1152, 3072)
    assert config.resampler_config.intermediate_size == 4608
    assert (config.text_config.model_type, config.text_config.vocab_size) == ("phi3", 32015)
    assert config.image_grid_pinpoints == RELEASED_CANVASES
    assert (config.tile_size, config.cells_per_tile, config.image_token_id) == (384, 27, 32012)


def test_released_config_fills_what_the_file_leaves_out() -> None:
    config = XGenMMConfig(**RELEASED)
    assert config.text_config.vocab_size == 32015
    assert config.text_config.sliding_window == 2048
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (3072, 32)
    assert (config.text_config.eos_token_id, config.text_config.pad_token_id) == (32000, 32000)
    assert (config.image_token_id, config.lm_head_bias, config.tile_grouping) == (32012, True, "raster_chunks")
    assert config.resampler_config.num_latents == 128
    assert config.image_grid_pinpoints == RELEASED_CANVASES
    assert config.tie_word_embeddings is False


def test_released_config_is_saved_in_our_layout(tmp_path: Path) -> None:
    XGenMMConfig(**RELEASED).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "vision_encoder_config" not in text
    assert "auto_map" not in text
    loaded = XGenMMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == XGenMMConfig.from_pretrained(tmp_path).to_dict()
    assert loaded.text_config.sliding_window == 2048
    assert loaded.tile_grouping == "raster_chunks"


def test_released_config_named_grids_are_turned_to_height_first() -> None:
    fields = RELEASED | {"vision_encoder_config": {"anyres_grids": [[384, 768], [1152, 384]]}}
    assert XGenMMConfig(**fields).image_grid_pinpoints == [[768, 384], [384, 1152]]


def test_released_v1_tower_is_refused_with_its_name() -> None:
    fields = RELEASED | {"vision_encoder_config": {"model_name": "ViT-H-14-378-quickgelu"}}
    with pytest.raises(ValueError, match="ViT-H-14-378-quickgelu"):
        XGenMMConfig(**fields)


@pytest.mark.parametrize("tile_grouping", ["tile", "raster_chunks", "image"])
def test_config_round_trip_keeps_every_field(tmp_path: Path, tile_grouping: str) -> None:
    config = XGenMMConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7, "hidden_size": 36},
        resampler_config={"num_latents": 5, "head_dim": 6, "num_attention_heads": 3},
        text_config={"model_type": "llama", "hidden_size": 64, "vocab_size": 77},
        image_token_id=70,
        tile_grouping=tile_grouping,
        max_tiles_per_call=3,
        lm_head_bias=False,
    )
    config.save_pretrained(tmp_path)
    loaded = XGenMMConfig.from_pretrained(tmp_path)
    assert loaded.vision_config.model_type == "clip_vision_model"
    assert (loaded.resampler_config.hidden_size, loaded.resampler_config.output_size) == (36, 64)
    assert (loaded.tile_grouping, loaded.max_tiles_per_call, loaded.lm_head_bias) == (tile_grouping, 3, False)
    assert loaded.to_diff_dict() == config.to_diff_dict() | {
        key: loaded.to_diff_dict()[key] for key in ("transformers_version",)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_grid_pinpoints": [[384, 700]]}, r"\[384, 700\].*multiples of the", id="canvas"),
        pytest.param({"resampler_config": {"hidden_size": 7}}, "resampler_config.hidden_size` is 7", id="width"),
        pytest.param({"resampler_config": {"output_size": 7}}, "resampler_config.output_size` is 7", id="output"),
        pytest.param({"max_tiles_per_call": 0}, "max_tiles_per_call` is 0", id="micro-batch"),
        pytest.param({"tile_grouping": "rows"}, "tile_grouping", id="grouping"),
    ],
)
def test_config_contradiction_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        XGenMMConfig(**changes)
    assert isinstance(error.value, (ValueError, TypeError)) or "Strict" in type(error.value).__name__


PHI3, GEMMA, SIGLIP = {"model_type": "phi3"}, {"model_type": "gemma2"}, {"model_type": "siglip_vision_model"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config": PHI3 | {"hidden_size": "64"}}, "`text_config` .*'hidden_size' expected int, got str"),
        ({"text_config": PHI3 | {"hidden_size": -64}}, "`text_config.hidden_size` is -64"),
        ({"text_config": PHI3 | {"num_attention_heads": 0}}, "`text_config` .*number of heads"),
        ({"text_config": {"model_type": "nonsense"}}, "`text_config.model_type` is 'nonsense'"),
        ({"text_config": {"model_type": ["phi3"]}}, "`text_config.model_type` is "),
        ({"text_config": [1]}, "'text_config' with value"),
        ({"text_config": SIGLIP}, "`text_config.vocab_size` is None"),
        ({"vision_config": PHI3}, "`vision_config.image_size` is None"),
        ({"vision_config": SIGLIP | {"patch_size": 0}}, "`vision_config.patch_size` is 0"),
        (
            {"resampler_config": {"model_type": "q_former"}},
            "`resampler_config.model_type` is 'q_former'.*xgenmm_resampler",
        ),
        ({"text_config": PHI3 | {"hidden_act": "nonsense"}}, "`text_config.hidden_act` is 'nonsense'.* silu"),
        ({"text_config": GEMMA | {"hidden_activation": "geglu"}}, "`text_config.hidden_activation` is 'geglu'"),
        ({"vision_config": SIGLIP | {"hidden_act": ""}}, "`vision_config.hidden_act` is ''"),
        ({"resampler_config": {"hidden_act": "GELU"}}, "`resampler_config.hidden_act` is 'GELU'"),
        ({"resampler_config": {"num_latents": "8"}}, "'num_latents' expected int"),
        ({"resampler_config": {"num_latents": -8}}, "`resampler_config.num_latents` is -8"),
        ({"image_token_id": "5"}, "'image_token_id' expected int"),
        ({"image_token_id": -5}, "`image_token_id` is -5"),
        ({"image_grid_pinpoints": [384, 768]}, "`image_grid_pinpoints` holds 384"),
        ({"image_grid_pinpoints": []}, "`image_grid_pinpoints` is empty"),
    ],
)
def test_damaged_values_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        XGenMMConfig(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gelu", "mish", "gelu_10", "laplace"])
def test_activations_of_transformers_are_accepted_in_every_part(name: str) -> None:
    fields = {"text_config": PHI3, "vision_config": SIGLIP, "resampler_config": {}}
    config = XGenMMConfig(**{part: values | {"hidden_act": name} for part, values in fields.items()})
    assert {getattr(config, part).hidden_act for part in fields} == {name}
