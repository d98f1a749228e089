"""What the host's own tables and configurations say about our classes."""

from pathlib import Path

import torch
from transformers import AutoModel, SiglipVisionConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.models.auto.auto_factory import get_values
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMModel

from .outside_view import PATCH, TILE, outside_config, outside_model


def test_host_counts_the_model_without_head_among_base_models() -> None:
    assert "XGenMMModel" in get_values(MODEL_MAPPING_NAMES)


def test_fresh_configuration_gives_the_class_that_generates() -> None:
    assert type(AutoModel.from_config(outside_config())) is XGenMMForConditionalGeneration


def test_fresh_and_loaded_models_announce_no_other_layout(tmp_path: Path) -> None:
    model = outside_model()
    model.save_pretrained(tmp_path)
    for candidate in (model, model.model, XGenMMForConditionalGeneration.from_pretrained(tmp_path)):
        found = get_model_conversion_mapping(candidate, add_legacy=False)
        # What the host itself does for the tower's old names stays.
        assert [step for step in found if not isinstance(step, PrefixChange)] == []


def test_other_name_of_the_placeholder_is_understood() -> None:
    fields = outside_config().to_dict()
    del fields["image_token_id"]
    config = XGenMMConfig(**fields, image_token_index=9)
    assert config.image_token_id == config.image_token_index == 9
    assert "image_token_index" not in config.to_dict()


def test_loaded_configuration_equals_the_saved_one(tmp_path: Path) -> None:
    config = outside_config()
    config.save_pretrained(tmp_path)
    assert XGenMMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    loaded, unused = XGenMMConfig.from_pretrained(tmp_path, return_unused_kwargs=True, other=1)
    assert loaded.to_dict() == config.to_dict()
    assert unused == {"other": 1}


def test_pooling_head_is_left_out_of_towers_given_as_objects() -> None:
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = SiglipVisionConfig(image_size=TILE, patch_size=PATCH, **width)
    model = XGenMMModel(outside_config(vision_config=tower))
    assert not [name for name, _ in model.named_parameters() if "vision_tower.head" in name]
    assert getattr(tower, "vision_use_head", True)
    assert isinstance(model.vision_tower(torch.zeros(1, 3, TILE, TILE)).last_hidden_state, torch.Tensor)
