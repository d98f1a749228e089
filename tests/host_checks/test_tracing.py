"""Nothing that a tracer makes outlives the trace."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xgen_mm.modeling.tile_layout import anyres_layout

from .outside_view import SQUARE, TALL, WIDE, outside_config


@pytest.mark.parametrize("grouping", ["raster_chunks", "tile", "image"])
def test_layout_is_found_without_looking_at_tensors(grouping: str) -> None:
    config = outside_config(tile_grouping=grouping)
    sizes = [WIDE, SQUARE, TALL]
    with FakeTensorMode():
        traced = anyres_layout(sizes, config)
    layout = anyres_layout(sizes, config)
    for tensor, fake in (
        (layout.cell_order, traced.cell_order),
        (layout.patch_attention_mask, traced.patch_attention_mask),
    ):
        assert type(tensor) in (torch.Tensor, type(None))
        assert getattr(tensor, "shape", None) == getattr(fake, "shape", None)


@pytest.mark.parametrize("grouping", ["raster_chunks", "tile", "image"])
def test_layout_of_pictures_that_fill_their_canvas_masks_nothing(grouping: str) -> None:
    config = outside_config(tile_grouping=grouping)
    assert anyres_layout([SQUARE, SQUARE], config).patch_attention_mask is None
    assert anyres_layout([SQUARE, TALL], config).patch_attention_mask is not None
