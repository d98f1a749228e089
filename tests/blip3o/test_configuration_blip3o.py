import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.blip3o.small_blip3o import small_config, text_fields
from xgen_mm import Blip3oConfig, Blip3oForConditionalGeneration
from xgen_mm.blip3o.configuration_blip3o import Blip3oDiffusionConfig, blip3o_preset, feed_forward_size


@pytest.mark.parametrize(("name", "num_parameters"), [("8B", 1_365_010_336), ("4B", 1_362_257_824)])
def test_preset_transformer_has_the_released_tensors(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(blip3o_preset(name))
    tensors = model.diffusion_transformer.state_dict()
    assert len(tensors) == 642
    assert sum(tensor.numel() for tensor in tensors.values()) == num_parameters
    assert model.latent_queries.shape == (1, 64, {"8B": 3584, "4B": 2048}[name])
    assert model.get_input_embeddings().weight.shape[0] == 151668
    # What drawing does not need is not there.
    assert model.feature_tower is None


def test_preset_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no preset '7B'; expected one of 4B, 8B"):
        blip3o_preset("7B")


def test_feed_forward_width_is_the_released_one_at_every_size() -> None:
    """Newer versions of the original's library leave the two thirds out and build 7,168."""
    assert feed_forward_size(1792) == 4864
    assert feed_forward_size(32, multiplier=1.3, multiple_of=32) == 128
    assert Blip3oDiffusionConfig().intermediate_size == 4864


def released_fields(model_type: str) -> dict[str, Any]:
    fields = text_fields()
    return fields.pop("text_config") | {
        "model_type": model_type,
        "architectures": ["blip3oQwenForCausalLM"],
        "vision_config": fields["vision_config"],
        "gen_vision_tower": "eva-clip-E-14-plus",
        "vision_tower_pretrained": None,
        "n_query": 64,
        "gen_pooling": "early_pool2d_4",
        "gen_hidden_size": 1792,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "tokenizer_model_max_length": 512,
        "image_aspect_ratio": "square",
        "tie_word_embeddings": True,
        "auto_map": {"AutoConfig": "stranger.Config"},
    }


@pytest.mark.parametrize("model_type", ["blip3o_qwen", "blip3o_qwen_inference"])
def test_released_config_is_read_as_ours(model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released_fields(model_type)))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is Blip3oConfig
    assert config.model_type == "blip3o"
    assert config.text_config.model_type == "qwen2_5_vl"
    assert (config.get_text_config().hidden_size, config.get_text_config().vocab_size) == (64, 151668)
    assert config.text_config.tie_word_embeddings
    assert config.text_config.vision_config.out_hidden_size == 64
    diffusion = config.diffusion_config
    assert (diffusion.num_channels, diffusion.sample_size, diffusion.condition_size) == (1792, 8, 64)
    assert (diffusion.num_hidden_layers, diffusion.intermediate_size) == (24, 4864)
    assert not hasattr(config.text_config, "n_query")
    assert not hasattr(config.text_config, "auto_map")
    assert "architecture" not in caplog.text
    config.save_pretrained(tmp_path / "ours")
    again = AutoConfig.from_pretrained(tmp_path / "ours")
    assert again.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("pooling", ["late", "early_pool2d_²"])
def test_released_config_unknown_pooling_is_refused(pooling: str) -> None:
    with pytest.raises(ValueError, match=f"`gen_pooling` is '{pooling}'; expected `early_pool2d_`"):
        Blip3oConfig(**released_fields("blip3o_qwen") | {"gen_pooling": pooling})


def test_empty_prompt_is_a_space_with_the_released_tokenizer_only() -> None:
    assert Blip3oConfig(text_config=text_fields()).negative_prompt_ids == [220]
    assert small_config(negative_prompt_ids=None).negative_prompt_ids == []


def test_config_survives_saving(tmp_path: Path) -> None:
    config = small_config()
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diffusion_config": {"condition_size": 31}}, "`diffusion_config.condition_size` is 31 but .* 32 wide"),
        ({"feature_config": {"hidden_size": 8}}, "`feature_config` gives maps of 8 x 8 cells .* draws 4 x 4"),
        ({"pixel_decoder_config": {"feature_channels": 7}}, "`pixel_decoder_config.feature_channels` is 7; .* 8"),
        ({"num_queries": 0}, "`num_queries` is 0"),
        ({"condition_dropout": 1.0}, "`condition_dropout` is 1.0"),
        ({"query_token_id": 512}, "`query_token_id` is 512; expected an id below the vocabulary size 512"),
    ],
)
def test_config_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 3}, "do not fit"),
        ({"num_key_value_heads": 3}, "do not fit"),
        ({"patch_size": 3}, "`sample_size` is 8; expected a multiple of `patch_size` 3"),
    ],
)
def test_diffusion_config_contradiction_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blip3oDiffusionConfig(**fields)
