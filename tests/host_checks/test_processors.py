"""Processor and image processors: how arguments reach the parts, and that both image processors agree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast

from xgen_mm import XGenMMImageProcessor, XGenMMImageProcessorPil, XGenMMProcessor

CLASSES = (XGenMMImageProcessor, XGenMMImageProcessorPil)
SETTINGS: dict[str, Any] = {
    "size": {"height": 20, "width": 20},
    "image_grid_pinpoints": [[40, 20], [20, 40], [40, 40]],
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
TEXT = "lower newer <image> upper"
Draw = Callable[[int, int], Image.Image]


@pytest.fixture(params=CLASSES, ids=["tensors", "pillow"])
def processor(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> XGenMMProcessor:
    return XGenMMProcessor(request.param(**SETTINGS), tiny_tokenizer, num_latents=4)


def test_processor_survives_saving(processor: XGenMMProcessor, checker_image: Draw, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = XGenMMProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert type(AutoProcessor.from_pretrained(tmp_path)) is XGenMMProcessor
    inputs = {"text": TEXT, "images": checker_image(30, 50), "return_tensors": "pt"}
    ours, other = processor(**inputs), loaded(**inputs)
    assert torch.equal(ours["input_ids"], other["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], other["pixel_values"], atol=0.05, rtol=0.0)


def test_output_names_are_the_announced_ones(processor: XGenMMProcessor, checker_image: Draw) -> None:
    outputs = processor(text=TEXT, images=checker_image(30, 50), return_tensors="pt")
    assert sorted(outputs) == sorted(processor.model_input_names)
    assert set(outputs) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}


def test_text_without_pictures_has_no_picture_inputs(processor: XGenMMProcessor) -> None:
    assert set(processor(text="lower newer", return_tensors="pt")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "by-part"])
def test_arguments_of_a_call_reach_tokenizer_and_image_processor(
    processor: XGenMMProcessor, checker_image: Draw, nested: bool
) -> None:
    for_pictures: dict[str, Any] = {"do_rescale": True, "rescale_factor": -1.0, "do_normalize": False}
    for_text: dict[str, Any] = {"padding": "max_length", "max_length": 112}
    arguments = {"images_kwargs": for_pictures, "text_kwargs": for_text} if nested else for_pictures | for_text
    outputs = processor(text=TEXT, images=checker_image(30, 50), return_tensors="pt", **arguments)
    assert outputs["input_ids"].shape == (1, 112)
    assert outputs["pixel_values"].mean() < -1.0


def test_settings_of_the_parts_hold_where_a_call_names_none(
    checker_image: Draw, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    image_processor = XGenMMImageProcessor(**(SETTINGS | {"rescale_factor": -1.0, "do_normalize": False}))
    processor = XGenMMProcessor(image_processor, tiny_tokenizer, num_latents=4)
    assert processor(text=TEXT, images=checker_image(30, 50), return_tensors="pt")["pixel_values"].mean() < -1.0
    positive = processor(text=TEXT, images=checker_image(30, 50), rescale_factor=1.0, return_tensors="pt")
    assert positive["pixel_values"].mean() > 1.0


def test_unknown_argument_is_refused(processor: XGenMMProcessor, checker_image: Draw) -> None:
    with pytest.raises((TypeError, ValueError), match="tile_count"):
        processor(text=TEXT, images=checker_image(30, 50), images_kwargs={"tile_count": 3})


def test_other_number_of_pictures_is_refused_in_words_of_the_host(
    processor: XGenMMProcessor, checker_image: Draw
) -> None:
    pictures = [[checker_image(30, 50)] for _ in range(4)]
    with pytest.raises(ValueError, match=" tokens in the prompts should be the same as the number of "):
        processor(text=[TEXT] * 3, images=pictures, padding=True)


def test_counted_image_tokens_equal_those_of_a_call(processor: XGenMMProcessor, checker_image: Draw) -> None:
    sizes = [(30, 50), (64, 20), (33, 33), (1, 90)]
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes)
    outputs = processor(text="<image>" * 4, images=[checker_image(*size) for size in sizes])
    assert outputs["input_ids"][0].count(processor.image_token_id) == sum(counted["num_image_tokens"])
    assert counted["num_image_patches"] == [1] * 4


def test_chat_template_gives_the_inputs_of_a_call(processor: XGenMMProcessor, checker_image: Draw) -> None:
    picture = checker_image(30, 50)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "lower newer"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    outputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = processor(text=text, images=picture, add_special_tokens=False, return_tensors="pt")
    assert torch.equal(outputs["input_ids"], expected["input_ids"])
    assert torch.equal(outputs["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("mode", ["anyres", "pad", "none"])
def test_image_processors_agree(checker_image: Draw, mode: str) -> None:
    pictures = [checker_image(50, 90), checker_image(77, 31), checker_image(40, 40)]
    ours, reference = (cls(image_aspect_ratio=mode, **SETTINGS)(pictures, return_tensors="pt") for cls in CLASSES)
    assert sorted(ours) == sorted(reference)
    torch.testing.assert_close(ours["pixel_values"], reference["pixel_values"], atol=0.1, rtol=1e-3)
    assert (ours["pixel_values"] - reference["pixel_values"]).abs().mean() < 5e-3
    assert all(torch.equal(ours[name], reference[name]) for name in set(ours) - {"pixel_values"})


@pytest.mark.parametrize("image_class", CLASSES)
def test_forms_of_a_picture_give_the_same_tiles(checker_image: Draw, image_class: type) -> None:
    image_processor = image_class(**SETTINGS)
    picture = checker_image(50, 90)
    array = np.asarray(picture)
    expected = image_processor(picture, return_tensors="pt")
    for form in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), [picture], [[picture]]):
        outputs = image_processor(form, return_tensors="pt")
        assert torch.equal(outputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(outputs["image_sizes"], expected["image_sizes"])


@pytest.mark.parametrize("image_class", CLASSES)
def test_image_processor_survives_saving(tmp_path: Path, image_class: type) -> None:
    image_processor = image_class(**SETTINGS)
    image_processor.save_pretrained(tmp_path)
    loaded = image_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    changed = image_class.from_dict(image_processor.to_dict(), do_rescale=False)
    assert changed.do_rescale is False
    for backend, expected in (("torchvision", XGenMMImageProcessor), ("pil", XGenMMImageProcessorPil)):
        assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is expected


@pytest.mark.parametrize("image_class", CLASSES)
def test_settings_of_one_image_processor_leave_others_alone(image_class: type) -> None:
    first, second = image_class(), image_class()
    first.size["height"] = 1
    first.image_grid_pinpoints.append([1, 1])
    assert second.size["height"] == image_class().size["height"] == 384
    assert [1, 1] not in second.image_grid_pinpoints
    assert [1, 1] not in image_class().image_grid_pinpoints


def test_prepared_inputs_can_be_cast_and_moved(processor: XGenMMProcessor, checker_image: Draw) -> None:
    outputs = processor(text=TEXT, images=checker_image(30, 50), return_tensors="pt")
    cast = outputs.to(torch.bfloat16)
    assert cast["pixel_values"].dtype == torch.bfloat16
    assert cast["input_ids"].dtype == cast["image_sizes"].dtype == torch.int64
