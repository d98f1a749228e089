import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from xgen_mm import ConversionError, XGenMMConfig, XGenMMForConditionalGeneration, XGenMMModel
from xgen_mm.conversion.released_loading import JoinTokenRows

from .released_files import END_ID, NUM_BASE_TOKENS, PAD_ID, weight_names

AUTO_CLASSES = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoImageProcessor, AutoTokenizer)


def is_our_name(name: str) -> bool:
    return name.startswith("model.") or name in ("lm_head.weight", "lm_head.bias")


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_released_files_load_completely_through_auto_classes(instruct_files: Path, auto_class: Any) -> None:
    model, info = auto_class.from_pretrained(instruct_files, output_loading_info=True)
    assert type(model) is XGenMMForConditionalGeneration
    assert model.dtype == torch.float32
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def test_released_files_load_into_model_without_head(instruct_files: Path) -> None:
    base, info = XGenMMModel.from_pretrained(instruct_files, output_loading_info=True)
    full = XGenMMForConditionalGeneration.from_pretrained(instruct_files)
    assert not info["missing_keys"]
    assert all(name.startswith("vlm.lang_model.lm_head.") for name in info["unexpected_keys"])
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, full.model.state_dict()[name]), name


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_released_files_never_run_remote_code(
    instruct_files: Path, auto_class: Any, trust_remote_code: bool | None
) -> None:
    loaded = auto_class.from_pretrained(instruct_files, trust_remote_code=trust_remote_code)
    assert not (instruct_files / "RAN").exists()
    assert not type(loaded).__module__.startswith("transformers_modules")


