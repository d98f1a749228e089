"""The whole v1 model on a small random configuration: dependence on the prompt, generation, loading."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, DynamicCache

from xgen_mm import PlaceholderMismatchError, XGenMMV1ForConditionalGeneration, XGenMMV1Model
from xgen_mm.modeling.host import CACHE_NAME

from .small_v1 import IMAGE, SQUARE, TALL, TILE, WIDE, build, left_pad, make_images, prompt

# Two prompts of four written tokens, `<image>` included; the pictures have 4 and 5 tiles.
ROWS = [prompt([10, 11], 4, [12]), prompt(5, [14, 15, 16])]


@pytest.fixture(scope="module")
def model() -> XGenMMV1ForConditionalGeneration:
    return build()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return left_pad(ROWS) | make_images([WIDE, SQUARE], [4, 5])


@pytest.fixture
def tower_calls(model: XGenMMV1ForConditionalGeneration) -> Iterator[list[int]]:
    """Number of tiles of each call of the vision tower while the test runs."""
    calls: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    yield calls
    handle.remove()


def single(batch: dict[str, torch.Tensor], row: int, ids: list[int]) -> dict[str, torch.Tensor]:
    pictures = {name: batch[name][row : row + 1] for name in ("pixel_values", "image_sizes")}
    return left_pad([ids]) | pictures


def answer(
    model: XGenMMV1ForConditionalGeneration, inputs: dict[str, torch.Tensor], **settings: int
) -> list[list[int]]:
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, **settings)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def image_tokens(model: XGenMMV1ForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model.get_image_features(**inputs).pooler_output)


def test_image_tokens_depend_on_the_question(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    tokens = image_tokens(model, single(batch, 0, ROWS[0]))[0]
    others = image_tokens(model, single(batch, 0, prompt([10, 11], 4, [13])))[0]
    assert tokens.shape == others.shape == (16, 32)
    assert (tokens - others).abs().max() > 0.1


def test_tokens_beyond_the_prompt_limit_do_not_reach_the_resampler(batch: dict[str, torch.Tensor]) -> None:
    model = build(max_prompt_tokens=3)
    tokens = image_tokens(model, single(batch, 0, ROWS[0]))[0]
    others = image_tokens(model, single(batch, 0, prompt([10, 11], 4, [13])))[0]
    assert torch.equal(tokens, others)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batch_of_equally_long_prompts_equals_single_calls(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor], num_beams: int
) -> None:
    together = answer(model, batch, num_beams=num_beams)
    alone = [answer(model, single(batch, row, ids), num_beams=num_beams)[0] for row, ids in enumerate(ROWS)]
    assert together == alone


def test_shorter_prompt_of_a_batch_reads_the_filler_as_released(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    rows = [ROWS[0], prompt(5, [14, 15, 16, 17, 18])]
    together = image_tokens(model, batch | left_pad(rows))
    longest = image_tokens(model, single(batch, 1, rows[1]))[0]
    torch.testing.assert_close(together[1], longest, atol=1e-4, rtol=1e-4)
    alone = image_tokens(model, single(batch, 0, rows[0]))[0]
    assert (together[0] - alone).abs().max() > 0.01


def test_masked_filler_makes_a_batch_of_unequal_prompts_equal_single_calls(batch: dict[str, torch.Tensor]) -> None:
    model = build(mask_prompt_padding=True)
    rows = [ROWS[0], prompt(5, [14, 15, 16, 17, 18])]
    inputs = batch | left_pad(rows)
    singles = [single(batch, row, ids) for row, ids in enumerate(rows)]
    for together, inputs_alone in zip(image_tokens(model, inputs), singles, strict=True):
        torch.testing.assert_close(together, image_tokens(model, inputs_alone)[0], atol=1e-4, rtol=1e-4)
    assert answer(model, inputs) == [answer(model, inputs_alone)[0] for inputs_alone in singles]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_generation_equals_uncached(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor], num_beams: int
) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    cached = model.generate(**batch, **settings)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))


def test_generation_encodes_the_pictures_once_whatever_the_beams(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor], tower_calls: list[int]
) -> None:
    answer(model, batch, num_beams=3)
    assert tower_calls == [4 + 5]


def test_generation_from_embeddings_equals_generation_from_ids(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    expected = answer(model, batch, num_beams=2)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    ids = model.generate(**batch, inputs_embeds=embeds, max_new_tokens=6, do_sample=False, num_beams=2)
    assert ids.tolist() == expected


def test_sampling_several_answers_expands_the_pictures(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    ids = model.generate(**batch, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert ids.shape == (4, batch["input_ids"].shape[1] + 3)


def test_decoding_step_with_cache_equals_full_forward_on_the_same_image_tokens(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    inputs = single(batch, 0, ROWS[0])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**inputs, **{CACHE_NAME: cache}, use_cache=True)
        next_ids = torch.tensor([[17]])
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        step = model(input_ids=next_ids, attention_mask=mask, **{CACHE_NAME: cache}).logits[:, -1]
        image_outputs = model.get_image_features(**inputs)
        ids = torch.cat([inputs["input_ids"], next_ids], 1)
        full = model(ids, attention_mask=mask, mm_encoder_outputs={"image": image_outputs}).logits[:, -1]
    torch.testing.assert_close(step, full, atol=1e-4, rtol=1e-4)


def test_training_reads_the_answer_unless_features_of_the_question_are_given(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    question, sample = single(batch, 0, ROWS[0]), single(batch, 0, [*ROWS[0], 20, 21])
    labels = torch.tensor([[-100] * len(ROWS[0]) + [20, 21]])
    with torch.no_grad():
        as_released = model(**sample, labels=labels).loss
        image_outputs = model.get_image_features(**question)
        ids_and_mask = {name: sample[name] for name in ("input_ids", "attention_mask")}
        question_only = model(**ids_and_mask, mm_encoder_outputs={"image": image_outputs}, labels=labels).loss
    assert (as_released - question_only).abs() > 1e-3


def test_text_only_prompt_generates(model: XGenMMV1ForConditionalGeneration) -> None:
    assert model.generate(torch.tensor([[10, 11, 12]]), max_new_tokens=4).shape == (1, 7)


def test_row_without_picture_generates_beside_one_with(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    inputs = left_pad([[10, 11, 12, 13], ROWS[0]]) | {
        name: batch[name][:1] for name in ("pixel_values", "image_sizes")
    }
    alone = answer(model, single(batch, 0, ROWS[0]))[0]
    assert answer(model, inputs)[1] == alone


def test_pictures_without_tiles_generate(model: XGenMMV1ForConditionalGeneration) -> None:
    pixels = torch.randn(1, 1, 3, TILE, TILE)
    assert model.generate(**left_pad([prompt([10], 1, [11])]), pixel_values=pixels, max_new_tokens=3).shape == (1, 9)


def test_two_pictures_in_one_prompt_generate_and_warn(
    model: XGenMMV1ForConditionalGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("xgen_mm.v1.modeling_xgen_mm_v1").warning_once.cache_clear()
    inputs = left_pad([prompt([10], 4, 5, [11])]) | make_images([TALL, SQUARE], [4, 5])
    assert len(answer(model, inputs)[0]) == 6
    assert "A prompt holds several pictures" in caplog.text


def test_pictures_without_their_prompt_are_refused(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="depend on the prompt: give exactly one of `input_ids` and `inputs_embeds`"):
        model.get_image_features(batch["pixel_values"], batch["image_sizes"])


@pytest.mark.parametrize("num_slots", [15, 17])
def test_other_number_of_image_tokens_is_refused_before_the_tower_runs(
    model: XGenMMV1ForConditionalGeneration, tower_calls: list[int], num_slots: int
) -> None:
    with pytest.raises(PlaceholderMismatchError, match=f"tokens: {num_slots}, features: 16"):
        model(**make_images([WIDE], [4]), input_ids=torch.tensor([[10] + [IMAGE] * num_slots]))
    assert tower_calls == []


def test_both_forms_of_pictures_are_refused(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    outputs = model.get_image_features(**batch)
    with pytest.raises(ValueError, match="`pixel_values` or `mm_encoder_outputs`"):
        model(**batch, mm_encoder_outputs={"image": outputs})


def test_saved_model_loads_through_auto_classes_with_equal_logits(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits
        for auto_class in (AutoModel, AutoModelForImageTextToText):
            loaded = auto_class.from_pretrained(tmp_path).eval()
            assert type(loaded) is XGenMMV1ForConditionalGeneration
            torch.testing.assert_close(loaded(**batch).logits, expected)
    base = XGenMMV1Model.from_pretrained(tmp_path)
    weight = model.model.resampler.text_projection.linear_1.weight
    assert torch.equal(base.resampler.text_projection.linear_1.weight, weight)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_backends_agree(batch: dict[str, torch.Tensor], implementation: str) -> None:
    results = []
    for mask_prompt_padding in (True, False):
        model = build(mask_prompt_padding=mask_prompt_padding)
        with torch.no_grad():
            expected = model(**batch).logits
            model.set_attn_implementation(implementation)
            results.append((model(**batch).logits, expected))
    valid = batch["attention_mask"].bool()
    for logits, expected in results:
        torch.testing.assert_close(logits[valid], expected[valid], atol=1e-3, rtol=1e-3)


def test_gradient_checkpointing_keeps_loss_and_gradients(batch: dict[str, torch.Tensor]) -> None:
    results = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        results.append((loss.detach(), model.model.resampler.text_projection.linear_1.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_attention_masks_of_every_type_mean_the_same(
    model: XGenMMV1ForConditionalGeneration, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    assert not batch["attention_mask"].all()
    other = batch | {"attention_mask": batch["attention_mask"].to(dtype)}
    with torch.no_grad():
        assert torch.equal(model(**other).logits, model(**batch).logits)
    assert answer(model, other) == answer(model, batch)


@pytest.mark.parametrize("part", ["vision_tower", "resampler", "language_model"])
@pytest.mark.parametrize("masks_padding", [False, True])
def test_parts_may_differ_in_precision(batch: dict[str, torch.Tensor], part: str, masks_padding: bool) -> None:
    model = build(mask_prompt_padding=masks_padding)
    getattr(model.model, part).to(torch.bfloat16)
    reference = copy.deepcopy(model).float()
    if part == "language_model":
        model.lm_head.to(torch.bfloat16)
    found, expected = image_tokens(model, batch), image_tokens(reference, batch)
    # Only what the part itself computes is rounded: prompts of a rounded table enter the resampler as they are.
    tolerance = 1e-5 if part == "language_model" else 0.1
    for tokens, others in zip(found, expected, strict=True):
        assert tokens.dtype == (torch.bfloat16 if part == "resampler" else torch.float32)
        torch.testing.assert_close(tokens.float(), others, atol=tolerance, rtol=tolerance)
    assert model(**batch, labels=batch["input_ids"]).loss.isfinite()
    assert len(answer(model, batch)) == 2
