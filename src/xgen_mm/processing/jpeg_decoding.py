"""Faster decoding of JPEG files where the package `simplejpeg` is installed.

It calls the same library as Pillow without copying the picture row by row, which halves the time from a file to tiles.
Only files that both decode to the same bits are decoded this way: baseline ones in YCbCr.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from ..images.opening import exif_orientation

PixelArray = np.ndarray[Any, np.dtype[Any]]

START_OF_JPEG = b"\xff\xd8\xff"
_PIXELS = "decoded_pixels"


@cache
def jpeg_decoder() -> Any:
    """The module `simplejpeg`, or `None` if it is missing or does not load."""
    try:
        return import_module("simplejpeg")
    except (ImportError, OSError):
        return None


def decode_beside(image: Image.Image, content: bytes) -> bool:
    """Decode a file that Pillow has opened but not decoded, and keep the pixels with the image.

    Args:
        image: What Pillow made of the header; it has already refused pictures that are too large.
        content: The whole file.

    Returns:
        Whether there are pixels now. If not, Pillow decodes, and names what is wrong with a damaged file.
    """
    decoder = jpeg_decoder()
    if decoder is None or image.format != "JPEG" or image.mode != "RGB" or "progressive" in image.info:
        return False
    try:
        height, width, colours, _ = decoder.decode_jpeg_header(content)
        if colours != "YCbCr" or (width, height) != image.size:
            return False
        vars(image)[_PIXELS] = decoder.decode_jpeg(content, colorspace="RGB")
    except Exception:
        # Whatever it is: Pillow tries next, and names it.
        return False
    return True


def pixels_beside(image: Image.Image) -> PixelArray | None:
    """Pixels that `decode_beside` kept, upright.

    Args:
        image: Any PIL image; it is not modified.

    Returns:
        Levels of shape (height, width, 3), or `None` if there are none or the image has been worked on since.
    """
    pixels: PixelArray | None = vars(image).get(_PIXELS)
    # Whatever changes an image in place lets Pillow decode it first, or changes its size.
    is_decoded = vars(image).get("_im") is not None
    if pixels is None or is_decoded or image.size != (pixels.shape[1], pixels.shape[0]):
        return None
    return _turn_upright(pixels, exif_orientation(image))


def _turn_upright(pixels: PixelArray, orientation: int) -> PixelArray:
    """Undo an EXIF orientation, 1 to 8, of pixels of shape (height, width, 3)."""
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }
    return turned.get(orientation, pixels)
