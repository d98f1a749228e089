"""Tile arithmetic against the loop-written oracle and against the geometry recorded from the released code."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.reference import anyres_loops as loops
from xgen_mm.anyres import best_canvas, canvas_grid, content_cells, count_tiles, fit_inside

GOLDEN = Path(__file__).parent / "golden" / "preprocessing"
RECORDED = json.loads((GOLDEN / "preprocessing.json").read_text())
TILE_SIZES = {"v1.5": 384, "v1": 378}
CELLS_PER_TILE = 27


def canvases(tile_size: int) -> list[list[int]]:
    grids = [(2, 1), (1, 2), (2, 2), (1, 3), (3, 1)]
    return [[rows * tile_size, cols * tile_size] for rows, cols in grids]


def recorded_rows(layout: str) -> list[Any]:
    rows = RECORDED["size_table"][layout]
    return [pytest.param(row, id="{1}x{0}".format(*row["size_wh"])) for row in rows]


def random_sizes(count: int) -> list[tuple[int, int]]:
    draw = random.Random(17)
    sizes = [(draw.randint(1, 40), draw.randint(1, 40)) for _ in range(count // 2)]
    return sizes + [(draw.randint(1, 5000), draw.randint(1, 5000)) for _ in range(count // 2)]


def check_recorded(row: dict[str, Any], *, tile_size: int) -> None:
    width, height = row["size_wh"]
    canvas = best_canvas((height, width), canvases(tile_size))
    resized = fit_inside((height, width), canvas)
    grid = canvas_grid((height, width), pinpoints=canvases(tile_size), tile_size=tile_size)
    assert list(canvas) == row["best_resolution"][::-1]
    assert list(grid) == row["grid_wh"][::-1]
    assert list(resized) == row["resized_wh"][::-1]
    assert [(canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2] == row["paste_xy"][::-1]
    assert count_tiles((height, width), pinpoints=canvases(tile_size), tile_size=tile_size) == row["num_patches"]


def mask_of(image_size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    box = content_cells(image_size, grid=grid, cells_per_tile=CELLS_PER_TILE)
    mask = np.zeros((grid[0] * CELLS_PER_TILE, grid[1] * CELLS_PER_TILE), dtype=np.uint8)
    mask[box.top : box.bottom, box.left : box.right] = 1
    return mask


@pytest.mark.parametrize("row", recorded_rows("v1.5"))
def test_geometry_of_v1_5_matches_the_released_code(row: dict[str, Any]) -> None:
    check_recorded(row, tile_size=TILE_SIZES["v1.5"])


@pytest.mark.parametrize("row", recorded_rows("v1"))
def test_geometry_of_v1_matches_the_released_code(row: dict[str, Any]) -> None:
    check_recorded(row, tile_size=TILE_SIZES["v1"])


@pytest.mark.parametrize("row", recorded_rows("v1.5"))
def test_content_cells_cut_into_raster_chunks_match_the_released_mask(row: dict[str, Any]) -> None:
    width, height = row["size_wh"]
    grid = canvas_grid((height, width), pinpoints=canvases(384), tile_size=384)
    chunks = mask_of((height, width), grid).reshape(-1, CELLS_PER_TILE**2).sum(axis=1)
    assert [CELLS_PER_TILE**2, *chunks.tolist()] == row["mask_valid_tokens_per_patch"]


@pytest.mark.parametrize("name", RECORDED["images"])
def test_content_cells_match_the_recorded_mask_of_a_photo(name: str) -> None:
    width, height = RECORDED["images"][name]["size_wh"]
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    mask = mask_of((height, width), canvas_grid((height, width), pinpoints=canvases(384), tile_size=384))
    np.testing.assert_array_equal(mask, tensors["v1.5.anyres.spatial_mask"])
    np.testing.assert_array_equal(mask.reshape(-1, CELLS_PER_TILE**2), tensors["v1.5.anyres.patch_mask"][1:])


@pytest.mark.parametrize("tile_size", TILE_SIZES.values())
def test_canvas_and_scaled_size_match_the_oracle_for_random_sizes(tile_size: int) -> None:
    for size in random_sizes(400):
        canvas = best_canvas(size, canvases(tile_size))
        assert canvas == loops.choose_canvas(size, canvases(tile_size)), size
        assert fit_inside(size, canvas) == loops.scale_to_canvas(size, canvas), size


def test_content_cells_match_the_oracle_for_random_sizes() -> None:
    for size in random_sizes(60):
        grid = canvas_grid(size, pinpoints=canvases(384), tile_size=384)
        painted = loops.paint_content(size, grid=grid, cells_per_tile=CELLS_PER_TILE)
        mask = mask_of(size, grid)
        np.testing.assert_array_equal(mask, painted, err_msg=str(size))
        chunks = mask.reshape(-1, CELLS_PER_TILE**2).sum(axis=1).tolist()
        assert chunks == loops.count_per_chunk(painted, cells_per_chunk=CELLS_PER_TILE**2)


def test_best_canvas_of_equals_takes_the_first_listed() -> None:
    assert best_canvas((400, 400), [[768, 384], [384, 768]]) == (768, 384)
    assert best_canvas((400, 400), [[384, 768], [768, 384]]) == (384, 768)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)], ids=["one-row", "one-column"])
def test_fit_inside_extreme_strip_keeps_at_least_one_pixel(size: tuple[int, int]) -> None:
    assert min(fit_inside(size, best_canvas(size, canvases(384)))) == 1


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)], ids=str)
def test_best_canvas_without_pixels_names_the_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"`image_size` is .*at least 1 pixel"):
        best_canvas(size, canvases(384))


def test_best_canvas_without_canvases_is_refused() -> None:
    with pytest.raises(ValueError, match="`pinpoints` is empty"):
        best_canvas((5, 5), [])


def test_of_canvases_that_keep_all_pixels_the_one_with_the_least_waste_is_chosen() -> None:
    assert best_canvas((100, 100), [(768, 768), (384, 768)]) == (384, 768)