def test_loading_released_files_says_what_was_left_out(instruct_files: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        AutoModelForImageTextToText.from_pretrained(instruct_files)
    assert "released layout" in caplog.text
    assert "head" in caplog.text


def test_model_read_from_released_files_is_saved_in_our_layout(instruct_files: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(instruct_files)
    model.save_pretrained(tmp_path)
    names = weight_names(tmp_path)
    assert names == set(model.state_dict())
    assert all(is_our_name(name) for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "modeling_xgenmm" not in json.dumps(config)
    assert set(config["auto_map"].values()) == {
        "configuration_xgen_mm.XGenMMConfig",
        "modeling_xgen_mm.XGenMMForConditionalGeneration",
    }
    assert not {"vision_encoder_config", "vision_tokenizer_config"} & set(config)
    assert config["architectures"] == ["XGenMMForConditionalGeneration"]

    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_model_without_head_read_from_released_files_is_saved_in_our_layout(
    instruct_files: Path, tmp_path: Path
) -> None:
    model = XGenMMModel.from_pretrained(instruct_files)
    model.save_pretrained(tmp_path)
    assert weight_names(tmp_path) == set(model.state_dict())


def test_new_model_is_saved_in_our_layout(instruct_files: Path, tmp_path: Path) -> None:
    model = XGenMMForConditionalGeneration(AutoConfig.from_pretrained(instruct_files))
    model.save_pretrained(tmp_path)
    assert weight_names(tmp_path) == set(model.state_dict())


def test_generation_settings_of_released_files_end_answers_at_the_end_token(instruct_files: Path) -> None:
    settings = AutoModelForImageTextToText.from_pretrained(instruct_files).generation_config
    assert settings.eos_token_id == [NUM_BASE_TOKENS, END_ID]
    assert settings.pad_token_id == NUM_BASE_TOKENS
    assert settings.do_sample is False


def test_generation_settings_given_by_the_user_are_kept(instruct_files: Path) -> None:
    settings = AutoModelForImageTextToText.from_pretrained(instruct_files).generation_config
    settings.eos_token_id = PAD_ID
    model = AutoModelForImageTextToText.from_pretrained(instruct_files, generation_config=settings)
    assert model.generation_config.eos_token_id == PAD_ID


def test_released_configuration_fills_defaults_that_the_file_leaves_out() -> None:
    config = XGenMMConfig(
        vision_encoder_config={"anyres_patch_sampling": True, "image_aspect_ratio": "anyres"},
        vision_tokenizer_config={"model_type": "xgenmm_vision_tokenizer"},
        text_config={"initial_tokenizer_len": 32012, "model_type": "phi3", "sliding_window": 2047},
    )
    text, tower, resampler = config.text_config, config.vision_config, config.resampler_config
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (3072, 32, 8192)
    assert (text.vocab_size, text.pad_token_id, text.eos_token_id, text.sliding_window) == (32015, 32000, 32000, 2048)
    assert (tower.hidden_size, tower.num_hidden_layers, tower.image_size, tower.patch_size) == (1152, 27, 384, 14)
    assert (resampler.num_latents, resampler.hidden_size, resampler.output_size) == (128, 1152, 3072)
    assert config.image_grid_pinpoints == [[768, 384], [384, 768], [768, 768], [384, 1152], [1152, 384]]
    assert (config.image_token_id, config.lm_head_bias, config.tile_grouping) == (32012, True, "raster_chunks")


def copy_with_change(source: Path, destination: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Copy a released directory, with the tensors of its last shard changed and the index brought in line."""
    shutil.copytree(source, destination, dirs_exist_ok=True)
    shard = destination / "model-00003-of-00003.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    index = json.loads((destination / "model.safetensors.index.json").read_text())
    others = {name: file for name, file in index["weight_map"].items() if file != shard.name}
    index["weight_map"] = others | dict.fromkeys(tensors, shard.name)
    (destination / "model.safetensors.index.json").write_text(json.dumps(index))


def test_released_files_with_half_a_token_table_do_not_load(instruct_files: Path, tmp_path: Path) -> None:
    copy_with_change(
        instruct_files, tmp_path, lambda tensors: tensors.pop("vlm.lang_model.lm_head.additional_fc.weight")
    )
    with pytest.raises(RuntimeError):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [XGenMMForConditionalGeneration, XGenMMModel])
def test_released_files_that_lack_a_weight_are_refused_with_its_name(
    instruct_files: Path, tmp_path: Path, model_class: Any
) -> None:
    copy_with_change(instruct_files, tmp_path, lambda tensors: tensors.pop("vlm.lang_model.model.norm.weight"))
    with pytest.raises(ConversionError, match=r"lacks weights for (model\.)?language_model\.norm\.weight"):
        model_class.from_pretrained(tmp_path)


def test_released_files_with_an_unknown_weight_are_refused_with_its_name(instruct_files: Path, tmp_path: Path) -> None:
    copy_with_change(
        instruct_files, tmp_path, lambda tensors: tensors.update({"vlm.vision_tokenizer.frame_embs": torch.zeros(2)})
    )
    with pytest.raises(ConversionError, match="frame_embs"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_released_files_with_a_weight_of_another_shape_are_refused(instruct_files: Path, tmp_path: Path) -> None:
    copy_with_change(
        instruct_files, tmp_path, lambda tensors: tensors.update({"vlm.lang_model.model.norm.weight": torch.zeros(3)})
    )
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_directory_whose_index_points_outside_is_not_read(instruct_files: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(instruct_files, tmp_path / "checkpoint")
    shard = "model-00003-of-00003.safetensors"
    shutil.move(directory / shard, tmp_path / "outside.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard, "../outside.safetensors"))
    with pytest.raises(ConversionError, match=r"points outside its directory: \.\./outside\.safetensors"):
        AutoModelForImageTextToText.from_pretrained(directory)


def test_truncated_shard_is_named(instruct_files: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(instruct_files, tmp_path / "checkpoint")
    shard = directory / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors is truncated"):
        AutoModelForImageTextToText.from_pretrained(directory)


def test_join_of_token_rows_refuses_a_table_that_is_too_short(instruct_files: Path) -> None:
    config = AutoConfig.from_pretrained(instruct_files)
    tables = {"table": torch.zeros(5, 4), "added": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match="5 rows; expected at least 200"):
        JoinTokenRows().convert(tables, ["table", "added"], ["joined"], config=config)
