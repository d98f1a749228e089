"""A batch for the small random model, made by its processor: pictures of several shapes, text, and labels."""

from collections.abc import Callable

import torch
from PIL import Image

from xgen_mm import XGenMMProcessor

Draw = Callable[[int, int], Image.Image]
# Heights and widths on the 1 x 3, 2 x 2 and 3 x 1 canvases of 28-pixel tiles: 4, 5 and 4 tiles with the thumbnail.
WIDE, SQUARE, TALL = (20, 60), (40, 40), (84, 20)
TEXTS = ("Look: <image> What number is written here?", "<image> and <image>")


def make_batch(
    processor: XGenMMProcessor, draw: Draw, *, texts: tuple[str, ...] = TEXTS, with_labels: bool = True
) -> dict[str, torch.Tensor]:
    """One row per text, its pictures taken in turn from wide, square and tall; labels on every token of text.

    Args:
        processor: Processor of the small random model.
        draw: Function from height and width to a picture.
        texts: Prompts with `<image>` where a picture stands.
        with_labels: Whether to add `labels`, shape (batch, sequence), -100 on image tokens and padding.
    """
    shapes = [WIDE, SQUARE, TALL]
    images: list[list[Image.Image]] = []
    for text in texts:
        images.append([draw(*shapes[(sum(map(len, images)) + index) % 3]) for index in range(text.count("<image>"))])
    batch = dict(
        processor(text=list(texts), images=images if any(images) else None, padding=True, return_tensors="pt")
    )
    if with_labels:
        hidden = (batch["attention_mask"] == 0) | (batch["input_ids"] == processor.image_token_id)
        batch["labels"] = batch["input_ids"].masked_fill(hidden, -100)
    return batch
