import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from tests.conversion.released_files import GRIDS, IMAGE_ID, image_settings, write_released_files
from xgen_mm import XGenMMProcessor
from xgen_mm.processing.chat_template import RELEASED_SYSTEM_PROMPT
from xgen_mm.processing.released_processor import drop_placeholders, translate_image_settings

NUM_LATENTS = 8
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture(scope="module")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_files(tmp_path_factory.mktemp("released") / "original")


@pytest.fixture(scope="module")
def tiled_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_files(tmp_path_factory.mktemp("released") / "original", grids=GRIDS)


def test_processor_of_released_files_knows_the_added_tokens(tiled_files: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiled_files)
    assert type(processor) is XGenMMProcessor
    tokens = ["<image>", "<image placeholder>", "<|endofchunk|>"]
    assert processor.tokenizer.convert_tokens_to_ids(tokens) == [IMAGE_ID, IMAGE_ID + 1, IMAGE_ID + 2]
    assert len(processor.tokenizer) == IMAGE_ID + 3
    assert processor.num_latents == NUM_LATENTS
    assert processor.tokenizer.padding_side == "left"


def test_processor_of_released_files_tokenises_as_its_file_says(tiled_files: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(tiled_files).tokenizer
    # The file puts a space mark before every text, also behind a special token; the class it names would not.
    ids = tokenizer("<|user|>\nab<image>c")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|user|>", "▁", "a", "b", "<image>", "▁", "c"]


def test_processor_of_instruct_files_tiles_and_has_the_released_system_prompt(tiled_files: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiled_files)
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert prompt == (
        f"<|system|>\n{RELEASED_SYSTEM_PROMPT}<|end|>\n<|user|>\n<image>\nWhat is this?<|end|>\n<|assistant|>\n"
    )
    inputs = processor(text="<image> a", images=Image.new("RGB", (116, 58)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 3, 58, 58)
    assert (inputs["input_ids"] == IMAGE_ID).sum() == 3 * NUM_LATENTS
    assert processor.image_processor.image_grid_pinpoints == [[116, 58], [58, 116], [116, 116], [58, 174], [174, 58]]


def test_processor_of_base_files_takes_one_tile_and_no_system_prompt(base_files: Path) -> None:
    processor = AutoProcessor.from_pretrained(base_files)
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert prompt == "<|user|>\n<image>\nWhat is this?<|end|>\n<|assistant|>\n"
    inputs = processor(text="<image>a", images=Image.new("RGB", (100, 60)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 3, 58, 58)
    assert "image_sizes" not in inputs


def test_processor_of_base_files_accepts_prompts_with_written_out_placeholders(base_files: Path) -> None:
    processor = AutoProcessor.from_pretrained(base_files)
    picture = Image.new("RGB", (100, 60))
    short = processor(text="<image>a", images=picture)
    long = processor(text="<image>" + "<image placeholder>" * (NUM_LATENTS - 1) + "a", images=picture)
    assert long["input_ids"] == short["input_ids"]


def test_processor_of_base_files_can_be_told_to_tile(base_files: Path) -> None:
    processor = AutoProcessor.from_pretrained(base_files, image_aspect_ratio="anyres")
    assert processor.image_processor.image_aspect_ratio == "anyres"


def test_saved_processor_of_released_files_gives_the_same_inputs(tiled_files: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiled_files)
    processor.save_pretrained(tmp_path)
    shutil.copy(tiled_files / "config.json", tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(QUESTION)
    assert again.apply_chat_template(QUESTION) == text
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    expected, found = (item(text=text, images=picture, return_tensors="pt") for item in (processor, again))
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)
    # Serving engines ask the tokenizer for the prompt format.
    assert again.tokenizer.chat_template == again.chat_template


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_image_processor_of_released_files_is_ours(base_files: Path, backend: str) -> None:
    processor = AutoImageProcessor.from_pretrained(base_files, backend=backend)
    assert type(processor).__module__.startswith("xgen_mm.")
    assert processor.backend == backend


@pytest.mark.parametrize(
    ("changes", "source", "expected"),
    [
        pytest.param({"grids": None}, "some/checkpoint", "none", id="null-grids"),
        pytest.param({"grids": GRIDS}, "some/checkpoint", "anyres", id="listed-grids"),
        pytest.param({"grids": None}, "hub/xgen-mm-phi3-mini-instruct-dpo-r-v1.5", "anyres", id="instruct-by-name"),
        pytest.param({"grids": None}, "hub/xgen-mm-phi3-mini-base-r-v1.5", "none", id="base-by-name"),
    ],
)
def test_image_settings_tile_as_the_file_says(changes: dict[str, Any], source: str, expected: str) -> None:
    settings = translate_image_settings(image_settings(None) | changes, source=source)
    assert settings["image_aspect_ratio"] == expected


def test_image_settings_without_grids_entry_tile_in_the_released_shapes() -> None:
    settings = image_settings(None)
    del settings["grids"]
    ours = translate_image_settings(settings, source="v1")
    assert ours["image_aspect_ratio"] == "anyres"
    assert ours["image_grid_pinpoints"] == [[116, 58], [58, 116], [116, 116], [58, 174], [174, 58]]


def test_image_settings_of_our_own_files_are_returned_as_they_are() -> None:
    settings = {"image_processor_type": "XGenMMImageProcessor", "image_aspect_ratio": "pad"}
    assert translate_image_settings(settings, source="x") is settings


def test_image_settings_with_another_way_of_resizing_are_refused() -> None:
    with pytest.raises(ValueError, match="`resize_mode` 'longest'"):
        translate_image_settings(image_settings(None) | {"resize_mode": "longest"}, source="x")


def test_image_settings_without_grids_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        translate_image_settings(image_settings(None), source="x")
    assert "lists no grids" in caplog.text


def test_placeholders_are_dropped_from_texts_only() -> None:
    assert drop_placeholders(["<image><image placeholder>a", "b"]) == ["<image>a", "b"]
    assert drop_placeholders(None) is None


def test_released_files_hold_what_the_original_settings_hold(base_files: Path) -> None:
    settings = json.loads((base_files / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "Blip3ImageProcessor"
