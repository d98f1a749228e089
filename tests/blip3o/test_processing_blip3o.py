import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.blip3o.small_blip3o import byte_tokenizer, golden, meta, text_processor
from xgen_mm import Blip3oImageProcessor, Blip3oProcessor
from xgen_mm.blip3o.modeling_blip3o import Blip3oImageOutput

QUERIES = [151667] * 64


@pytest.fixture(scope="module")
def processor() -> Blip3oProcessor:
    return Blip3oProcessor(Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56), byte_tokenizer())


def image() -> Image.Image:
    return Image.fromarray(np.arange(56 * 56 * 3, dtype=np.uint8).reshape(56, 56, 3))


def test_training_prompts_are_the_golden_ones(processor: Blip3oProcessor) -> None:
    inputs = processor(text=meta()["training"]["captions"], generation_mode="image", template="training")
    assert torch.equal(inputs["input_ids"], golden("training")["t2i.input_ids"])
    assert torch.equal(inputs["attention_mask"], golden("training")["t2i.attention_mask"])
    assert inputs["input_ids"].argmax(1).tolist() == golden("training")["t2i.query_start"].tolist()


def test_inference_prompts_are_the_golden_ones(processor: Blip3oProcessor) -> None:
    for i, caption in enumerate(meta()["training"]["captions"][:2]):
        ids = processor(text=caption, generation_mode="image")["input_ids"]
        assert ids.tolist() == [golden("sampling")[f"cond{i}.input_ids"][0].tolist() + QUERIES]
    ids = processor(text=" ", generation_mode="image", template="none")["input_ids"]
    assert ids.tolist() == [golden("sampling")["cond2.input_ids"][0].tolist() + QUERIES]


def test_templates_differ_by_the_end_of_the_empty_answer(processor: Blip3oProcessor) -> None:
    """The original trains on one and draws from the other without saying so."""
    trained, drawn = (
        processor(text="a cat", generation_mode="image", template=template)["input_ids"][0].tolist()
        for template in ("training", "inference")
    )
    place = drawn.index(151665)
    assert trained == [*drawn[:place], 151645, ord("\n"), *drawn[place:]]


def test_long_caption_loses_its_end(processor: Blip3oProcessor) -> None:
    expected = golden("training")["long.input_ids"]
    text = bytes(expected[0, :447].clamp(max=255).tolist()).decode("latin1")
    caption = text.partition("caption: ")[2] + "and still more of it" * 5
    inputs = processor(text=caption, generation_mode="image", template="training")
    assert torch.equal(inputs["input_ids"], expected)


def test_reconstruction_prompts_are_the_golden_ones(processor: Blip3oProcessor) -> None:
    training = processor(images=image(), generation_mode="image", template="training", target_images=image())
    assert torch.equal(training["input_ids"], golden("training")["i2i.input_ids"])
    assert torch.equal(training["image_grid_thw"], golden("training")["i2i.grid_thw"])
    assert training["target_pixel_values"].shape == (1, 3, 448, 448)
    drawn = processor(images=[image(), image()], generation_mode="image")
    assert drawn["input_ids"].tolist() == [golden("sampling")["cond_i2i.input_ids"][0].tolist() + QUERIES] * 2
    assert drawn["pixel_values"].shape == (32, 1176)


def test_image_prompts_are_padded_on_the_right_and_their_mask_is_as_long(processor: Blip3oProcessor) -> None:
    """The original's mask at inference is one position short."""
    inputs = processor(text=["a cat", "a longer caption"], generation_mode="image")
    assert inputs["attention_mask"].shape == inputs["input_ids"].shape
    assert inputs["attention_mask"].sum(1).tolist() == [117 + 64, 117 + 64 + 11]
    assert inputs["input_ids"][0, -11:].tolist() == [151643] * 11


def test_text_prompts_are_padded_on_the_left_and_hold_image_tokens(processor: Blip3oProcessor) -> None:
    inputs = processor(text=["<|image_pad|>what?", "a"], images=[image()], return_tensors="pt", padding=True)
    assert inputs["input_ids"][0].tolist() == [151655] * 4 + list(b"what?")
    assert inputs["input_ids"][1].tolist() == [151643] * 8 + [ord("a")]
    assert inputs["mm_token_type_ids"][0].tolist() == [1] * 4 + [0] * 5


