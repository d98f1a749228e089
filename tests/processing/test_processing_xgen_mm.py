"""The processor: expansion of placeholders, batches, sources of pictures, refusals."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from xgen_mm import (
    ImageInputError,
    PlaceholderMismatchError,
    XGenMMImageProcessor,
    XGenMMImageProcessorPil,
    XGenMMProcessor,
)
from xgen_mm.tiny.tokenizer import build_tokenizer

LATENTS = 2
TILE = 28
GRIDS = [[56, 28], [28, 56], [56, 56], [28, 84], [84, 28]]


def picture(height: int, width: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def build(**changes: object) -> XGenMMProcessor:
    image_processor = XGenMMImageProcessor(size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRIDS)
    return XGenMMProcessor(image_processor, build_tokenizer(), **({"num_latents": LATENTS} | changes))


@pytest.fixture(scope="module")
def processor() -> XGenMMProcessor:
    return build()


WIDE, SQUARE, TALL = picture(28, 84), picture(56, 56, seed=1), picture(50, 25, seed=2)  # 4, 5 and 3 tiles


def ids_of(processor: XGenMMProcessor, *parts: str | int) -> list[int]:
    """Literal ids: strings are tokenised alone, numbers are counts of image tokens."""
    ids: list[int] = []
    for part in parts:
        ids += [processor.image_token_id] * part if isinstance(part, int) else processor.tokenizer(part)["input_ids"]
    return ids


@pytest.mark.parametrize(
    ("text", "images", "parts"),
    [
        pytest.param("<|user|>\nHi", None, ("<|user|>\nHi",), id="no-image"),
        pytest.param("A <image> B", [WIDE], ("A ", 8, " B"), id="one-image"),
        pytest.param("<image><image>\nB", [WIDE, SQUARE], (18, "\nB"), id="adjacent-images"),
        pytest.param("A<image>B<image>", [TALL, SQUARE], ("A", 6, "B", 10), id="two-images"),
    ],
)
def test_text_expands_to_literal_ids(
    processor: XGenMMProcessor, text: str, images: list[Image.Image] | None, parts: tuple[str | int, ...]
) -> None:
    outputs = processor(text=text, images=images)
    assert outputs["input_ids"] == [ids_of(processor, *parts)]


def test_batch_with_two_one_and_no_images_is_padded_on_the_left(processor: XGenMMProcessor) -> None:
    outputs = processor(
        text=["<image> and <image>", "none at all", "<image>"],
        images=[[WIDE, TALL], [], [SQUARE]],
        padding=True,
        return_tensors="pt",
    )
    assert outputs["pixel_values"].shape == (3, 5, 3, TILE, TILE)
    assert outputs["image_sizes"].tolist() == [[28, 84], [50, 25], [56, 56]]
    counts = (outputs["input_ids"] == processor.image_token_id).sum(1)
    assert counts.tolist() == [14, 0, 10]
    assert outputs["attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert outputs["attention_mask"][1, 0] == 0
    # Filler tiles of the shorter pictures are zero.
    assert not outputs["pixel_values"][0, 4:].any()
    assert outputs["pixel_values"][0, 3].any()


def test_padding_side_right_is_honoured_for_training(processor: XGenMMProcessor) -> None:
    outputs = processor(text=["a", "a longer text"], padding=True, padding_side="right", return_tensors="pt")
    assert outputs["attention_mask"][:, 0].tolist() == [1, 1]
    assert outputs["attention_mask"][0, -1] == 0


def test_order_of_images_follows_the_text(processor: XGenMMProcessor) -> None:
    forward = processor(text="<image><image>", images=[WIDE, SQUARE], return_tensors="pt")["pixel_values"]
    backward = processor(text="<image><image>", images=[SQUARE, WIDE], return_tensors="pt")["pixel_values"]
    assert torch.equal(forward[0], backward[1])
    assert torch.equal(forward[1], backward[0])


@pytest.mark.parametrize("mode", ["pad", "none"])
def test_single_tile_modes_cost_one_tile(processor: XGenMMProcessor, mode: str) -> None:
    outputs = processor(text="<image>", images=[WIDE], image_aspect_ratio=mode, return_tensors="pt")
    assert outputs["input_ids"].shape == (1, LATENTS)
    assert outputs["pixel_values"].shape == (1, 1, 3, TILE, TILE)
    assert "image_sizes" not in outputs


def test_call_time_grids_change_tiles_and_tokens_together(processor: XGenMMProcessor) -> None:
    outputs = processor(text="<image>", images=[WIDE], image_grid_pinpoints=[[28, 28]], return_tensors="pt")
    assert outputs["pixel_values"].shape[1] == 2
    assert outputs["input_ids"].shape == (1, 2 * LATENTS)


def test_image_grouping_costs_num_latents_whatever_the_tiles() -> None:
    outputs = build(tile_grouping="image")(text="<image><image>", images=[WIDE, SQUARE])
    assert len(outputs["input_ids"][0]) == 2 * LATENTS


def test_planned_token_counts_equal_processed_ones(processor: XGenMMProcessor) -> None:
    pictures = [WIDE, SQUARE, TALL, picture(1, 300), picture(7, 7)]
    planned = processor._get_num_multimodal_tokens(image_sizes=[(image.height, image.width) for image in pictures])
    counts = [len(processor(text="<image>", images=[image])["input_ids"][0]) for image in pictures]
    assert planned.num_image_tokens == counts
    assert planned.num_image_patches == [1] * 5


def chat_ids(processor: XGenMMProcessor, part: dict[str, object]) -> dict[str, torch.Tensor]:
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


@pytest.mark.parametrize("form", ["pil", "path", "data-uri", "base64", "array", "tensor", "image_url"])
def test_chat_accepts_every_source_of_a_picture(processor: XGenMMProcessor, tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture.png"
    WIDE.save(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    part: dict[str, object] = {
        "pil": {"type": "image", "image": WIDE},
        "path": {"type": "image", "path": str(path)},
        "data-uri": {"type": "image", "url": f"data:image/png;base64,{encoded}"},
        "base64": {"type": "image", "base64": encoded},
        "array": {"type": "image", "image": np.asarray(WIDE)},
        "tensor": {"type": "image", "image": torch.from_numpy(np.array(WIDE)).permute(2, 0, 1)},
        "image_url": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    }[form]
    expected = chat_ids(processor, {"type": "image", "image": WIDE})
    outputs = chat_ids(processor, part)
    assert outputs["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(outputs["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        pytest.param("<image>", [WIDE, TALL], "`text` holds 1 `<image>` but 2 images", id="more-images"),
        pytest.param("<image><image>", [WIDE], "`text` holds 2 `<image>` but 1 images", id="fewer-images"),
        pytest.param("<image>", None, "`text` holds 1 `<image>` but 0 images", id="no-images"),
        pytest.param(
            ["<image>", "<image>"], [[WIDE, TALL], []], r"\[1, 1\] \(per sample\).*\[2, 0\]", id="wrong-sample"
        ),
    ],
)
def test_other_number_of_images_is_refused(
    processor: XGenMMProcessor, text: str | list[str], images: list[object] | None, message: str
) -> None:
    with pytest.raises(PlaceholderMismatchError, match=message):
        processor(text=text, images=images)


def test_truncation_inside_an_image_block_is_refused(processor: XGenMMProcessor) -> None:
    with pytest.raises(ValueError, match="increase `max_length`"):
        processor(text="<image> text", images=[WIDE], max_length=5, truncation=True)
    outputs = processor(text="<image> text", images=[WIDE], max_length=8, truncation=True)
    assert outputs["input_ids"] == [[processor.image_token_id] * 8]


def test_missing_picture_in_a_chat_is_named(processor: XGenMMProcessor, tmp_path: Path) -> None:
    with pytest.raises(ImageInputError, match=r"nowhere\.png"):
        chat_ids(processor, {"type": "image", "path": str(tmp_path / "nowhere.png")})


def test_tokenizer_without_image_token_is_refused() -> None:
    with pytest.raises(ValueError, match="has no token `<picture>`"):
        build(image_token="<picture>")


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        pytest.param({}, XGenMMImageProcessor, id="default"),
        pytest.param({"backend": "pil"}, XGenMMImageProcessorPil, id="pil"),
        pytest.param({"backend": "torchvision"}, XGenMMImageProcessor, id="fast"),
    ],
)
def test_saved_processor_loads_with_the_wanted_backend(
    tmp_path: Path, backend: dict[str, str], expected: type
) -> None:
    # A new one: the host saves the truncation of a tokenizer's last call along with it.
    processor = build()
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, **backend)
    assert type(loaded) is XGenMMProcessor
    assert type(loaded.image_processor) is expected
    assert type(AutoImageProcessor.from_pretrained(tmp_path, **backend)) is expected
    assert (loaded.num_latents, loaded.tile_grouping) == (LATENTS, "raster_chunks")
    assert loaded.chat_template == processor.chat_template
    text = "A <image> B"
    assert loaded(text=text, images=[WIDE])["input_ids"] == processor(text=text, images=[WIDE])["input_ids"]
