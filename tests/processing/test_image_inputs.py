"""Images in every shape in which people hand them over count, and are processed, as the same images in a list."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from xgen_mm import XGenMMProcessor
from xgen_mm.errors import ImageInputError, PlaceholderMismatchError

TEXT = "<image> and <image>"
Draw = Callable[[int, int], Image.Image]


def encode(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def column(images: list[Image.Image]) -> Any:
    rows = [{"image": {"bytes": encode(image), "path": None}} for image in images]
    return datasets.Dataset.from_list(rows)["image"]


def object_array(images: list[Image.Image]) -> Any:
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return array


TWO_IMAGES: dict[str, Callable[[list[Image.Image]], Any]] = {
    "tuple": tuple,
    "generator": lambda images: iter(images),
    "map": lambda images: map(np.asarray, images),
    "stacked-array": lambda images: np.stack([np.asarray(image) for image in images]),
    "stacked-tensor": lambda images: torch.stack([torch.tensor(np.asarray(image)) for image in images]),
    "stacked-channels-first": lambda images: torch.stack(
        [torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in images]
    ),
    "stack-in-a-list": lambda images: [np.stack([np.asarray(image) for image in images])],
    "stack-in-a-sample": lambda images: [[np.stack([np.asarray(image) for image in images])]],
    "column": column,
    "object-array": object_array,
    "bytes-and-path": lambda images: [{"bytes": encode(image), "path": "elsewhere.png"} for image in images],
    "with-none": lambda images: [[*images, None]],
    "none-between": lambda images: [[images[0], None, images[1]]],
}


@pytest.mark.parametrize("arrange", TWO_IMAGES.values(), ids=TWO_IMAGES)
def test_two_images_in_any_shape_are_two_images(
    arrange: Callable[[list[Image.Image]], Any], tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    images = [checker_image(30, 40), checker_image(30, 40).rotate(180)]
    expected = tiny_processor(text=TEXT, images=images, return_tensors="pt")
    found = tiny_processor(text=TEXT, images=arrange(images), return_tensors="pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("images", [[], (), [[], []], [None, None], [[None], []], iter(()), np.empty(0, dtype=object)])
def test_no_images_in_any_shape_are_text_alone(images: Any, tiny_processor: XGenMMProcessor) -> None:
    texts = ["One.", "Two."]
    found = tiny_processor(text=texts, images=images, padding=True, return_tensors="pt")
    assert found.keys() == tiny_processor(text=texts, padding=True, return_tensors="pt").keys()


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda image: [image, None], id="none"),
        pytest.param(lambda image: [[image], []], id="empty-list"),
        pytest.param(lambda image: ((image,), None), id="tuples"),
        pytest.param(lambda image: datasets.Dataset.from_dict({"images": [[1], []]})["images"], id="column"),
    ],
)
def test_sample_without_an_image_stays_without_one(
    arrange: Callable[[Any], Any], tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    images = arrange(checker_image(30, 40))
    with pytest.raises((PlaceholderMismatchError, ImageInputError)):
        tiny_processor(text=["Text.", "<image>"], images=images)


def test_samples_with_and_without_images_keep_their_order(
    tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    images = [checker_image(30, 40), checker_image(60, 20)]
    texts = ["<image>", "none", "<image>"]
    expected = tiny_processor(text=texts, images=[images[:1], [], images[1:]], padding=True, return_tensors="pt")
    found = tiny_processor(text=texts, images=[images[0], None, images[1]], padding=True, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_image_processor_without_any_image_still_refuses(tiny_processor: XGenMMProcessor) -> None:
    empty: list[Any] = [[], [[], []], [None]]
    for images in empty:
        with pytest.raises(ImageInputError, match="`images` is empty"):
            tiny_processor.image_processor(images)
