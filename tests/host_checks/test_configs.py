"""Configurations: the same before and after every way of writing them down."""

import copy
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, Phi3Config, SiglipVisionConfig

from xgen_mm import XGenMMConfig, XGenMMResamplerConfig

from .outside_view import outside_config, outside_model


@pytest.fixture(params=["default", "changed"])
def config(request: pytest.FixtureRequest) -> XGenMMConfig:
    return {"default": XGenMMConfig, "changed": outside_config}[request.param]()


def test_json_holds_the_whole_configuration(config: XGenMMConfig, tmp_path: Path) -> None:
    config.to_json_file(tmp_path / "config.json")
    assert XGenMMConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    assert XGenMMConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    assert XGenMMConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("subfolder", ["", "inside"])
def test_saved_configuration_loads_through_the_auto_class(
    config: XGenMMConfig, tmp_path: Path, subfolder: str
) -> None:
    config.save_pretrained(tmp_path / subfolder)
    loaded = AutoConfig.from_pretrained(tmp_path, subfolder=subfolder)
    assert type(loaded) is XGenMMConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("part", "part_class"),
    [
        ("text_config", Phi3Config),
        ("vision_config", SiglipVisionConfig),
        ("resampler_config", XGenMMResamplerConfig),
    ],
)
def test_part_loads_from_the_file_of_the_whole(tmp_path: Path, part: str, part_class: type) -> None:
    config = outside_config()
    config.save_pretrained(tmp_path)
    loaded = part_class.from_pretrained(tmp_path)
    assert type(loaded) is part_class
    # Only a configuration that was read from a file of its own knows the version that wrote it.
    loaded.transformers_version = getattr(config, part).transformers_version
    assert loaded.to_dict() == getattr(config, part).to_dict()


def test_changes_on_loading_keep_the_other_fields_of_a_part(tmp_path: Path) -> None:
    config = outside_config()
    config.save_pretrained(tmp_path)
    loaded = XGenMMConfig.from_pretrained(tmp_path, text_config={"vocab_size": 70})
    assert loaded.text_config.to_dict() == config.text_config.to_dict() | {"vocab_size": 70}


def test_parts_may_be_dicts_or_objects() -> None:
    from_objects = outside_config()
    parts = ("text_config", "vision_config", "resampler_config")
    from_dicts = outside_config(**{name: getattr(from_objects, name).to_dict() for name in parts})
    assert from_dicts.to_dict() == from_objects.to_dict()


def test_other_towers_and_language_models_are_described_by_their_own_classes() -> None:
    config = outside_config(
        vision_config=CLIPVisionConfig(hidden_size=24, image_size=16, patch_size=4),
        text_config=LlamaConfig(hidden_size=64, vocab_size=60),
    )
    loaded = XGenMMConfig(**config.to_dict())
    assert type(loaded.vision_config) is CLIPVisionConfig
    assert type(loaded.text_config) is LlamaConfig


def test_model_shares_the_configurations_of_its_parts() -> None:
    model = outside_model()
    assert model.config is model.model.config
    assert model.model.language_model.config is model.config.text_config
    assert model.model.vision_tower.config is model.config.vision_config
    assert model.model.resampler.config is model.config.resampler_config
    assert model.config.get_text_config(decoder=True) is model.config.text_config


def test_copies_are_independent() -> None:
    config = outside_config()
    copied = copy.deepcopy(config)
    copied.text_config.vocab_size = 1
    copied.image_grid_pinpoints.append([16, 16])
    assert config.text_config.vocab_size == 60
    assert [16, 16] not in config.image_grid_pinpoints
