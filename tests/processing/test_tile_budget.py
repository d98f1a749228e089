"""Fewer tiles on request: pictures, prompt and model agree about them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image

from xgen_mm import XGenMMForConditionalGeneration, XGenMMImageProcessor, XGenMMImageProcessorPil, XGenMMProcessor
from xgen_mm.anyres import best_canvas
from xgen_mm.processing.image_tiling import limited_size

Draw = Callable[[int, int], Image.Image]
RELEASED = [[768, 384], [384, 768], [768, 768], [384, 1152], [1152, 384]]
MORE = [[384 * rows, 384 * cols] for rows in range(1, 5) for cols in range(1, 5)]
both_classes = pytest.mark.parametrize("cls", [XGenMMImageProcessor, XGenMMImageProcessorPil])


def cost(canvas: tuple[int, int]) -> int:
    return 1 + canvas[0] * canvas[1] // 384**2


@pytest.mark.parametrize("pinpoints", [RELEASED, MORE], ids=["released", "many"])
@pytest.mark.parametrize("max_tiles", [3, 4, 5])
def test_limited_size_is_within_the_limit_for_whoever_plans_from_it(
    pinpoints: list[list[int]], max_tiles: int
) -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 4000, (400, 2)).tolist():
        size = limited_size((height, width), pinpoints=pinpoints, tile_size=384, max_tiles=max_tiles)
        assert cost(best_canvas(size, pinpoints)) <= max_tiles
        assert limited_size(size, pinpoints=pinpoints, tile_size=384, max_tiles=max_tiles) == size


def test_picture_within_the_limit_keeps_its_size() -> None:
    assert limited_size((300, 700), pinpoints=RELEASED, tile_size=384, max_tiles=3) == (300, 700)
    assert limited_size((3000, 2000), pinpoints=RELEASED, tile_size=384, max_tiles=None) == (3000, 2000)


@both_classes
@pytest.mark.parametrize(("max_tiles", "counts"), [(None, [5, 3, 4]), (4, [3, 3, 4]), (3, [3, 3, 3])])
def test_max_tiles_limits_each_picture(
    cls: Any, checker_image: Draw, max_tiles: int | None, counts: list[int]
) -> None:
    processor = cls()
    images = [checker_image(800, 800), checker_image(300, 700), checker_image(300, 1100)]
    outputs = processor(images, max_tiles=max_tiles, do_pad=False, return_tensors=None)
    assert [len(tiles) for tiles in outputs["pixel_values"]] == counts
    assert [
        processor.get_number_of_image_patches(image.height, image.width, {"max_tiles": max_tiles}) for image in images
    ] == counts


@both_classes
def test_limited_picture_is_what_the_smaller_picture_gives(cls: Any, checker_image: Draw) -> None:
    image = checker_image(800, 1200)
    limited = cls()(image, max_tiles=3, return_tensors="pt")
    smaller = cls()(image.resize((576, 384), Image.Resampling.BICUBIC), return_tensors="pt")
    assert limited["image_sizes"].tolist() == [[384, 576]]
    # Two of 256 levels is what the fast class may be away from Pillow; one of them is resized twice.
    assert (limited["pixel_values"] - smaller["pixel_values"]).abs().max() <= 4 * 2 / 255


@both_classes
def test_limit_may_be_a_stored_setting(cls: Any, checker_image: Draw, tmp_path: Any) -> None:
    cls(max_tiles=3).save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded(checker_image(800, 800), return_tensors="pt")["pixel_values"].shape[1] == 3


@both_classes
def test_limit_below_the_smallest_canvas_is_refused(cls: Any, checker_image: Draw) -> None:
    with pytest.raises(ValueError, match=r"`max_tiles` is 2.*costs 3 tiles"):
        cls()(checker_image(20, 20), max_tiles=2)


@pytest.mark.parametrize(
    ("limit", "tiles"),
    [
        pytest.param({"max_tiles": 3}, 3, id="tiles"),
        pytest.param({"max_image_tokens": 15}, 3, id="tokens"),
        pytest.param({"max_image_tokens": 20, "max_tiles": 3}, 3, id="fewer-tiles"),
        pytest.param({"max_image_tokens": 12, "max_tiles": 5}, 3, id="fewer-tokens"),
        pytest.param({"max_image_tokens": 100}, 5, id="no-limit"),
    ],
)
def test_prompt_and_model_follow_the_limit(
    tiny_processor: XGenMMProcessor,
    tiny_model: XGenMMForConditionalGeneration,
    checker_image: Draw,
    limit: dict[str, int],
    tiles: int,
) -> None:
    inputs = tiny_processor(text="<image>?", images=checker_image(50, 50), return_tensors="pt", **limit)
    assert int((inputs["input_ids"] == tiny_processor.image_token_id).sum()) == 4 * tiles
    assert tiny_processor._get_num_multimodal_tokens(image_sizes=[(50, 50)], **limit)["num_image_tokens"] == [
        4 * tiles
    ]
    with torch.no_grad():
        assert tiny_model(**inputs).image_hidden_states.shape[0] == 4 * tiles


def test_limit_reaches_chats(tiny_processor: XGenMMProcessor, checker_image: Draw) -> None:
    content = [{"type": "image", "image": checker_image(50, 50)}, {"type": "text", "text": "?"}]
    inputs = tiny_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"max_image_tokens": 12},
    )
    assert inputs["pixel_values"].shape[1] == 3


def test_picture_of_fixed_cost_only_needs_that_many_tokens(
    checker_image: Draw, tiny_processor: XGenMMProcessor
) -> None:
    tiny_processor.tile_grouping = "image"
    inputs = tiny_processor(
        text="<image>", images=checker_image(50, 50), max_image_tokens=4, return_tensors="pt", add_special_tokens=False
    )
    assert inputs["pixel_values"].shape[1] == 5
    assert (inputs["input_ids"] == tiny_processor.image_token_id).sum() == 4


def test_fewer_tokens_than_a_tile_costs_are_refused(tiny_processor: XGenMMProcessor, checker_image: Draw) -> None:
    with pytest.raises(ValueError, match="`max_image_tokens` is 3, but a tile costs 4"):
        tiny_processor(text="<image>", images=checker_image(50, 50), max_image_tokens=3)


@pytest.mark.parametrize("max_tiles", ["4", 2.5, True, 0, -1, 2, [4]])
def test_max_tiles_that_is_no_number_of_tiles_is_refused_wherever_it_is_given(
    max_tiles: object, tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> None:
    image_processor = tiny_processor.image_processor
    # Of the types, the host's own check comes first.
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="max_tiles"):
        image_processor(checker_image(40, 40), max_tiles=max_tiles)
    with pytest.raises(ValueError, match="`max_tiles` is"):
        image_processor.get_number_of_image_patches(40, 40, {"max_tiles": max_tiles})
