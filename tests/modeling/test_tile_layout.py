"""Grouping of features before the resampler, against cell-by-cell arithmetic."""

import pytest
import torch

from xgen_mm import XGenMMConfig
from xgen_mm.modeling.tile_layout import anyres_layout, single_tile_layout

CELLS = 3
TILE = 21


def small_config(tile_grouping: str) -> XGenMMConfig:
    return XGenMMConfig(
        vision_config={"image_size": TILE, "patch_size": 7, "hidden_size": 16, "num_attention_heads": 2},
        text_config={"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 30},
        image_token_id=3,
        tile_grouping=tile_grouping,
    )


def cell_at(row: int, col: int, *, cols: int) -> int:
    """Flat index of the cell at a place of the canvas, the thumbnail's cells first."""
    tile = (row // CELLS) * cols + col // CELLS
    return CELLS * CELLS * (1 + tile) + (row % CELLS) * CELLS + col % CELLS


@pytest.mark.parametrize(
    ("image_size", "rows", "cols"),
    [
        pytest.param((42, 42), 2, 2, id="2x2"),
        pytest.param((21, 42), 1, 2, id="1x2"),
        pytest.param((21, 63), 1, 3, id="1x3"),
        pytest.param((63, 21), 3, 1, id="3x1"),
    ],
)
def test_raster_chunks_read_the_canvas_row_by_row(image_size: tuple[int, int], rows: int, cols: int) -> None:
    layout = anyres_layout([image_size, (63, 63)], small_config("raster_chunks"))
    expected = list(range(CELLS * CELLS)) + [
        cell_at(row, col, cols=cols) for row in range(rows * CELLS) for col in range(cols * CELLS)
    ]
    assert layout.num_tiles == [1 + rows * cols, 5]
    assert layout.cell_order.flatten().tolist()[: len(expected)] == expected
    assert layout.patch_attention_mask is None


def test_raster_chunks_of_one_column_need_no_reordering() -> None:
    assert anyres_layout([(63, 21), (42, 21)], small_config("raster_chunks")).cell_order is None


def test_tile_grouping_masks_the_padding_of_each_tile() -> None:
    # 42 wide and 21 high on the 1 x 2 canvas would fit exactly; 42 x 30 leaves padding columns on a 2 x 2 canvas.
    layout = anyres_layout([(42, 28)], small_config("tile"))
    mask = layout.patch_attention_mask.view(5, CELLS, CELLS)
    assert layout.cell_order is None
    assert mask[0].all()
    # The picture is 4 of 6 cells wide, centred: the outermost column on both sides is padding.
    assert mask[1].tolist() == [[False, True, True]] * 3
    assert mask[2].tolist() == [[True, True, False]] * 3
    assert mask[3].tolist() == [[False, True, True]] * 3
    assert mask[4].tolist() == [[True, True, False]] * 3


def test_image_grouping_joins_all_content_cells() -> None:
    layout = anyres_layout([(42, 28), (21, 42)], small_config("image"))
    assert layout.num_groups == [1, 1]
    content = [cell_at(row, col, cols=2) for row in range(6) for col in range(1, 5)]
    assert layout.cell_order[0].tolist() == list(range(9)) + content
    assert layout.patch_attention_mask.sum(1).tolist() == [33, 27]


def test_single_tile_layout_has_one_group_per_image() -> None:
    layout = single_tile_layout(3)
    assert (layout.num_tiles, layout.num_groups) == ([1, 1, 1], [1, 1, 1])
    assert layout.cell_order is None
    assert not isinstance(layout.patch_attention_mask, torch.Tensor)
