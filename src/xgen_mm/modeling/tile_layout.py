"""Where the tiles of a batch of pictures are, and how their features are grouped before the resampler."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..anyres import CellBox, Size, canvas_grid, content_cells
from .configuration_xgen_mm import XGenMMConfig

Order = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLayout:
    """Tiles of all pictures of a batch, and the groups of cells that the resampler reads at once.

    Attributes:
        num_tiles: Real tiles per picture, thumbnail included.
        num_groups: Groups per picture; each becomes as many image tokens as the connector makes of it.
        cell_order: Long, shape (groups, cells): which cell of all tiles' features (flattened) stands at each place of
            the resampler's input; `None` if groups are the tiles as they are.
        patch_attention_mask: Bool, shape (groups, cells), `False` on padding; `None` if every cell is picture content.
    """

    num_tiles: list[int]
    num_groups: list[int]
    cell_order: torch.Tensor | None = None
    patch_attention_mask: torch.Tensor | None = None


def single_tile_layout(num_images: int) -> TileLayout:
    """Layout of pictures that are one tile each (no any-resolution)."""
    return TileLayout(num_tiles=[1] * num_images, num_groups=[1] * num_images)


def anyres_layout(image_sizes: Sequence[Size], config: XGenMMConfig) -> TileLayout:
    """Layout of any-resolution pictures.

    Args:
        image_sizes: Original `(height, width)` of each picture in pixels.
        config: Names the canvases, the tile size and the grouping.

    Returns:
        The layout, its tensors on the CPU.

    Source: released code of xGen-MM v1.5. With `"raster_chunks"` the cells of the whole canvas are read row by row and
    cut into chunks of one tile's length, so with two or more columns a chunk is a band of full canvas rows. With
    `"image"` the thumbnail and the canvas without its padding form one long group.
    """
    # Each read of a configuration passes through several functions of the host, so every value is read once.
    tower, grouping = config.vision_config, config.tile_grouping
    tile_size = tower.image_size
    cells_per_tile = tile_size // tower.patch_size
    pinpoints = tuple([(height, width) for height, width in config.image_grid_pinpoints])
    plans = [_plan_picture(size, pinpoints, tile_size, cells_per_tile) for size in image_sizes]
    grids, boxes = tuple([plan[0] for plan in plans]), tuple([plan[1] for plan in plans])
    num_tiles = num_groups = [rows * cols + 1 for rows, cols in grids]
    if grouping == "image":
        num_groups = [1] * len(grids)
        order, mask = _whole_image_cells(grids, boxes, cells_per_tile)
    else:
        order, mask = _tile_cells(grids, boxes, cells_per_tile, grouping == "raster_chunks")
    return TileLayout(
        num_tiles=num_tiles,
        num_groups=num_groups,
        cell_order=None if order is None else torch.from_numpy(order),
        patch_attention_mask=None if mask is None else torch.from_numpy(mask),
    )


# What follows is the same for all batches, or all pictures, of one shape. It is remembered as NumPy arrays, which
# belong to no device and to no trace, and which nobody writes to.


@lru_cache(maxsize=32)
def _tile_cells(
    grids: tuple[Size, ...], boxes: tuple[CellBox, ...], cells_per_tile: int, raster: bool
) -> tuple[Order | None, Mask | None]:
    order = mask = None
    # Decided on plain integers: the model is also traced, where tensors have no values.
    if any(box != _full_box(grid, cells_per_tile) for grid, box in zip(grids, boxes, strict=True)):
        masks = [_content_mask(grid, box, cells_per_tile, raster) for grid, box in zip(grids, boxes, strict=True)]
        mask = np.concatenate(masks)
    # One column of tiles is already in raster order.
    if raster and any(cols > 1 for _, cols in grids):
        starts = _first_cells(grids, cells_per_tile)
        orders = [_raster_order(grid, cells_per_tile) + start for grid, start in zip(grids, starts, strict=True)]
        order = np.concatenate(orders)
    return order, mask


@lru_cache(maxsize=32)
def _whole_image_cells(
    grids: tuple[Size, ...], boxes: tuple[CellBox, ...], cells_per_tile: int
) -> tuple[Order | None, Mask | None]:
    num_cells = cells_per_tile**2
    orders = []
    for grid, box, start in zip(grids, boxes, _first_cells(grids, cells_per_tile), strict=True):
        cells = _raster_order(grid, cells_per_tile).reshape(-1)
        canvas = cells[num_cells:].reshape(grid[0] * cells_per_tile, grid[1] * cells_per_tile)
        content = canvas[box.top : box.bottom, box.left : box.right].reshape(-1)
        orders.append(np.concatenate([cells[:num_cells], content]) + start)
    lengths = [len(cells) for cells in orders]
    # Filler points at cell 0 and is masked.
    order = np.zeros((len(orders), max(lengths)), dtype=np.int64)
    for row, cells in zip(order, orders, strict=True):
        row[: len(cells)] = cells
    mask = None
    if min(lengths) < max(lengths):
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return order, mask


def _first_cells(grids: Sequence[Size], cells_per_tile: int) -> list[int]:
    """Index of each picture's first cell among the cells of all pictures."""
    num_tiles = [rows * cols + 1 for rows, cols in grids]
    return [cells_per_tile**2 * sum(num_tiles[:image]) for image in range(len(num_tiles))]


def _full_box(grid: Size, cells_per_tile: int) -> CellBox:
    """Box of a canvas without padding."""
    return CellBox(0, grid[0] * cells_per_tile, 0, grid[1] * cells_per_tile)


@lru_cache(maxsize=4096)
def _plan_picture(
    size: Size, pinpoints: tuple[Size, ...], tile_size: int, cells_per_tile: int
) -> tuple[Size, CellBox]:
    """Rows and columns of a picture's canvas, and where on it the picture is."""
    grid = canvas_grid(size, pinpoints=pinpoints, tile_size=tile_size)
    return grid, content_cells(size, grid=grid, cells_per_tile=cells_per_tile)


@lru_cache(maxsize=256)
def _content_mask(grid: Size, box: CellBox, cells_per_tile: int, raster: bool) -> Mask:
    """Which cells of one picture, thumbnail first, are content: shape (tiles, cells)."""
    rows, cols = grid
    mask = np.zeros((1 + rows * cols, cells_per_tile**2), dtype=np.bool_)
    mask[0] = True
    canvas = np.zeros((rows * cells_per_tile, cols * cells_per_tile), dtype=np.bool_)
    canvas[box.top : box.bottom, box.left : box.right] = True
    if not raster:
        # (rows, cells, cols, cells) -> (rows, cols, cells, cells)
        canvas = canvas.reshape(rows, cells_per_tile, cols, cells_per_tile).swapaxes(1, 2)
    mask[1:] = canvas.reshape(rows * cols, -1)
    return mask


@lru_cache(maxsize=64)
def _raster_order(grid: Size, cells_per_tile: int) -> Order:
    """Cells of one picture, thumbnail first, then the canvas row by row: shape (tiles, cells)."""
    rows, cols = grid
    num_cells = cells_per_tile**2
    order = np.arange(num_cells * (1 + rows * cols), dtype=np.int64).reshape(-1, num_cells)
    # (rows, cols, cells, cells) -> (rows, cells, cols, cells)
    canvas = order[1:].reshape(rows, cols, cells_per_tile, cells_per_tile).swapaxes(1, 2)
    return np.concatenate([order[:1], canvas.reshape(-1, num_cells)])
