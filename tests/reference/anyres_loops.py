"""Loop-written oracle of the any-resolution geometry: counts instead of rounding, paints cells instead of boxes."""

from collections.abc import Sequence

Size = tuple[int, int]


def choose_canvas(image_size: Size, canvases: Sequence[Sequence[int]]) -> Size:
    """Walk through the canvases and keep the best so far; a later one must be strictly better."""
    height, width = image_size
    best: Size | None = None
    best_kept = best_wasted = 0
    for canvas_height, canvas_width in canvases:
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas_height * canvas_width - kept
        if best is None or kept > best_kept or (kept == best_kept and wasted < best_wasted):
            best, best_kept, best_wasted = (canvas_height, canvas_width), kept, wasted
    if best is None:
        raise ValueError("no canvas")
    return best


def scale_to_canvas(image_size: Size, canvas: Size) -> Size:
    """Grow the free side pixel by pixel until the scaled picture fits into it."""
    height, width = image_size
    canvas_height, canvas_width = canvas
    if canvas_width / width < canvas_height / height:
        rows = 0
        while rows < height * (canvas_width / width) and rows < canvas_height:
            rows += 1
        return rows, canvas_width
    cols = 0
    while cols < width * (canvas_height / height) and cols < canvas_width:
        cols += 1
    return canvas_height, cols


def paint_content(image_size: Size, *, grid: Size, cells_per_tile: int) -> list[list[int]]:
    """Map of feature cells, 1 where the picture is, 0 on its padding."""
    height, width = image_size
    num_rows, num_cols = grid[0] * cells_per_tile, grid[1] * cells_per_tile
    painted = [[1] * num_cols for _ in range(num_rows)]
    if width / height > num_cols / num_rows:
        filled = int(height * (num_cols / width))
        margin = (num_rows - filled) // 2
        for row in range(num_rows):
            for col in range(num_cols):
                if row < margin or row >= num_rows - margin:
                    painted[row][col] = 0
    else:
        filled = int(width * (num_rows / height))
        margin = (num_cols - filled) // 2
        for row in range(num_rows):
            for col in range(num_cols):
                if col < margin or col >= num_cols - margin:
                    painted[row][col] = 0
    return painted


def count_per_chunk(painted: list[list[int]], *, cells_per_chunk: int) -> list[int]:
    """Read the map line by line, cut it every ``cells_per_chunk`` cells, and add up each piece."""
    cells = [cell for row in painted for cell in row]
    return [sum(cells[start : start + cells_per_chunk]) for start in range(0, len(cells), cells_per_chunk)]
