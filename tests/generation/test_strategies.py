"""Every decoding strategy of the host, on pictures."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    ContinuousBatchingConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
)

import xgen_mm
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor

from .conftest import ONE, TWO, Answers, Encode, question


def test_batch_of_ragged_samples_gives_what_each_gives_alone(encode: Encode, answers: Answers) -> None:
    text_alone = question("Which is larger, 12 or 21?")
    together = answers(encode(ONE, TWO, text_alone))
    assert together == [answers(encode(chat))[0] for chat in (ONE, TWO, text_alone)]
    assert together[:2] == ["86", "Image 2"]


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_of_a_ragged_batch_give_what_each_sample_gives_alone(
    encode: Encode, answers: Answers, num_beams: int
) -> None:
    assert answers(encode(ONE, TWO), num_beams=num_beams) == [
        answers(encode(chat), num_beams=num_beams)[0] for chat in (ONE, TWO)
    ]


def test_beams_encode_every_picture_once(encode: Encode, answers: Answers, tower_calls: list[int]) -> None:
    inputs = encode(ONE, TWO)
    answers(inputs, num_beams=3, num_return_sequences=2)
    num_tiles = int((inputs["pixel_values"].flatten(2).abs().sum(-1) > 0).sum())
    assert sum(tower_calls) == num_tiles


def test_several_sequences_come_back_in_order_of_samples(encode: Encode, answers: Answers) -> None:
    found = answers(encode(ONE, TWO), num_beams=3, num_return_sequences=3)
    best = answers(encode(ONE, TWO), num_beams=3)
    assert [found[0], found[3]] == best
    assert len(set(found[3:])) == 3


def test_sampling_with_a_seed_repeats_and_varies_without(encode: Encode, answers: Answers) -> None:
    arguments = {"do_sample": True, "temperature": 3.0, "top_k": 0, "num_return_sequences": 8}
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(answers(encode(TWO), **arguments))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 1


@pytest.mark.parametrize("chat", [ONE, TWO], ids=["one-picture", "two-pictures"])
def test_assisted_decoding_gives_the_greedy_answer(
    model: XGenMMForConditionalGeneration, encode: Encode, answers: Answers, chat: list[dict[str, Any]]
) -> None:
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        # A worse assistant, whose proposals are refused now and then.
        assistant.model.language_model.layers[-1].mlp.down_proj.weight.zero_()
    inputs = encode(chat)
    assert answers(inputs, assistant_model=assistant) == answers(inputs)


def test_prompt_lookup_gives_the_greedy_answer(encode: Encode, answers: Answers) -> None:
    assert answers(encode(TWO), prompt_lookup_num_tokens=4) == answers(encode(TWO))


class Wants(LogitsProcessor):
    """Makes one token the likeliest."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self.token_id] += 1000
        return scores


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_beams": 2}, {"do_sample": True}, {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}],
    ids=["greedy", "beams", "sampling", "prompt-lookup"],
)
def test_placeholder_is_never_generated(encode: Encode, arguments: dict[str, Any]) -> None:
    # Without the setting of the packaged checkpoint, which forbids the token by itself.
    model = AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint()).eval()
    model.generation_config.suppress_tokens = None
    token_id = model.config.image_token_id
    boost = torch.nn.functional.one_hot(torch.tensor(token_id), model.config.text_config.vocab_size) * 1000.0
    model.lm_head.register_forward_hook(lambda module, args, logits: logits + boost)
    inputs = encode(TWO)
    ids = model.generate(**inputs, max_new_tokens=6, **arguments)
    assert token_id not in ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert model.generation_config.suppress_tokens is None


def test_logits_processors_and_stopping_criteria_are_called(
    model: XGenMMForConditionalGeneration, encode: Encode
) -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= length + 3)

    inputs = encode(ONE)
    length = inputs["input_ids"].shape[1]
    token_id = 40
    ids = model.generate(
        **inputs,
        max_new_tokens=9,
        logits_processor=LogitsProcessorList([Wants(token_id)]),
        stopping_criteria=[After()],
    )
    assert ids[0, length:].tolist() == [token_id] * 3


def test_stop_string_ends_the_answer(processor: XGenMMProcessor, encode: Encode, answers: Answers) -> None:
    assert answers(encode(TWO), stop_strings=["mage"], tokenizer=processor.tokenizer) == ["Image"]


def test_streamer_gets_the_answer_piece_by_piece(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, encode: Encode
) -> None:
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**encode(TWO), max_new_tokens=8, streamer=streamer)
    assert "".join(streamer) == "Image 2"
    assert issubclass(TextIteratorStreamer, TextStreamer)


def test_embeddings_instead_of_ids_give_the_same_answer(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, encode: Encode, answers: Answers
) -> None:
    inputs: BatchFeature = encode(ONE, TWO)
    expected = answers(inputs)
    ids = inputs.pop("input_ids")
    found = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **inputs, max_new_tokens=8)
    assert processor.batch_decode(found, skip_special_tokens=True) == expected


@pytest.mark.parametrize(
    "arguments",
    [{"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"penalty_alpha": 0.6, "top_k": 4}],
    ids=["group-beams", "contrastive"],
)
def test_strategies_the_host_moved_out_say_where_they_are(
    encode: Encode, answers: Answers, arguments: dict[str, Any]
) -> None:
    # They need code from the Hub now, which runs only if the user trusts it.
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        answers(encode(ONE), **arguments)


def test_continuous_batching_generates_from_text(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, encode: Encode, answers: Answers
) -> None:
    # The host's own continuous batching takes ids alone, no pictures.
    inputs = encode(question("Which is larger, 12 or 21?"))
    # By default the host fills most of the machine's memory with its cache.
    config = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    results = model.generate_batch([inputs["input_ids"][0].tolist()], continuous_batching_config=config)
    (result,) = results.values()
    assert processor.decode(result.generated_tokens, skip_special_tokens=True) == answers(inputs, max_new_tokens=20)[0]
