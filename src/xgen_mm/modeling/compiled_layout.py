"""The layout of tiles as tensor arithmetic alone, so that one compiled graph serves images of all sizes.

`tile_layout` decides on plain integers, which a graph cannot look at: sizes of images are data. Here every shape
follows from the shapes of the inputs; what differs from image to image is the content of index tensors.
"""

from dataclasses import dataclass

import torch

from .configuration_xgen_mm import XGenMMConfig
from .tile_layout import TileLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledLayout:
    """Layout of a batch whose shapes do not depend on the sizes of its images.

    Attributes:
        tiles: Layout that takes filler for tiles; groups of filler hold some cells that are never used.
        is_real: Bool, shape (groups,), `False` on groups of filler.
        fits: Bool, shape (): whether tiles and sizes belong together.
    """

    tiles: TileLayout
    is_real: torch.Tensor
    fits: torch.Tensor


def compiled_layout(image_sizes: torch.Tensor, num_tiles: tuple[int, ...], config: XGenMMConfig) -> CompiledLayout:
    """Layout of any-resolution images, as `anyres_layout` finds it.

    Args:
        image_sizes: Original (height, width) of each image in pixels, shape (num_images, 2).
        num_tiles: Leading sizes of `pixel_values`: (num_images, max_tiles), or (tiles,) without filler.
        config: Names the canvases, the tile size and the grouping.
    """
    num_images, side = image_sizes.shape[0], config.cells_per_tile
    height, width = image_sizes.long().unbind(1)
    rows, cols = _grids(height, width, config)
    top, left = _padding(height, width, rows * side, cols * side)
    in_image = 1 + rows * cols
    if len(num_tiles) == 2:
        first = torch.arange(num_images, device=rows.device) * num_tiles[1]
        fits = (in_image <= num_tiles[1]).all()
    else:
        first, fits = in_image.cumsum(0) - in_image, in_image.sum() == num_tiles[0]
    fits = fits & (image_sizes >= 1).all()
    is_whole = config.tile_grouping == "image"
    if is_whole:
        image = torch.arange(num_images, device=rows.device)
        place = torch.zeros_like(image)
        num_cells = side**2 * (1 + max(r * c for r, c in _canvases(config)))
    else:
        num_groups, num_cells = (num_tiles[0] if len(num_tiles) == 1 else num_tiles[0] * num_tiles[1]), side**2
        group = torch.arange(num_groups, device=rows.device)
        image = torch.searchsorted(first, group, right=True) - 1
        place = group - first[image]
    # One row per group from here on: of one picture, the thumbnail is at place 0.
    rows, cols, top, left, first, in_image = (
        values[image].unsqueeze(1) for values in (rows, cols, top, left, first, in_image)
    )
    cell = torch.arange(num_cells, device=rows.device).unsqueeze(0)
    # Where on the canvas each cell of the group is.
    if is_whole:
        number, box = cell - side**2, (cols * side - 2 * left).clamp(min=1)
        y, x = top + number // box, left + number % box
        is_canvas = cell >= side**2
    else:
        is_canvas = (place > 0).unsqueeze(1).expand(-1, num_cells)
        tile = place.unsqueeze(1) - 1
        if config.tile_grouping == "raster_chunks":
            number = tile * side**2 + cell
            y, x = number // (cols * side), number % (cols * side)
        else:
            y, x = tile // cols * side + cell // side, tile % cols * side + cell % side
    is_content = (y >= top) & (y < rows * side - top) & (x >= left) & (x < cols * side - left)
    source = (1 + y // side * cols + x // side) * side**2 + y % side * side + x % side
    is_real = (place < in_image.squeeze(1)) & fits
    # What is no content of a canvas, and all filler, points at a cell that is there.
    points_into = is_canvas & (source < in_image * side**2) & (source >= 0) & is_real.unsqueeze(1)
    order = torch.where(points_into, source, torch.where(is_canvas, 0, cell)) + first * side**2
    counts = [1] * num_images if is_whole else list(num_tiles[1:]) * num_images or [num_tiles[0]]
    return CompiledLayout(
        tiles=TileLayout(
            num_tiles=list(num_tiles[1:]) * num_images or [num_tiles[0]],
            num_groups=counts,
            cell_order=order.clamp(max=side**2 * _product(num_tiles) - 1),
            patch_attention_mask=is_content | ~is_canvas,
        ),
        is_real=is_real,
        fits=fits,
    )


def _canvases(config: XGenMMConfig) -> list[tuple[int, int]]:
    return [(height // config.tile_size, width // config.tile_size) for height, width in config.image_grid_pinpoints]


def _product(sizes: tuple[int, ...]) -> int:
    return sizes[0] if len(sizes) == 1 else sizes[0] * sizes[1]


def _grids(height: torch.Tensor, width: torch.Tensor, config: XGenMMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of each image's canvas, as `anyres.best_canvas` ranks them."""
    grids = torch.tensor(_canvases(config), device=height.device)
    canvas_height, canvas_width = (grids * config.tile_size).unbind(1)
    tall, wide = height.double().unsqueeze(1), width.double().unsqueeze(1)
    scale = torch.minimum(canvas_width / wide, canvas_height / tall)
    kept = torch.minimum((wide * scale).long() * (tall * scale).long(), (height * width).unsqueeze(1))
    # Most pixels kept, then the smallest canvas, then the first listed, in one number.
    area = canvas_height * canvas_width
    largest = max(height * width for height, width in config.image_grid_pinpoints)
    earlier = len(grids) - 1 - torch.arange(len(grids), device=height.device)
    best = ((kept * (largest + 1) - area) * len(grids) + earlier).argmax(1)
    rows, cols = grids[best].unbind(1)
    return rows, cols


def _padding(
    height: torch.Tensor, width: torch.Tensor, map_height: torch.Tensor, map_width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty cells above and left of each image on its canvas, rounded as `anyres.content_cells` rounds."""
    tall, wide, map_tall, map_wide = (values.double() for values in (height, width, map_height, map_width))
    is_wide = wide / tall > map_wide / map_tall
    above = (map_height - (tall * (map_wide / wide)).long()) // 2
    beside = (map_width - (wide * (map_tall / tall)).long()) // 2
    zero = torch.zeros_like(above)
    return torch.where(is_wide, above, zero), torch.where(is_wide, zero, beside)
