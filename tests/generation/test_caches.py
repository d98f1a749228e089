"""Caches of the host, and conversations that go on from one."""

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.v1 import small_v1
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.errors import PlaceholderMismatchError
from xgen_mm.modeling.host import CACHE_NAME
from xgen_mm.modeling.picture_generation import new_pictures

from .conftest import ONE, TWO, Answers, Encode, question

IMAGE = 9


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_caches_give_the_same_answers(encode: Encode, answers: Answers, cache: str) -> None:
    assert answers(encode(ONE, TWO), cache_implementation=cache) == ["86", "Image 2"]


def test_sliding_window_cache_gives_the_answers_of_a_whole_cache(
    model: XGenMMForConditionalGeneration, encode: Encode, answers: Answers
) -> None:
    small_window = copy.deepcopy(model)
    for config in (small_window.config.text_config, small_window.model.language_model.config):
        config.sliding_window = 24
    inputs = encode(TWO)
    expected = small_window.generate(**inputs, max_new_tokens=6, use_cache=False)
    assert inputs["input_ids"].shape[1] > 2 * 24
    assert torch.equal(small_window.generate(**inputs, max_new_tokens=6), expected)


@pytest.mark.skipif(find_spec("optimum") is None, reason="the host's quantised cache needs optimum-quanto")
def test_quantised_cache_answers(encode: Encode, answers: Answers) -> None:
    arguments = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}}
    assert answers(encode(ONE), **arguments) == ["86"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the host's offloaded cache moves tensors by CUDA streams")
def test_offloaded_cache_answers(encode: Encode, answers: Answers) -> None:
    assert answers(encode(ONE), cache_implementation="offloaded") == ["86"]


def second_turn(answer: str) -> list[dict[str, Any]]:
    return [
        *question(86, "What number is in the image?"),
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        *question(392, "What number is in image 2?"),
    ]


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_second_turn_from_a_cache_encodes_the_new_picture_alone(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    encode: Encode,
    answers: Answers,
    tower_calls: list[int],
    cache_class: type,
) -> None:
    sizes = {"max_cache_len": 400} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config.get_text_config(), **sizes)
    (first,) = answers(encode(ONE), cache=cache)
    inputs = encode(second_turn(first))
    tower_calls.clear()
    expected = answers(inputs)
    assert sum(tower_calls) == 10
    tower_calls.clear()
    assert answers(inputs, cache=cache) == expected == ["392"]
    assert sum(tower_calls) == 5


def test_turn_without_a_new_picture_takes_all_pictures_or_none(
    model: XGenMMForConditionalGeneration, encode: Encode, answers: Answers, tower_calls: list[int]
) -> None:
    cache = DynamicCache(config=model.config.get_text_config())
    (first,) = answers(encode(ONE), cache=cache)
    chat = [*second_turn(first)[:2], *question("How many digits are in the image?")]
    inputs = encode(chat)
    expected = answers(inputs)
    tower_calls.clear()
    assert answers(inputs, cache=copy.deepcopy(cache)) == expected
    texts = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_sizes")}
    without_pictures = type(inputs)(texts)
    assert answers(without_pictures, cache=cache) == expected
    assert tower_calls == []


def test_v1_second_turn_goes_on_from_a_cache() -> None:
    model = small_v1.build()
    first = small_v1.make_images([small_v1.WIDE], [4])
    both = small_v1.make_images([small_v1.WIDE, small_v1.SQUARE], [4, 5])
    ids = torch.tensor([small_v1.prompt([7], 4, [8])])
    turn = model.generate(input_ids=ids, **first, max_new_tokens=3, return_dict_in_generate=True)
    longer = torch.cat([turn.sequences, torch.tensor([small_v1.prompt([9], 5, [10])])], dim=1)
    cache = getattr(turn, CACHE_NAME)
    cached = cache.get_seq_length()
    found = model.generate(input_ids=longer, **both, cache=cache, max_new_tokens=3)
    assert cached >= ids.shape[1]
    assert found.shape[1] == longer.shape[1] + 3
    # What is new after a turn without further pictures depends on the cache alone.
    text = torch.cat([found, torch.tensor([[11, 12]])], dim=1)
    with_pictures, without = (
        model.generate(input_ids=text, cache=copy.deepcopy(cache), max_new_tokens=3, **extra) for extra in (both, {})
    )
    assert torch.equal(with_pictures, without)


def test_new_pictures_are_those_behind_the_cached_positions() -> None:
    rows = [[1, IMAGE, IMAGE, 2, IMAGE, 3], [1, 2, 3, IMAGE, IMAGE, IMAGE]]
    ids = torch.tensor(rows)
    find = {"image_token_id": IMAGE, "num_image_tokens": [2, 1, 1, 2]}
    assert new_pictures(ids, **find, num_cached=0) == [0, 1, 2, 3]
    assert new_pictures(ids, **find, num_cached=3) == [1, 2, 3]
    assert new_pictures(ids, **find, num_cached=4) == [1, 3]
    assert new_pictures(ids, **find, num_cached=6) == []


def test_cache_that_ends_inside_a_picture_is_refused() -> None:
    with pytest.raises(PlaceholderMismatchError, match=r"ends inside a picture of row 0 \(1 of its 2 image tokens\)"):
        new_pictures(torch.tensor([[1, IMAGE, IMAGE]]), image_token_id=IMAGE, num_image_tokens=[2], num_cached=2)


def test_pictures_that_do_not_fit_their_prompts_are_left_to_the_model() -> None:
    ids = torch.tensor([[1, IMAGE, IMAGE, 2]])
    assert new_pictures(ids, image_token_id=IMAGE, num_image_tokens=[2, 2], num_cached=3) == [0, 1]
    assert new_pictures(ids, image_token_id=IMAGE, num_image_tokens=[], num_cached=3) == []
