"""What scripts for the released code call: read where it means the same, refused by name where it does not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.modeling import test_modeling_xgen_mm as small
from tests.v1 import small_v1
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.modeling.released_calls import join_tiles

Nest = Callable[[torch.Tensor, list[int]], Any]

SIZES, COUNTS = [small.WIDE, small.SQUARE, small.TALL], [4, 5, 4]
# What the released image processor returns for one image is (1, tiles, 3, S, S).
NESTINGS: dict[str, Nest] = {
    "released": lambda pixels, counts: [
        [pixels[0:1, : counts[0]]],
        [],
        [pixels[1:2, : counts[1]], pixels[2:3, : counts[2]]],
    ],
    "flat": lambda pixels, counts: [row[:count] for row, count in zip(pixels, counts, strict=True)],
    "padded": lambda pixels, counts: list(pixels),
    "arrays": lambda pixels, counts: [(row[:count].numpy(),) for row, count in zip(pixels, counts, strict=True)],
    "array": lambda pixels, counts: pixels.numpy(),
    "six-dimensions": lambda pixels, counts: pixels[None],
    "tiles": lambda pixels, counts: [
        [list(row[:count]) for row, count in zip(pixels, counts, strict=True)],
    ],
}


@pytest.fixture(scope="module")
def models() -> dict[str, XGenMMForConditionalGeneration]:
    return {"v1.5": small.build(), "v1": small_v1.build()}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("version", ["v1.5", "v1"])
def test_nested_pixel_values_give_what_the_tensor_gives(
    models: dict[str, XGenMMForConditionalGeneration], nesting: str, version: str
) -> None:
    model = models[version]
    batch = small.left_pad(small.ROWS) | small.make_images(SIZES, COUNTS)
    nested = batch | {"pixel_values": NESTINGS[nesting](batch["pixel_values"], COUNTS)}
    with torch.no_grad():
        torch.testing.assert_close(model(**nested).logits, model(**batch).logits)
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert model.generate(**nested, **settings).tolist() == model.generate(**batch, **settings).tolist()


def test_images_of_one_tile_need_no_sizes() -> None:
    pixels = torch.randn(3, 3, 28, 28)
    # Without tiles the released image processor gives (1, num_images, 1, 3, S, S).
    assert torch.equal(join_tiles(pixels[None, :, None]), pixels)
    assert torch.equal(join_tiles([[pixels[0], pixels[1][None]], [pixels[2:][None]]]), pixels)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        pytest.param([], "empty list", id="empty"),
        pytest.param([[]], "empty list", id="empty-sample"),
        pytest.param([["a.png"]], "holds a `str`", id="path"),
        pytest.param([torch.zeros(28, 28)], r"shape \(28, 28\)", id="plane"),
        pytest.param([np.zeros((2, 3, 28, 28)), np.zeros((2, 3, 14, 14))], "one shape", id="sizes"),
    ],
)
def test_other_nested_values_are_refused(pixel_values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        join_tiles(pixel_values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", ["v1.5", "v1"])
@pytest.mark.parametrize("method", ["generate", "forward", "get_image_features"])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"image_size": [(60, 20)]}, r"`image_size` \[\(60, 20\)\], \(width, height\) .* pass `image_sizes`"),
        ({"image_size": [[(60, 20)]]}, "pass `image_sizes`"),
        ({"vision_x": 1}, "pass `pixel_values`"),
        ({"lang_x": 1}, "pass `input_ids`"),
    ],
)
def test_arguments_of_the_released_code_are_refused_by_name(
    models: dict[str, XGenMMForConditionalGeneration],
    version: str,
    method: str,
    argument: dict[str, Any],
    message: str,
) -> None:
    # One tile and no sizes: without a refusal the image would be read, as another one than was meant.
    inputs = small.left_pad([small.prompt([10], 1)]) | {"pixel_values": torch.randn(1, 1, 3, 28, 28)}
    if method == "get_image_features" and version == "v1.5":
        inputs = {"pixel_values": inputs["pixel_values"]}
    with pytest.raises(ValueError, match=message) as refused:
        getattr(models[version], method)(**inputs, **argument)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sizes", [[[(20, 60)]], torch.tensor([[[20, 60]]]), [20, 60], [(20, 60, 3)]])
def test_nested_sizes_are_refused(models: dict[str, XGenMMForConditionalGeneration], sizes: Any) -> None:
    inputs = small.left_pad([small.prompt([10], 4)]) | small.make_images([small.WIDE], [4]) | {"image_sizes": sizes}
    with pytest.raises(ValueError, match=r"`image_sizes` is .* one \(height, width\) per image"):
        models["v1.5"](**inputs)


def test_cached_images_are_left_out_whatever_holds_their_sizes(
    models: dict[str, XGenMMForConditionalGeneration],
) -> None:
    model = models["v1.5"]
    whole = small.left_pad([small.prompt([10], 4, [11], 5, [12])]) | small.make_images(SIZES[:2], COUNTS[:2])
    first = {name: whole[name][:, : 2 + 4 * small.LATENTS] for name in ("input_ids", "attention_mask")}
    first |= {name: whole[name][:1] for name in ("pixel_values", "image_sizes")}
    settings = {"max_new_tokens": 3, "do_sample": False}

    def answer(**changes: Any) -> list[list[int]]:
        cache = model(**first, use_cache=True).to_tuple()[1]
        found: list[list[int]] = model.generate(**(whole | changes), cache=cache, **settings).tolist()
        return found

    expected = answer()
    assert answer(image_sizes=[tuple(size) for size in SIZES[:2]]) == expected
    assert expected == model.generate(**whole, **settings).tolist()


def test_update_special_tokens_returns_the_tokenizer_of_the_processor(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor
) -> None:
    tokenizer, length = tiny_processor.tokenizer, len(tiny_processor.tokenizer)
    assert tiny_model.update_special_tokens(tokenizer) is tokenizer
    assert len(tokenizer) == length


class ForeignTokenizer:
    """Stands for a tokenizer loaded alone; `<image>` is where it is told."""

    unk_token_id = 0

    def __init__(self, image_token_id: int) -> None:
        self.image_token_id = image_token_id

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.image_token_id


@pytest.mark.parametrize(("found", "message"), [(0, "no token `<image>`"), (77, "`<image>` at 77")])
def test_update_special_tokens_refuses_another_tokenizer(
    models: dict[str, XGenMMForConditionalGeneration], found: int, message: str
) -> None:
    for model in models.values():
        with pytest.raises(ValueError, match=f"{message}.*AutoProcessor"):
            model.update_special_tokens(ForeignTokenizer(found))


@pytest.mark.parametrize("is_listed", [True, False])
def test_image_processor_of_an_untiled_checkpoint_tiles_when_a_call_asks(
    tiny_processor: XGenMMProcessor, checker_image: Any, is_listed: bool
) -> None:
    image, image_processor = checker_image(20, 60), tiny_processor.image_processor
    expected = image_processor([image], return_tensors="pt")
    image_processor.image_aspect_ratio = "none"
    images = [image] if is_listed else image
    found = image_processor(images, image_aspect_ratio="anyres", return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert found["image_sizes"].tolist() == [[20, 60]]
    assert image_processor(images, return_tensors="pt")["pixel_values"].shape[1] == 1
