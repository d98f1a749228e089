"""The whole model on a small random configuration: contracts of inputs and outputs, generation, loading."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, DynamicCache

from xgen_mm import PlaceholderMismatchError, XGenMMConfig, XGenMMForConditionalGeneration, XGenMMModel
from xgen_mm.modeling.host import CACHE_NAME

IMAGE, PAD, EOS = 5, 0, 2
TILE = 28
LATENTS = 4


def small_config(**changes: object) -> XGenMMConfig:
    fields: dict[str, object] = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": 7,
        },
        "resampler_config": {
            "num_latents": LATENTS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
        "text_config": {
            "vocab_size": 60,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": EOS,
        },
        "image_token_id": IMAGE,
        "tile_grouping": "tile",
    }
    return XGenMMConfig(**(fields | changes))


def build(**changes: object) -> XGenMMForConditionalGeneration:
    torch.manual_seed(11)
    model = XGenMMForConditionalGeneration(small_config(**changes)).eval()
    # Larger weights than the default initialisation, so that answers depend on the pictures.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12.0 if parameter.dim() > 1 else 1.0)
    model.generation_config.eos_token_id = None
    # Random weights would emit the placeholder itself now and then.
    model.generation_config.suppress_tokens = [IMAGE]
    return model


@pytest.fixture(scope="module")
def model() -> XGenMMForConditionalGeneration:
    return build()


@pytest.fixture
def tower_calls(model: XGenMMForConditionalGeneration) -> Iterator[list[int]]:
    """Number of tiles of each call of the vision tower while the test runs."""
    calls: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    yield calls
    handle.remove()


def make_images(sizes: list[tuple[int, int]], counts: list[int], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tiles in the contract's layout; filler is zero."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(sizes), max(counts), 3, TILE, TILE, generator=generator)
    for image, count in enumerate(counts):
        pixels[image, count:] = 0
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids; an int is the number of tiles of a picture."""
    return [token for part in parts for token in ([IMAGE] * part * LATENTS if isinstance(part, int) else part)]


