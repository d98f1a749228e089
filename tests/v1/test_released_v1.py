"""Files of the v1 release: loaded as they are, converted, and written back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests.conversion.released_files import image_settings, write_json, write_tokenizer
from tests.modeling.golden_cases import GOLDEN, load_case
from xgen_mm import XGenMMV1Config, XGenMMV1ForConditionalGeneration, XGenMMV1Model
from xgen_mm.conversion.convert_checkpoint import convert_checkpoint
from xgen_mm.conversion.inventory import build_inventory
from xgen_mm.conversion.key_rules import Drop
from xgen_mm.conversion.restore_checkpoint import restore_checkpoint
from xgen_mm.conversion.v1_rules import V1, V1_RULES

CHECKPOINT = GOLDEN / "v1" / "checkpoint"
STATE_DICT = Path(__file__).parents[1] / "golden" / "state_dict_v1.tsv"


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names (without prefix) and shapes of the released 4B model."""
    rows = [line.split("\t") for line in STATE_DICT.read_text().splitlines()]
    return {name.removeprefix("vlm."): tuple(int(n) for n in shape.strip("[]").split(",")) for name, shape, _ in rows}


def test_rules_use_every_released_weight_once_and_fill_every_weight_of_the_model() -> None:
    inventory = build_inventory(XGenMMV1Config(), V1)
    released = released_shapes()
    expected = dict(inventory.released)
    # Token tables have more rows in the release than the tokenizer has tokens; those are never looked up.
    for table in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        rows, *rest = expected[f"lang_model.{table}"]
        assert rows == 32012
        expected[f"lang_model.{table}"] = (32064, *rest)
    assert expected | {"vision_encoder.proj": (1280, 1024)} == released
    filled = [copy.ours for copies in inventory.copies.values() for copy in copies if copy.ours_start == 0]
    assert sorted(filled) == sorted(inventory.ours)


def test_only_the_unused_projection_is_left_out_and_the_reason_is_given() -> None:
    drops = [rule for rule in V1_RULES if isinstance(rule, Drop)]
    assert [rule.released for rule in drops] == ["vision_encoder.proj"]
    assert "never applied" in drops[0].reason


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_released_files_load_without_missing_or_unknown_weights(auto_class: type) -> None:
    model, info = auto_class.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert type(model) is XGenMMV1ForConditionalGeneration
    assert {name: found for name, found in info.items() if found} == {}
    assert model.generation_config.eos_token_id == [188, 195]


def test_released_files_load_into_the_model_without_head(caplog: pytest.LogCaptureFixture) -> None:
    base, info = XGenMMV1Model.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert "instantiate a model of type" not in caplog.text
    unknown = info.pop("unexpected_keys")
    assert {name: found for name, found in info.items() if found} == {}
    assert {name.partition(".lm_head.")[0] for name in unknown} == {"vlm.lang_model"}
    model = AutoModel.from_pretrained(CHECKPOINT)
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in base.state_dict().items())


def test_model_read_from_released_files_is_saved_in_our_layout(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(CHECKPOINT)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is XGenMMV1ForConditionalGeneration
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_converted_checkpoint_equals_direct_loading_and_converts_back(tmp_path: Path) -> None:
    convert_checkpoint(CHECKPOINT, tmp_path / "ours")
    direct, converted = (AutoModel.from_pretrained(path) for path in (CHECKPOINT, tmp_path / "ours"))
    assert type(converted) is XGenMMV1ForConditionalGeneration
    tensors = converted.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in direct.state_dict().items())
    assert converted.config.to_diff_dict().keys() == direct.config.to_diff_dict().keys()

    case = load_case("v1", "single_anyres")
    inputs = case.model_inputs(num_latents=8, tile_counts=[4], padding_side="left")
    inputs.pop("labels")
    ids = converted.generate(**inputs, max_new_tokens=10)[:, inputs["input_ids"].shape[1] :]
    assert ids.tolist() == case.tensors["out.generated.greedy"].tolist()

    restore_checkpoint(tmp_path / "ours", tmp_path / "back")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (CHECKPOINT / name).read_bytes()


@pytest.mark.parametrize("is_converted", [False, True])
def test_directory_answers_about_a_picture(
    tmp_path: Path, checker_image: Callable[[int, int], Image.Image], is_converted: bool
) -> None:
    directory = shutil.copytree(CHECKPOINT, tmp_path / "released")
    write_tokenizer(directory)
    # The v1 code has no entry for grids: they are hard-coded.
    settings = image_settings(None) | {
        "size": [56, 56],
        "image_mean": list(OPENAI_CLIP_MEAN),
        "image_std": list(OPENAI_CLIP_STD),
    }
    del settings["grids"]
    write_json(directory / "preprocessor_config.json", settings)
    if is_converted:
        convert_checkpoint(directory, tmp_path / "ours")
        directory = tmp_path / "ours"
    processor = AutoProcessor.from_pretrained(directory)
    assert list(processor.image_processor.image_mean) == OPENAI_CLIP_MEAN
    model = AutoModelForImageTextToText.from_pretrained(directory)
    inputs = processor(text="<image>What is this?", images=checker_image(40, 120), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 4, 3, 56, 56)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 4 * 8
    ids = model.generate(**inputs, max_new_tokens=4)
    assert ids.shape[1] > inputs["input_ids"].shape[1]
