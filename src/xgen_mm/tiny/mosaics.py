"""Warm-up tiles: windows on a sheet full of digits, with a class for every patch."""

import numpy as np
from PIL import Image

from .digits import BACKGROUND, colour, ink_boxes

CELL = 24
_MARGIN = 2
_EMPTY_SHARES = (0.1, 0.6)


class MosaicMaker:
    """Draws tiles that hold many digits at random scale, which teaches a vision tower what digits look like."""

    def __init__(self, pixels: np.ndarray, classes: np.ndarray) -> None:
        """Prepare the cells of the sheet.

        Args:
            pixels: Light ink on black, uint8 of shape (digits, 28, 28).
            classes: Class of each digit, shape (digits,).
        """
        cells = np.ascontiguousarray(pixels[:, _MARGIN : _MARGIN + CELL, _MARGIN : _MARGIN + CELL])
        # The last cell is empty paper.
        self._cells = np.concatenate([cells, np.zeros((1, CELL, CELL), np.uint8)])
        top, left, bottom, right = ink_boxes(cells, 30).T[:, :, None]
        place = np.arange(CELL)
        inside = ((place >= top) & (place < bottom))[:, :, None] & ((place >= left) & (place < right))[:, None, :]
        labels = np.where(inside, classes[:, None, None], BACKGROUND).astype(np.uint8)
        self._labels = np.concatenate([labels, np.full((1, CELL, CELL), BACKGROUND, np.uint8)])

    def draw(
        self,
        rng: np.random.Generator,
        *,
        tile_size: int,
        num_patches: int,
        scale: tuple[float, float],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one tile.

        Args:
            rng: Source of randomness.
            tile_size: Edge of the tile in pixels.
            num_patches: Patches along one edge.
            scale: Smallest and largest height of a digit as a share of the tile.

        Returns:
            Grey levels, uint8 of shape (S, S), and the class at each patch centre, int64 of shape (patches,).
        """
        share = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))
        # A digit is about 20 of its cell's 24 pixels high; height and width of the window differ to vary the aspect.
        height, width = np.clip(20 / share * np.exp(rng.uniform(-0.3, 0.3, 2)), 26, 150)
        rows, cols = int(np.ceil(height / CELL)) + 1, int(np.ceil(width / CELL)) + 1
        chosen = rng.integers(0, len(self._cells) - 1, rows * cols)
        chosen[rng.random(rows * cols) < rng.choice(_EMPTY_SHARES)] = len(self._cells) - 1
        top, left = (
            rng.uniform(0, rows * CELL - height),
            rng.uniform(0, cols * CELL - width),
        )
        sheet = Image.fromarray(colour(rng, _assemble(self._cells[chosen], rows, cols)))
        window = (left, top, left + width, top + height)
        tile = np.asarray(sheet.resize((tile_size, tile_size), Image.Resampling.BICUBIC, box=window))
        centres = (np.arange(num_patches) + 0.5) / num_patches
        ys, xs = (
            (top + centres * height).astype(int),
            (left + centres * width).astype(int),
        )
        labels = _assemble(self._labels[chosen], rows, cols)[ys[:, None], xs[None, :]]
        return tile, labels.reshape(-1).astype(np.int64)


def _assemble(cells: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return cells.reshape(rows, cols, CELL, CELL).swapaxes(1, 2).reshape(rows * CELL, cols * CELL)
