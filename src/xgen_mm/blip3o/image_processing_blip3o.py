"""Prepares images for the feature tower, bit-identical to the released preprocessing."""

from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.image_utils import SizeDict
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TOWER_SIZE = 448


class Blip3oImageProcessor(CLIPImageProcessorPil):
    """The host's CLIP image processor at 448 pixels, with the roundings of the original's torchvision transforms.

    The shortest side is resized to 448 pixels, the middle cut out, and levels are normalized with CLIP's mean and
    standard deviation. The result is `pixel_values`, float32, shape (images, 3, 448, 448).
    """

    size = {"shortest_edge": TOWER_SIZE}
    crop_size = {"height": TOWER_SIZE, "width": TOWER_SIZE}

    def center_crop(self, image: npt.NDArray[Any], size: SizeDict, **kwargs: Any) -> npt.NDArray[Any]:
        """Cut out the middle of an image (channels, height, width) at least as large; halves round to even."""
        top, left = (round((side - wanted) / 2) for side, wanted in zip(image.shape[1:], _edges(size), strict=True))
        height, width = _edges(size)
        if min(top, left) < 0:
            return super().center_crop(image, size, **kwargs)
        return image[:, top : top + height, left : left + width]

    def rescale(self, image: npt.NDArray[Any], scale: float, **kwargs: Any) -> npt.NDArray[Any]:
        """Divide levels in float32, which rounds otherwise than multiplying by the inverse does."""
        return image.astype(np.float32) / np.float32(1 / scale)

    def normalize(self, image: npt.NDArray[Any], mean: Any, std: Any, **kwargs: Any) -> npt.NDArray[Any]:
        """Normalize channels in float32."""
        mean, std = (np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        return (image - mean) / std


def _edges(size: SizeDict) -> tuple[int, int]:
    return int(size.height), int(size.width)