def left_pad(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


WIDE, SQUARE, TALL = (20, 60), (40, 40), (84, 20)  # 1 x 3, 2 x 2 and 3 x 1 tiles: 4, 5 and 4 with the thumbnail
ROWS = [prompt([10, 11], 4, [12]), prompt([13]), prompt(5, [14, 15], 4, [16])]
ROW_IMAGES = [[WIDE], [], [SQUARE, TALL]]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return left_pad(ROWS) | make_images([WIDE, SQUARE, TALL], [4, 5, 4])


def single(batch: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One sample of the batch on its own."""
    first = sum(len(images) for images in ROW_IMAGES[:row])
    last = first + len(ROW_IMAGES[row])
    inputs = left_pad([ROWS[row]])
    pictures = {name: batch[name][first:last] for name in ("pixel_values", "image_sizes") if last > first}
    return inputs | pictures


def test_batch_of_samples_equals_single_calls(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    together = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row in range(3):
        inputs = single(batch, row)
        alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert together[row].tolist() == alone.tolist()


def test_answers_depend_on_the_pictures(model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    inputs = single(batch, 2)
    swapped = inputs | {"pixel_values": torch.randn_like(inputs["pixel_values"])}
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits[:, -1], model(**swapped).logits[:, -1], atol=1e-2)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_generation_equals_uncached(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], num_beams: int
) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": num_beams}
    cached = model.generate(**batch, **settings)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))


def test_decoding_step_with_cache_equals_full_forward(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    inputs = single(batch, 2)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**inputs, **{CACHE_NAME: cache}, use_cache=True)
        next_ids = torch.tensor([[17]])
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        step = model(input_ids=next_ids, attention_mask=mask, **{CACHE_NAME: cache}).logits[:, -1]
        full_inputs = inputs | {"input_ids": torch.cat([inputs["input_ids"], next_ids], 1), "attention_mask": mask}
        full = model(**full_inputs).logits[:, -1]
    torch.testing.assert_close(step, full, atol=1e-5, rtol=1e-5)


def test_text_only_prompt_generates(model: XGenMMForConditionalGeneration) -> None:
    assert model.generate(torch.tensor([[10, 11, 12]]), max_new_tokens=4).shape == (1, 7)


def test_eight_images_in_one_sample_generate(model: XGenMMForConditionalGeneration) -> None:
    sizes, counts = [WIDE, SQUARE, TALL, WIDE, SQUARE, TALL, WIDE, SQUARE], [4, 5, 4, 4, 5, 4, 4, 5]
    row = prompt(*[part for count in counts for part in ([9], count)])
    ids = model.generate(**left_pad([row]), **make_images(sizes, counts), max_new_tokens=4)
    assert ids.shape[1] == len(row) + 4


def test_tiles_of_all_images_go_through_the_tower_in_one_call_without_filler(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], tower_calls: list[int]
) -> None:
    model.generate(**batch, max_new_tokens=3)
    assert tower_calls == [4 + 5 + 4]


def test_micro_batches_bound_the_tower_calls_and_change_nothing(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], tower_calls: list[int]
) -> None:
    expected = torch.cat(model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output)
    model.config.max_tiles_per_call = 5
    try:
        tokens = torch.cat(model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output)
    finally:
        model.config.max_tiles_per_call = None
    assert tower_calls == [13, 5, 5, 3]
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_image_features_are_one_tensor_per_image(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    outputs = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
    assert [tuple(tokens.shape) for tokens in outputs.pooler_output] == [(16, 32), (20, 32), (16, 32)]
    assert outputs.last_hidden_state.shape == (13, 16, 32)


@pytest.mark.parametrize("tile_grouping", ["raster_chunks", "image"])
def test_other_groupings_generate(batch: dict[str, torch.Tensor], tile_grouping: str) -> None:
    model = build(tile_grouping=tile_grouping)
    counts = [1, 1, 1] if tile_grouping == "image" else [4, 5, 4]
    inputs = left_pad([prompt(count, [12]) for count in counts])
    pictures = {name: batch[name] for name in ("pixel_values", "image_sizes")}
    assert model.generate(**inputs, **pictures, max_new_tokens=3).shape[0] == 3


def test_without_image_sizes_each_image_is_one_tile(model: XGenMMForConditionalGeneration) -> None:
    pixels = torch.randn(2, 1, 3, TILE, TILE)
    outputs = model.get_image_features(pixels)
    assert [len(tokens) for tokens in outputs.pooler_output] == [LATENTS, LATENTS]
    flat = model.get_image_features(pixels[:, 0])
    torch.testing.assert_close(torch.cat(flat.pooler_output), torch.cat(outputs.pooler_output))


def test_precomputed_image_outputs_equal_pixel_values(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    inputs = single(batch, 2)
    pictures = {name: inputs.pop(name) for name in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        expected = model(**inputs, **pictures).logits
        outputs = model.get_image_features(**pictures)
        torch.testing.assert_close(model(**inputs, mm_encoder_outputs={"image": outputs}).logits, expected)


def test_inputs_embeds_equal_input_ids(model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    inputs = single(batch, 2)
    with torch.no_grad():
        expected = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5])], ids=["last", "last-3", "indices"])
def test_logits_to_keep_selects_positions(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], keep: int | torch.Tensor
) -> None:
    inputs = single(batch, 2)
    with torch.no_grad():
        everything = model(**inputs).logits
        kept = model(**inputs, logits_to_keep=keep).logits
    expected = everything[:, -keep:] if isinstance(keep, int) else everything[:, keep]
    torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"input_ids": torch.tensor([[IMAGE] * 3])}, "tokens: 3, features: 16", id="too-few-tokens"),
        pytest.param({"input_ids": torch.tensor([[IMAGE] * 17])}, "tokens: 17, features: 16", id="too-many-tokens"),
    ],
)
def test_other_number_of_image_tokens_is_refused(
    model: XGenMMForConditionalGeneration, change: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(PlaceholderMismatchError, match=f"Image features and image tokens do not match, {message}"):
        model(**make_images([WIDE], [4]), **change)


def test_images_whose_tiles_do_not_fit_their_sizes_are_refused(model: XGenMMForConditionalGeneration) -> None:
    images = make_images([SQUARE], [4])
    with pytest.raises(ValueError, match=r"holds \(1, 4\).*asks for \(1, 5\).*image_grid_pinpoints"):
        model.get_image_features(**images)
    with pytest.raises(ValueError, match=r"`pixel_values` has shape \(3, 28, 28\)"):
        model.get_image_features(torch.zeros(3, TILE, TILE))
    with pytest.raises(ValueError, match="`image_sizes` is missing"):
        model.get_image_features(images["pixel_values"])


def test_contradicting_inputs_are_refused(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    outputs = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
    with pytest.raises(ValueError, match="`pixel_values` or `mm_encoder_outputs`"):
        model(**batch, mm_encoder_outputs={"image": outputs})
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model()


def test_saved_model_loads_through_auto_classes_with_equal_logits(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    with torch.no_grad():
        expected = model(**batch).logits
        for auto_class in (AutoModel, AutoModelForImageTextToText):
            loaded = auto_class.from_pretrained(tmp_path).eval()
            assert type(loaded) is XGenMMForConditionalGeneration
            torch.testing.assert_close(loaded(**batch).logits, expected)
    base = XGenMMModel.from_pretrained(tmp_path)
    assert torch.equal(base.resampler.latents, model.model.resampler.latents)


def test_pooling_head_of_the_tower_is_not_built(model: XGenMMForConditionalGeneration) -> None:
    assert [name for name, _ in model.named_parameters() if "vision_tower.head" in name] == []


def test_tied_embeddings_share_one_table(tmp_path: Path) -> None:
    model = build(tie_word_embeddings=True, lm_head_bias=False)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("implementation", ["eager", "sdpa", {"resampler_config": "eager", "text_config": "sdpa"}])
def test_attention_backends_agree(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], implementation: str | dict[str, str]
) -> None:
    with torch.no_grad():
        expected = model(**batch).logits
        other = build()
        other.set_attn_implementation(implementation)
        logits = other(**batch).logits
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[valid], expected[valid], atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_keeps_loss_and_gradients(batch: dict[str, torch.Tensor]) -> None:
    results = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        results.append((loss.detach(), model.model.resampler.latents.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_num_items_in_batch_scales_the_loss(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # The first label of a row is never predicted, and neither is a placeholder.
    targets = labels[:, 1:]
    count = int(((targets != -100) & (targets != model.config.image_token_id)).sum())
    with torch.no_grad():
        mean = model(**batch, labels=labels).loss
        scaled = model(**batch, labels=labels, num_items_in_batch=torch.tensor(2 * count)).loss
    torch.testing.assert_close(scaled * 2, mean)


def test_resized_embeddings_keep_old_rows_and_bias(batch: dict[str, torch.Tensor]) -> None:
    model = build()
    with torch.no_grad():
        model.lm_head.bias.normal_()
        expected = model(**batch).logits
        model.resize_token_embeddings(64)
        logits = model(**batch).logits
    assert model.config.text_config.vocab_size == 64
    torch.testing.assert_close(logits[..., :60], expected)