def test_image_chat_is_taken_as_it_is_written(processor: Blip3oProcessor) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "draw a cat"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor(text=text, generation_mode="image", template="none")["input_ids"][0].tolist()
    assert processor.tokenizer.decode(ids[:-65]) == text
    assert ids[-65:] == [151665, *QUERIES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a <image>"}, "The caption 'a <image>' holds the special token `<image>`"),
        ({"text": "a <|im_end|>"}, r"holds the special token `<\|im_end\|>`"),
        ({"text": "a <image>", "template": "none"}, "A text holds `<image>`, which stands for a query vector"),
        ({"text": "a", "template": "mine"}, "`template` is 'mine'"),
        ({"text": "a", "generation_mode": "audio"}, "`generation_mode` is 'audio'"),
        ({}, "neither `text` nor `images`; give captions to draw, or images"),
        ({"text": "a", "images": image()}, "Given are text and images; give captions to draw, or images"),
        ({"text": []}, "at least one"),
        ({"images": []}, "at least one"),
    ],
)
def test_unusable_prompt_is_refused(processor: Blip3oProcessor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**{"generation_mode": "image"} | arguments)


def test_images_are_refused_where_the_language_model_takes_none() -> None:
    with pytest.raises(ValueError, match="`images` are given, but the language model takes none"):
        text_processor()(images=image(), generation_mode="image")


def test_tokenizer_without_the_placeholders_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no token `\[BILD\]`; add it"):
        text_processor(image_start_token="[BILD]")
    with pytest.raises(ValueError, match="`max_prompt_length` is 65, of which placeholders take 65"):
        text_processor(max_prompt_length=65)


def test_pixels_become_images() -> None:
    processor = text_processor()
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 2, 4)
    for outputs in (pixels, Blip3oImageOutput(pixel_values=pixels)):
        found = processor.post_process_multimodal_output(outputs, generation_mode="image")
        assert [picture.size for picture in found] == [(4, 2)] * 2
        assert found[0].getpixel((0, 0)) == (0, 128, 255)
    texts = processor.post_process_multimodal_output(torch.tensor([[65, 66, 151645]]))
    assert texts == ["AB"]
    with pytest.raises(ValueError, match=r"found shape \(2, 8, 4, 4\)\. A model without pixel decoder"):
        processor.post_process_multimodal_output(torch.zeros(2, 8, 4, 4), generation_mode="image")
    with pytest.raises(ValueError, match="`generation_mode` is 'audio'"):
        processor.post_process_multimodal_output(pixels, generation_mode="audio")


@pytest.mark.parametrize("takes_images", [True, False])
def test_processor_survives_saving(processor: Blip3oProcessor, tmp_path: Path, takes_images: bool) -> None:
    saved = processor if takes_images else text_processor(num_queries=8, max_prompt_length=100, system_message=None)
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is Blip3oProcessor
    assert type(loaded.target_image_processor) is Blip3oImageProcessor
    assert type(loaded.image_processor) is type(saved.image_processor)
    for template in ("training", "inference"):
        expected, found = (
            found(text=["a cat", "b"], generation_mode="image", template=template) for found in (saved, loaded)
        )
        assert torch.equal(found["input_ids"], expected["input_ids"])
    found = loaded.target_image_processor(image(), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, Blip3oImageProcessor()(image(), return_tensors="pt")["pixel_values"])
    # Alone, it is found too.
    Blip3oImageProcessor().save_pretrained(tmp_path / "alone")
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "alone")) is Blip3oImageProcessor


def test_released_directory_gives_a_processor(tmp_path: Path) -> None:
    """It has the language model's settings only, and a `config.json` of another model type."""
    byte_tokenizer().save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip3o_qwen_inference", "hidden_size": 64}))
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is Blip3oProcessor
    assert type(loaded.target_image_processor) is Blip3oImageProcessor
    assert loaded.image_processor.size["shortest_edge"] == 56 * 56
    ids = loaded(text="a cat", generation_mode="image")["input_ids"][0].tolist()
    assert ids == golden("sampling")["cond0.input_ids"][0].tolist() + QUERIES


def test_max_length_of_a_call_cuts_the_text() -> None:
    processor = text_processor()
    ids = processor(text="a cat", generation_mode="image", max_length=70, padding=True)["input_ids"]
    assert ids[0].tolist() == [151644, *b"syst", 151665, *QUERIES]
    with pytest.raises(ValueError, match="`max_length` is 65, of which placeholders take 65"):
        processor(text="a cat", generation_mode="image", max_length=65)


@pytest.mark.parametrize(("height", "top"), [(448, 0), (449, 0), (451, 2), (453, 2), (455, 4)])
def test_middle_of_odd_rests_rounds_to_even(height: int, top: int) -> None:
    rows = np.arange(height, dtype=np.float32)[None, :, None].repeat(448, axis=2)
    cut = Blip3oImageProcessor().center_crop(rows, Blip3oImageProcessor().crop_size)
    assert cut.shape == (1, 448, 448)
    assert int(cut[0, 0, 0]) == top
