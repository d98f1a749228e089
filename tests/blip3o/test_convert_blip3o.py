import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.blip3o.small_blip3o import (
    byte_tokenizer,
    golden_config,
    golden_model,
    released_model_weights,
    text_fields,
    tower_fields,
    tower_weights,
)
from xgen_mm import Blip3oProcessor
from xgen_mm.cli.main import main
from xgen_mm.conversion.convert_blip3o import convert_blip3o, is_blip3o
from xgen_mm.conversion.convert_checkpoint import ConversionOptions
from xgen_mm.conversion.restore_checkpoint import restore_checkpoint
from xgen_mm.errors import ConversionError, XGenMMError


def write_released(directory: Path, *, has_tower: bool = False, is_tied: bool = False) -> Path:
    """A released directory of the golden model in two files; a tied one leaves the output layer out."""
    directory.mkdir()
    weights = released_model_weights("dit") | (tower_weights() if has_tower else {})
    if is_tied:
        del weights["lm_head.weight"]
    names = list(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, inside in parts.items():
        stored = {key: weights[key].bfloat16().contiguous() for key in inside}
        save_file(stored, directory / name, metadata={"format": "pt"})
    weight_map = {key: name for name, inside in parts.items() for key in inside}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    fields = text_fields()
    config: dict[str, Any] = fields.pop("text_config") | {"vision_config": fields["vision_config"]}
    config |= {"model_type": "blip3o_qwen_inference", "n_query": 64, "tokenizer_model_max_length": 300}
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": is_tied}))
    byte_tokenizer().save_pretrained(directory)
    return directory


def sizes(directory: Path, *, has_tower: bool = False, is_tied: bool = False) -> Path:
    """Configuration file with the sizes that a released one lacks."""
    config = golden_config(**({"feature_config": tower_fields()} if has_tower else {}))
    config.text_config.tie_word_embeddings = is_tied
    config.save_pretrained(directory / "sizes")
    return directory / "sizes"


@pytest.mark.parametrize(("has_tower", "is_tied"), [(False, False), (True, False), (False, True)])
def test_conversion_there_and_back_changes_no_byte(tmp_path: Path, has_tower: bool, is_tied: bool) -> None:
    source = write_released(tmp_path / "released", has_tower=has_tower, is_tied=is_tied)
    assert is_blip3o(source)
    options = ConversionOptions(config=sizes(tmp_path, has_tower=has_tower, is_tied=is_tied))
    report = convert_blip3o(source, tmp_path / "ours", options=options)
    assert report.left_over == {}
    restore_checkpoint(tmp_path / "ours", tmp_path / "back")
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name

    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (model.feature_tower is not None) == has_tower
    expected = golden_model().state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith(("feature_tower.", "language_model.lm_head.")):
            assert torch.equal(tensor, expected[name].bfloat16().float()), name
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor) is Blip3oProcessor
    assert processor.max_prompt_length == 300


def test_conversion_command_finds_the_family_and_writes_the_type_asked_for(tmp_path: Path) -> None:
    source = write_released(tmp_path / "released")
    command = ["convert", str(source), str(tmp_path / "ours"), "--config", str(sizes(tmp_path)), "--dtype", "float32"]
    assert main([*command, "--discard-original"]) == 0
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float32"
    with pytest.raises(ConversionError, match="keeps no record of its original"):
        restore_checkpoint(tmp_path / "ours", tmp_path / "back")


def test_conversion_other_sizes_are_refused_with_all_names(tmp_path: Path) -> None:
    source = write_released(tmp_path / "released")
    with pytest.raises(ConversionError, match=r"missing: .*layers\.23\..* of the wrong shape: .*pass `--config`"):
        convert_blip3o(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_conversion_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    source = write_released(tmp_path / "released")
    name, index = "model-00001-of-00002.safetensors", source / "model.safetensors.index.json"
    save_file(load_file(source / name) | {"model.stranger": torch.zeros(1)}, source / name)
    content = json.loads(index.read_text())
    content["weight_map"]["model.stranger"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"1 unknown: model\.stranger"):
        convert_blip3o(source, tmp_path / "ours", options=ConversionOptions(config=sizes(tmp_path)))


def test_conversion_tokenizer_with_other_ids_is_refused(tmp_path: Path) -> None:
    source = write_released(tmp_path / "released")
    home = sizes(tmp_path)
    fields = json.loads((home / "config.json").read_text()) | {"query_token_id": 151666}
    (home / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        ConversionError, match=r"the ids \[151665, 151667\], but the model has them at \[151665, 151666"
    ):
        convert_blip3o(source, tmp_path / "ours", options=ConversionOptions(config=home))


def test_conversion_configuration_of_another_family_is_refused(tmp_path: Path) -> None:
    source = write_released(tmp_path / "released")
    (source / "config.json").write_text('{"model_type": "phi3"}')
    with pytest.raises(XGenMMError, match=r"is a `phi3` model; expected .*`blip3o_qwen`"):
        convert_blip3o(source, tmp_path / "ours")


def test_directory_without_weights_is_not_taken_for_a_release(tmp_path: Path) -> None:
    assert not is_blip3o(tmp_path)
    assert not is_blip3o(tmp_path / "absent")
