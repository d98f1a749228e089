import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForImageTextToText

from xgen_mm import PRESETS, XGenMMConfig, preset_config
from xgen_mm.conversion.presets import DFN_4B, RELEASED_4B, RELEASED_14B, RELEASED_V1

POOLING_HEAD = 15_238_352
UNUSED_ROWS = 52


def parameters_per_module(config: XGenMMConfig) -> dict[str, int]:
    """Parameters of the model's parts, counted without memory for weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.removeprefix("model.").partition(".")[0]] += math.prod(parameter.shape)
    return dict(counts)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if "phi3-mini" in name and "v1.5" in name and "dfn" not in name]
)
def test_preset_of_released_model_has_the_released_parameter_counts(name: str) -> None:
    counts = parameters_per_module(preset_config(name))
    assert counts["vision_tower"] + POOLING_HEAD == 428_225_600
    assert counts["resampler"] == 109_901_568
    unused = UNUSED_ROWS * 3072 + UNUSED_ROWS * 3072 + UNUSED_ROWS
    assert counts["language_model"] + counts["lm_head"] + unused == 3_821_130_051
    assert sum(counts.values()) == 4_343_699_327


def test_preset_of_14b_model_shares_tower_and_resampler_width() -> None:
    counts = parameters_per_module(preset_config(RELEASED_14B))
    assert counts["vision_tower"] + POOLING_HEAD == 428_225_600
    # Only the projection to the wider language model differs.
    assert counts["resampler"] == 109_901_568 + (5120 - 3072) * (1152 + 1)
    # Phi-3-medium with 32,064 rows in both tables, a bias, and three added tokens instead of the unused rows.
    phi3_medium = 13_960_238_080
    num_rows = 32_015
    assert counts["language_model"] + counts["lm_head"] == phi3_medium - 2 * (32_064 - num_rows) * 5120 + num_rows


def test_preset_of_v1_has_the_released_parameter_counts() -> None:
    counts = parameters_per_module(preset_config(RELEASED_V1))
    # The projection of the picture's embedding is never applied.
    assert counts["vision_tower"] + 1280 * 1024 == 632_682_240
    assert counts["resampler"] == 135_549_952


def test_preset_with_dfn_tower_takes_the_tower_of_v1_and_the_resampler_of_v1_5() -> None:
    config = preset_config(DFN_4B)
    counts = parameters_per_module(config)
    assert counts["vision_tower"] == parameters_per_module(preset_config(RELEASED_V1))["vision_tower"]
    assert counts["lm_head"] == parameters_per_module(preset_config(RELEASED_4B))["lm_head"]
    assert config.resampler_config.hidden_size == 1280
    assert config.cells_per_tile == 27
    assert config.image_grid_pinpoints[0] == [756, 378]


def test_preset_of_released_model_equals_what_the_released_file_says() -> None:
    released = {
        "auto_map": {"AutoConfig": "modeling_xgenmm.XGenMMConfig"},
        "text_config": {"initial_tokenizer_len": 32012, "model_type": "phi3", "sliding_window": 2047},
        "vision_encoder_config": {"anyres_patch_sampling": True, "image_aspect_ratio": "anyres"},
        "vision_tokenizer_config": {"model_type": "xgenmm_vision_tokenizer"},
    }
    preset, read = preset_config(RELEASED_4B).to_dict(), XGenMMConfig(**released).to_dict()
    assert preset == read
    assert preset["text_config"]["sliding_window"] == 2048
    assert preset["text_config"]["vocab_size"] == 32015
    assert preset["image_token_id"] == 32012


def test_preset_with_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'phi4'; expected one of") as caught:
        preset_config("phi4")
    assert all(name in str(caught.value) for name in PRESETS)
