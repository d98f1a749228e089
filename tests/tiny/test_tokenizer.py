"""The tokenizer encodes any text, spells digits and leaves white space alone."""

import pytest
from transformers import PreTrainedTokenizerFast

from xgen_mm.tiny.conversations import LARGEST_QUESTIONS, NUMBER_QUESTIONS
from xgen_mm.tiny.tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE, _tokenizer_json, build_tokenizer


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Which image shows the largest number?", id="trained"),
        pytest.param("  two  spaces,\ttab\n\n and lines ", id="white-space"),
        pytest.param("Grüße, 你好, \u200b🙂", id="other-scripts"),
        pytest.param("<|user|>\nImage 1: <image>\nWhy?<|end|>\n<|assistant|>\n407<|end|>", id="prompt"),
    ],
)
def test_tokenizer_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_number_is_one_token_per_digit(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("number 90210")[-5:] == list("90210")


def test_tokenizer_special_tokens_are_single_and_swallow_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"\n {token}\n", add_special_tokens=False)
        assert tokenizer.convert_tokens_to_ids(token) in ids
        assert tokenizer.decode(ids) == f"\n {token}\n"
        assert tokenizer.decode(ids, skip_special_tokens=True) == "\n \n"


def test_tokenizer_encode_adds_no_beginning_token_and_pads_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["7", "77"], padding=True)
    seven = tokenizer.convert_tokens_to_ids("7")
    assert batch["input_ids"] == [[tokenizer.pad_token_id, seven], [seven, seven]]


def test_tokenizer_trained_questions_are_short(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= VOCABULARY_SIZE
    for question in (NUMBER_QUESTIONS[0], LARGEST_QUESTIONS[0]):
        assert len(tokenizer.tokenize(question)) <= len(question.split()) + 2


def test_build_tokenizer_twice_gives_the_same_vocabulary() -> None:
    first = build_tokenizer().get_vocab()
    _tokenizer_json.cache_clear()
    assert build_tokenizer().get_vocab() == first
