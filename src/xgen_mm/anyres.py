"""Any-resolution arithmetic on plain integers: canvases, tile counts, padding boxes.

One picture becomes a *canvas* of ``rows x cols`` square tiles plus a thumbnail of the whole picture. Everything that
has to agree about that (image processors, prompt expansion, model) asks this module. Sizes are ``(height, width)``.

Source: xGen-MM technical report (arXiv:2408.08872), any-resolution section; the rounding follows the released code.
"""

from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, int]


class CellBox(NamedTuple):
    """Half-open box of feature cells that show picture content; the rest of the canvas is padding."""

    top: int
    bottom: int
    left: int
    right: int


def best_canvas(image_size: Size, pinpoints: Sequence[Sequence[int]]) -> Size:
    """Choose the canvas that keeps most of the picture's pixels; ties go to the least waste, then to the first listed.

    Args:
        image_size: Original ``(height, width)`` in pixels, both at least 1.
        pinpoints: Permitted canvases as ``(height, width)`` in pixels; order breaks ties.

    Returns:
        ``(height, width)`` of the canvas in pixels.

    Raises:
        ValueError: If ``pinpoints`` is empty or a side of ``image_size`` is below 1.

    >>> best_canvas((1000, 3000), [(768, 384), (384, 768), (768, 768)])
    (384, 768)
    """
    height, width = _check_size(image_size)
    if not pinpoints:
        raise ValueError("`pinpoints` is empty; list at least one `(height, width)` canvas.")

    def rank(canvas: Sequence[int]) -> tuple[int, int]:
        canvas_height, canvas_width = canvas
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas_height * canvas_width

    # `max` keeps the first of equals, which is the released tie-break.
    canvas_height, canvas_width = max(pinpoints, key=rank)
    return int(canvas_height), int(canvas_width)


def fit_inside(image_size: Size, canvas: Size) -> Size:
    """Size of the picture after it is scaled, aspect ratio kept, to touch the canvas on one axis.

    Args:
        image_size: Original ``(height, width)`` in pixels.
        canvas: ``(height, width)`` to fit into, in pixels.

    Returns:
        ``(height, width)``, each at least 1 and at most the canvas.

    >>> fit_inside((170, 600), (384, 768))
    (218, 768)
    """
    height, width = _check_size(image_size)
    canvas_height, canvas_width = canvas
    # Compared and rounded in floating point as the released code does: an exact fraction could differ by one pixel.
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        return min(_ceil(height * scale_width), canvas_height), canvas_width
    return canvas_height, min(_ceil(width * scale_height), canvas_width)


def canvas_grid(image_size: Size, *, pinpoints: Sequence[Sequence[int]], tile_size: int) -> Size:
    """Rows and columns of tiles that the picture's canvas is cut into.

    Args:
        image_size: Original ``(height, width)`` in pixels.
        pinpoints: Permitted canvases as ``(height, width)`` in pixels, multiples of ``tile_size``.
        tile_size: Edge of a square tile in pixels (384 for the released v1.5 checkpoints).

    Returns:
        ``(rows, cols)``, the thumbnail not included.
    """
    canvas_height, canvas_width = best_canvas(image_size, pinpoints)
    return canvas_height // tile_size, canvas_width // tile_size


def count_tiles(image_size: Size, *, pinpoints: Sequence[Sequence[int]], tile_size: int) -> int:
    """Number of tiles one picture costs, thumbnail included.

    Args:
        image_size: Original ``(height, width)`` in pixels, both at least 1.
        pinpoints: Permitted canvases as ``(height, width)`` in pixels, multiples of ``tile_size``.
        tile_size: Edge of a square tile in pixels.

    Returns:
        ``rows * cols + 1``; multiply by ``num_latents`` for prompt slots.

    Raises:
        ValueError: If ``pinpoints`` is empty or a side of ``image_size`` is below 1.

    >>> count_tiles((768, 384), pinpoints=[(768, 384), (384, 768)], tile_size=384)
    3
    """
    rows, cols = canvas_grid(image_size, pinpoints=pinpoints, tile_size=tile_size)
    return rows * cols + 1


def content_cells(image_size: Size, *, grid: Size, cells_per_tile: int) -> CellBox:
    """Feature cells of the canvas that show picture content rather than padding.

    The released code derives the box from the aspect ratio in feature cells with truncation, so it may differ by one
    cell from the pixel padding; checkpoints were trained that way.

    Args:
        image_size: Original ``(height, width)`` in pixels.
        grid: ``(rows, cols)`` of tiles on the canvas.
        cells_per_tile: Feature cells along one edge of a tile (27 for 384-pixel tiles and 14-pixel patches).

    Returns:
        Half-open box in a map of ``(rows * cells_per_tile, cols * cells_per_tile)`` cells.
    """
    height, width = _check_size(image_size)
    map_height, map_width = grid[0] * cells_per_tile, grid[1] * cells_per_tile
    if width / height > map_width / map_height:
        padding = (map_height - int(height * (map_width / width))) // 2
        return CellBox(padding, map_height - padding, 0, map_width)
    padding = (map_width - int(width * (map_height / height))) // 2
    return CellBox(0, map_height, padding, map_width - padding)


def _check_size(image_size: Size) -> Size:
    height, width = int(image_size[0]), int(image_size[1])
    if height < 1 or width < 1:
        raise ValueError(f"`image_size` is {(height, width)}; (height, width) must both be at least 1 pixel.")
    return height, width


def _ceil(value: float) -> int:
    return -int(-value // 1)
