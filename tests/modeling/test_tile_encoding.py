"""Padding left out of the tower: the masked tower's numbers, fewer patches, and no way to switch it on by mistake."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from tests.picture_batch import make_batch
from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.modeling import tile_encoding
from xgen_mm.modeling.tile_encoding import join_pictures, write_image_tokens

Batch = dict[str, torch.Tensor]


@pytest.fixture
def batch(tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]) -> Batch:
    return make_batch(tiny_processor, checker_image)


@pytest.fixture
def model(tiny_model: XGenMMForConditionalGeneration) -> XGenMMForConditionalGeneration:
    tiny_model.config.tile_grouping = "tile"
    # Larger weights, so that padding in a layer would show.
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return tiny_model


def masked_image_tokens(model: XGenMMForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Image tokens of a tower that sees whole tiles and masks padding in every layer."""
    tower = model.model.vision_tower
    layout = model.model._layout(batch["pixel_values"], batch["image_sizes"])
    tiles = tile_encoding.real_tiles(batch["pixel_values"], layout.num_tiles)
    is_content = layout.patch_attention_mask
    # Added to the scores: (tiles, 1, cells, cells)
    mask = torch.zeros(is_content.shape).masked_fill(~is_content, -1e9)[:, None, None, :]
    mask = mask.expand(-1, 1, is_content.shape[1], -1)
    cells = tower.embeddings(tiles)
    for layer in tower.encoder.layers:
        cells = layer(cells, mask)
    tokens: torch.Tensor = model.model.resampler(tower.post_layernorm(cells), is_content).last_hidden_state
    return tokens.flatten(0, 1)


def image_tokens(model: XGenMMForConditionalGeneration, batch: Batch) -> torch.Tensor:
    return torch.cat(model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output)


@torch.no_grad()
def test_dropped_padding_gives_the_numbers_of_the_masked_tower(
    model: XGenMMForConditionalGeneration, batch: Batch
) -> None:
    whole = image_tokens(model, batch)
    model.config.drop_padded_patches = True
    dropped = image_tokens(model, batch)
    torch.testing.assert_close(dropped, masked_image_tokens(model, batch), atol=1e-5, rtol=1e-5)
    assert (dropped - whole).abs().max() > 1e-2


@torch.no_grad()
def test_tower_sees_content_patches_only(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    seen: list[tuple[int, int]] = []
    model.model.vision_tower.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    model.config.drop_padded_patches = True
    image_tokens(model, batch)
    mask = model.model._layout(batch["pixel_values"], batch["image_sizes"]).patch_attention_mask
    assert sum(tiles * cells for tiles, cells in seen) == int(mask.sum()) < mask.numel()
    # Tiles of equal content share a call.
    assert len(seen) == len(mask.sum(1).unique())


@torch.no_grad()
def test_dropping_in_small_calls_changes_nothing(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    model.config.drop_padded_patches = True
    expected = image_tokens(model, batch)
    model.config.max_tiles_per_call = 1
    torch.testing.assert_close(image_tokens(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_dropping_trains_the_tower(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    model.config.drop_padded_patches = True
    model.train()(**batch).loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.model.vision_tower.encoder.layers.parameters())


@torch.no_grad()
def test_threads_do_not_see_each_others_padding(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    model.config.drop_padded_patches = True
    one, other = (
        {"pixel_values": batch["pixel_values"][picture], "image_sizes": batch["image_sizes"][picture]}
        for picture in (slice(0, 1), slice(1, 2))
    )
    expected = [image_tokens(model, pictures) for pictures in (one, other)]

    def encode(pictures: Batch) -> torch.Tensor:
        with torch.no_grad():
            return image_tokens(model, pictures)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encode, [one, other] * 8))
    for index, tokens in enumerate(found):
        torch.testing.assert_close(tokens, expected[index % 2])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tile_grouping": "raster_chunks"}, id="grouping"),
        pytest.param({"tile_grouping": "tile", "vision_config": {"model_type": "clip_vision_model"}}, id="tower"),
    ],
)
def test_dropping_is_refused_where_it_cannot_be_exact(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="`drop_padded_patches` is on with `tile_grouping`"):
        XGenMMConfig(drop_padded_patches=True, **changes)


def test_image_tokens_are_written_row_by_row_with_their_gradients() -> None:
    embeds = torch.randn(2, 6, 3, requires_grad=True)
    tokens = torch.randn(5, 3, requires_grad=True)
    is_placeholder = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]], dtype=torch.bool)[..., None]
    found = write_image_tokens(embeds, tokens, is_placeholder=is_placeholder)
    expected = embeds.masked_scatter(is_placeholder, tokens)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, [embeds, tokens], weights), torch.autograd.grad(expected, [embeds, tokens], weights)
    )


@torch.no_grad()
def test_merging_scatters_no_single_values(
    model: XGenMMForConditionalGeneration, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("`masked_scatter` was called")

    monkeypatch.setattr(torch.Tensor, "masked_scatter", refuse)
    assert model.eval()(**batch).logits is not None


@torch.no_grad()
def test_image_tokens_of_all_pictures_are_not_copied(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    pictures = model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output
    joined = join_pictures(pictures)
    assert joined.data_ptr() == pictures[0].data_ptr()
    assert torch.equal(joined, torch.cat(pictures))


@torch.no_grad()
@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(lambda parts: parts[::-1], id="other-order"),
        pytest.param(lambda parts: [parts[0], parts[2]], id="gap"),
        pytest.param(lambda parts: [part.clone() for part in parts], id="separate"),
        pytest.param(lambda parts: parts[:1], id="one"),
    ],
)
def test_image_tokens_from_elsewhere_are_joined_in_order(
    choose: Callable[[list[torch.Tensor]], list[torch.Tensor]],
) -> None:
    parts = choose(list(torch.randn(12, 3).split([3, 4, 5])))
    assert torch.equal(join_pictures(parts), torch.cat(parts))


@torch.no_grad()
def test_embeddings_of_the_caller_are_never_written_to(model: XGenMMForConditionalGeneration, batch: Batch) -> None:
    inputs = {name: batch[name] for name in ("pixel_values", "image_sizes", "attention_mask")}
    embeds = model.get_input_embeddings()(batch["input_ids"])
    before = embeds.clone()
    logits = model.eval()(inputs_embeds=embeds, **inputs).logits
    assert torch.equal(embeds, before)
    torch.testing.assert_close(model(input_ids=batch["input_ids"], **inputs).logits, logits)


@torch.no_grad()
def test_image_tokens_that_lie_side_by_side_by_chance_are_copied() -> None:
    memory = torch.arange(21.0).view(7, 3).numpy()
    # One piece of memory under two storages, as an allocator may hand them out.
    parts = [
        torch.frombuffer(memory, dtype=torch.float32, count=12),
        torch.frombuffer(memory, dtype=torch.float32, offset=48),
    ]
    first, second = parts[0].view(4, 3), parts[1].view(3, 3)
    assert first.data_ptr() + first.numel() * first.element_size() == second.data_ptr()
    joined = join_pictures([first, second])
    assert joined.tolist() == memory.tolist()
    assert joined.data_ptr() != first.data_ptr()
