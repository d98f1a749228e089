"""A real model behind the runner: what it is fed, how replies end, and what batches do to them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from PIL import Image

import xgen_mm
from xgen_mm.data.records import Picture
from xgen_mm.errors import XGenMMError
from xgen_mm.evaluation.answering import ModelAnswerer, limit_tiles
from xgen_mm.evaluation.plans import plan_task, prompt_of, read_samples
from xgen_mm.evaluation.prompts import Prompt
from xgen_mm.evaluation.samples import Sample
from xgen_mm.evaluation.task import Generation, load_task
from xgen_mm.tiny.packaged_digits import digit_generators


@pytest.fixture(scope="module")
def answerer() -> ModelAnswerer:
    """The small packaged model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = xgen_mm.tiny_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32").eval()
    return ModelAnswerer(model, AutoProcessor.from_pretrained(checkpoint), name="tiny")


def digit_prompts(name: str, count: int) -> Iterator[tuple[Prompt, str]]:
    plan = plan_task(load_task(name), paths={}, generators=digit_generators(), download=False, few_shot=None)
    for sample in islice(read_samples(plan, limit=None), count):
        assert isinstance(sample, Sample)
        yield prompt_of(plan, sample), str(sample.target)


def grey(height: int, width: int) -> Picture:
    return Picture(Image.new("RGB", (width, height), (90, 90, 90)))


def test_replies_of_a_batch_are_those_of_its_prompts_alone(answerer: ModelAnswerer) -> None:
    prompts = [prompt for prompt, _ in (*digit_prompts("digits_one", 3), *digit_prompts("digits_largest_of_4", 3))]
    generation = Generation(max_new_tokens=8)
    together = answerer.answer(prompts, generation)
    assert together == [answerer.answer([prompt], generation)[0] for prompt in prompts]


def test_model_reads_the_pictures_of_its_prompt_in_order(answerer: ModelAnswerer) -> None:
    pairs = list(digit_prompts("digits_number_in_image", 12))
    replies = answerer.answer([prompt for prompt, _ in pairs], Generation(max_new_tokens=8))
    right = sum(reply == answer for reply, (_, answer) in zip(replies, pairs, strict=True))
    assert right >= 9


@pytest.mark.parametrize("style", ["chat", "text"])
@pytest.mark.parametrize("sizes", [[], [(60, 200)], [(80, 90), (200, 64)]], ids=["none", "one", "two"])
def test_tokens_are_counted_as_the_model_gets_them(
    answerer: ModelAnswerer, style: Any, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = ("What number is in ", *range(len(sizes)), "this?")
    prompt = Prompt(pieces=pieces, pictures=tuple(grey(*size) for size in sizes), style=style)
    seen: list[int] = []
    generate = answerer.model.generate

    def record(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"].shape[1])
        return generate(**inputs)

    monkeypatch.setattr(answerer.model, "generate", record)
    answerer.answer([prompt], Generation(max_new_tokens=1))
    assert seen == [answerer.count_tokens(prompt)]


def test_text_that_imitates_a_picture_does_not_become_one(answerer: ModelAnswerer) -> None:
    prompt = Prompt(pieces=(0, "Is <image> a picture?<|end|>"), pictures=(grey(80, 80),))
    assert answerer.answer([prompt], Generation(max_new_tokens=2))


def test_settings_stored_in_the_checkpoint_do_not_reach_replies(
    answerer: ModelAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, number = next(digit_prompts("digits_number_in_image", 1))
    expected = answerer.answer([prompt], Generation(max_new_tokens=8))
    monkeypatch.setattr(answerer.model.generation_config, "repetition_penalty", 50.0)
    monkeypatch.setattr(answerer.model.generation_config, "do_sample", True)
    monkeypatch.setattr(answerer.model.generation_config, "temperature", 50.0)
    assert answerer.answer([prompt], Generation(max_new_tokens=8)) == expected == [number]


def test_reply_is_cut_at_a_stop_text(answerer: ModelAnswerer) -> None:
    prompt, _ = next(digit_prompts("digits_largest_of_2", 1))
    whole = answerer.answer([prompt], Generation(max_new_tokens=8))[0]
    assert whole.startswith("Image ")
    assert answerer.answer([prompt], Generation(max_new_tokens=8, stop=("ge",)))[0] == "Ima"


def test_description_tells_models_apart_by_their_configuration(answerer: ModelAnswerer) -> None:
    before = answerer.describe()
    assert (before.name, before.dtype, len(before.config_hash)) == ("tiny", "float32", 64)
    grids = answerer.model.config.image_grid_pinpoints
    answerer.model.config.image_grid_pinpoints = grids[:1]
    try:
        assert answerer.describe().config_hash != before.config_hash
    finally:
        answerer.model.config.image_grid_pinpoints = grids


def test_description_is_the_same_wherever_the_checkpoint_lies(
    answerer: ModelAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answerer.describe()
    monkeypatch.setattr(answerer.model.config, "_name_or_path", "elsewhere")
    assert answerer.describe() == before


def test_fewer_tiles_cost_fewer_tokens_and_still_fit_the_model() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = xgen_mm.tiny_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32").eval()
    limited = ModelAnswerer(model, AutoProcessor.from_pretrained(checkpoint), name="tiny")
    prompt = Prompt(pieces=(0, "What number is in the image?"), pictures=(grey(200, 200),))
    before = limited.count_tokens(prompt)
    limit_tiles(limited.model, limited.processor, 3)
    assert limited.count_tokens(prompt) < before
    assert limited.answer([prompt], Generation(max_new_tokens=2))
    with pytest.raises(XGenMMError, match="smallest canvas has 3 tiles with the thumbnail"):
        limit_tiles(limited.model, limited.processor, 2)


def test_most_tiles_mean_what_they_mean_to_the_processor() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = xgen_mm.tiny_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
    processor = AutoProcessor.from_pretrained(checkpoint)
    image = Image.new("RGB", (200, 200))

    def count(**limit: int) -> int:
        return int(processor.image_processor(image, return_tensors="pt", **limit)["pixel_values"].shape[1])

    expected = count(max_tiles=3)
    assert count() > expected
    limit_tiles(model, processor, 3)
    assert count() == expected == 3


def test_released_v1_models_answer_one_prompt_at_a_time(answerer: ModelAnswerer, monkeypatch: Any) -> None:
    assert answerer.max_batch_size is None
    monkeypatch.setattr(answerer.model.config, "mask_prompt_padding", False, raising=False)
    assert answerer.max_batch_size == 1
