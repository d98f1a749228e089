"""Training-time twin of the image processor: numpy in, uint8 tiles out, with a digit class for every patch."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..anyres import Size, best_canvas, fit_inside
from .digits import BACKGROUND, DigitPicture


@dataclass(frozen=True, slots=True)
class TiledPicture:
    """Tiles of one picture.

    Attributes:
        tiles: Grey levels, uint8 of shape (tiles, S, S), thumbnail first, then row by row; padding is 0.
        patch_labels: Digit class under each patch, 10 for paper, int64 of shape (tiles, patches).
        image_size: Original (height, width).
    """

    tiles: np.ndarray
    patch_labels: np.ndarray
    image_size: Size


def cut_tiles(
    picture: DigitPicture,
    *,
    pinpoints: list[list[int]],
    tile_size: int,
    patch_size: int,
) -> TiledPicture:
    """Cut a picture as `XGenMMImageProcessor` does and label its patches.

    Args:
        picture: What to cut.
        pinpoints: Permitted canvases as [height, width] in pixels.
        tile_size: Edge of a tile in pixels.
        patch_size: Edge of a patch in pixels.
    """
    height, width = picture.pixels.shape
    image = Image.fromarray(picture.pixels)
    canvas_height, canvas_width = best_canvas((height, width), pinpoints)
    inner_height, inner_width = fit_inside((height, width), (canvas_height, canvas_width))
    top, left = (canvas_height - inner_height) // 2, (canvas_width - inner_width) // 2
    canvas = np.zeros((canvas_height, canvas_width), np.uint8)
    resized = image.resize((inner_width, inner_height), Image.Resampling.BICUBIC)
    canvas[top : top + inner_height, left : left + inner_width] = np.asarray(resized)

    rows, cols = canvas_height // tile_size, canvas_width // tile_size
    # (rows, S, cols, S) -> (rows * cols, S, S)
    cut = canvas.reshape(rows, tile_size, cols, tile_size).swapaxes(1, 2).reshape(-1, tile_size, tile_size)
    thumbnail = np.asarray(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
    tiles = np.concatenate([thumbnail[None], cut])

    thumbnail_boxes = picture.boxes * ([tile_size / height, tile_size / width] * 2)
    canvas_boxes = picture.boxes * ([inner_height / height, inner_width / width] * 2) + [top, left] * 2
    labels = np.concatenate(
        [
            label_patches(
                thumbnail_boxes,
                picture.digits,
                (tile_size // patch_size,) * 2,
                patch_size=patch_size,
            )[None],
            _labels_by_tile(
                canvas_boxes,
                picture.digits,
                (rows, cols),
                tile_size // patch_size,
                patch_size,
            ),
        ]
    )
    return TiledPicture(tiles, labels.reshape(len(tiles), -1), (height, width))


def label_patches(boxes: np.ndarray, digits: tuple[int, ...], shape: Size, *, patch_size: int) -> np.ndarray:
    """Digit class under each patch of a map.

    A patch belongs to the digit that covers most of it, if that is more than 30 % of the patch or of the digit.

    Args:
        boxes: Digit boxes (top, left, bottom, right) in pixels of the map, shape (digits, 4).
        digits: Class of each box.
        shape: (rows, cols) of patches.
        patch_size: Edge of a patch in pixels.

    Returns:
        int64 of shape (rows, cols); 10 where there is no digit.
    """
    vertical = _overlap(boxes[:, 0:1], boxes[:, 2:3], num_patches=shape[0], patch_size=patch_size)
    horizontal = _overlap(boxes[:, 1:2], boxes[:, 3:4], num_patches=shape[1], patch_size=patch_size)
    area = vertical[:, :, None] * horizontal[:, None, :]
    owner = area.argmax(axis=0)
    digit_area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[owner]
    covered = area.max(axis=0) > 0.3 * np.minimum(patch_size**2, digit_area)
    return np.where(covered, np.asarray(digits)[owner], BACKGROUND).astype(np.int64)


def _labels_by_tile(boxes: np.ndarray, digits: tuple[int, ...], grid: Size, cells: int, patch_size: int) -> np.ndarray:
    rows, cols = grid
    labels = label_patches(boxes, digits, (rows * cells, cols * cells), patch_size=patch_size)
    return labels.reshape(rows, cells, cols, cells).swapaxes(1, 2).reshape(-1, cells, cells)


def _overlap(start: np.ndarray, end: np.ndarray, *, num_patches: int, patch_size: int) -> np.ndarray:
    """Pixels that intervals of shape (digits, 1) share with each patch: shape (digits, num_patches)."""
    edges = np.arange(num_patches + 1) * patch_size
    return np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
