"""One compiled graph serves images of all sizes, with the numbers of the plain model."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.modeling.test_modeling_xgen_mm import SQUARE, TALL, WIDE, build, left_pad, make_images, prompt, small_config
from tests.v1 import small_v1
from xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.modeling.compiled_layout import compiled_layout
from xgen_mm.modeling.tile_layout import anyres_layout

Size = tuple[int, int]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random_batches(grouping: str) -> Iterator[list[Size]]:
    """Sizes of one to four images, narrow and equal-sided ones among them."""
    draw = random.Random(grouping)
    for highest in (3, 30, 60, 300, 4000) * 12:
        sizes = [(draw.randint(1, highest), draw.randint(1, highest)) for _ in range(draw.randint(1, 4))]
        yield [*sizes, (highest, highest)]


@pytest.mark.parametrize("grouping", ["raster_chunks", "tile", "image"])
@pytest.mark.parametrize("has_filler", [False, True])
def test_layout_is_the_one_on_plain_integers(grouping: str, has_filler: bool) -> None:
    config = small_config(tile_grouping=grouping)
    num_cells = config.cells_per_tile**2
    for sizes in random_batches(grouping):
        expected = anyres_layout(sizes, config)
        counts = expected.num_tiles
        rows = max(counts) + 1
        shape = (len(sizes), rows) if has_filler else (sum(counts),)
        found = compiled_layout(torch.tensor(sizes), shape, config)
        assert found.fits
        # Number of each cell among those of real tiles; -1 in filler.
        numbers = torch.full((len(sizes), rows * num_cells), -1)
        is_cell = torch.arange(rows * num_cells) < torch.tensor(counts)[:, None] * num_cells
        numbers[is_cell] = torch.arange(sum(counts) * num_cells)
        numbers = numbers.flatten() if has_filler else torch.arange(sum(counts) * num_cells)
        order, mask = numbers[found.tiles.cell_order], found.tiles.patch_attention_mask
        assert mask is not None
        order, mask = order[found.is_real], mask[found.is_real]
        plain = torch.arange(sum(counts) * num_cells).view(-1, num_cells)
        expected_order = plain if expected.cell_order is None else expected.cell_order
        is_content = expected.patch_attention_mask
        is_content = torch.ones_like(expected_order, dtype=torch.bool) if is_content is None else is_content
        length = expected_order.shape[1]
        assert torch.equal(mask[:, :length], is_content)
        assert not mask[:, length:].any()
        assert torch.equal(order[:, :length][is_content], expected_order[is_content])


@pytest.mark.parametrize(
    ("sizes", "shape"), [([WIDE], (1, 3)), ([SQUARE, WIDE], (8,)), ([WIDE], (5,)), ([(0, 5)], (1, 5))]
)
def test_tiles_that_do_not_belong_to_the_sizes_are_told(sizes: list[Size], shape: tuple[int, ...]) -> None:
    assert not compiled_layout(torch.tensor(sizes), shape, small_config()).fits


def inputs_of(sizes: list[Size], counts: list[int], *, is_flat: bool = False) -> dict[str, torch.Tensor]:
    images = make_images(sizes, counts)
    if is_flat:
        tiles = [row[:count] for row, count in zip(images["pixel_values"], counts, strict=True)]
        images["pixel_values"] = torch.cat(tiles)
    return left_pad([prompt([10, 11], *counts, [12])]) | images


@torch.no_grad()
def check_one_graph(
    model: XGenMMForConditionalGeneration,
    batches: list[dict[str, torch.Tensor]],
    *,
    refused: Sequence[tuple[dict[str, torch.Tensor], str]] = (),
) -> None:
    counter = CompileCounter()
    compiled: Any = torch.compile(model.forward, backend=counter, fullgraph=True, dynamic=False)
    for batch in batches:
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    for batch, message in refused:
        with pytest.raises(RuntimeError, match=message):
            compiled(**batch)
    assert counter.frame_count == 1


def test_prefill_of_images_of_all_sizes_is_one_graph() -> None:
    sizes = [[WIDE, SQUARE], [SQUARE, TALL], [(25, 61), (33, 33)]]
    batches = [inputs_of(sizes[0], [4, 5]), inputs_of(sizes[1], [5, 4]), inputs_of(sizes[2], [4, 5])]
    model = build(tile_grouping="raster_chunks")
    assert model._can_compile_fullgraph
    # As many ids, one of them no placeholder.
    ids = batches[0]["input_ids"].clone()
    ids[0, 5] = 10
    no_height = torch.tensor([WIDE, (0, 40)])
    refused = [
        (batches[0] | {"image_sizes": no_height}, "other tiles"),
        (batches[0] | {"input_ids": ids}, "not match"),
    ]
    check_one_graph(model, batches, refused=refused)


@pytest.mark.slow
@pytest.mark.parametrize("grouping", ["tile", "image"])
def test_flat_tiles_and_other_groupings_are_one_graph(grouping: str) -> None:
    batches = [inputs_of([WIDE, SQUARE], [4, 5], is_flat=True), inputs_of([SQUARE, TALL], [5, 4], is_flat=True)]
    if grouping == "image":
        # An image costs as much as one tile.
        batches = [batch | left_pad([prompt([10, 11], 1, 1, [12])]) for batch in batches]
    check_one_graph(build(tile_grouping=grouping), batches)


@pytest.mark.slow
def test_training_step_is_one_graph_with_the_same_gradients() -> None:
    batch = inputs_of([WIDE, SQUARE], [4, 5])
    batch["labels"] = batch["input_ids"]
    model = build(tile_grouping="raster_chunks")
    gradients = []
    for forward in (model.forward, torch.compile(model.forward, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        forward(**batch).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def test_models_whose_shapes_follow_from_the_images_do_not_claim_one_graph() -> None:
    assert not build(drop_padded_patches=True)._can_compile_fullgraph
    model = small_v1.build()
    assert not model._can_compile_fullgraph
    assert not model.model._can_compile_fullgraph
