"""Conversations in which every turn and every picture is computed once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.generation.chat_session import ChatSession

from .conftest import PICTURES, Encode, picture

TURNS: list[tuple[Any, ...]] = [
    (86, "What number is in the image?"),
    ("How many digits are in the image?",),
    (392, "What number is in image 2?"),
    ("Which image shows the largest number?",),
]


def with_pictures(turn: tuple[Any, ...]) -> list[Any]:
    return [part if isinstance(part, str) else picture(part) for part in turn]


@pytest.fixture
def session(model: XGenMMForConditionalGeneration, processor: XGenMMProcessor) -> ChatSession:
    return ChatSession(model, processor, max_new_tokens=8)


def test_answers_are_those_of_conversations_computed_anew(
    session: ChatSession, model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, encode: Encode
) -> None:
    for turn in TURNS:
        answer = session.send(*with_pictures(turn))
        inputs = encode(session.messages[:-1])
        ids = model.generate(**inputs, max_new_tokens=8)
        expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == expected.strip()
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 4
    assert session.messages[1]["content"] == [{"type": "text", "text": "86"}]


def test_every_picture_goes_through_the_tower_once(session: ChatSession, tower_calls: list[int]) -> None:
    seen = []
    for turn in TURNS:
        session.send(*with_pictures(turn))
        seen.append(sum(tower_calls))
        tower_calls.clear()
    assert seen == [5, 0, 5, 0]


def test_a_turn_computes_its_own_tokens_alone(session: ChatSession, model: XGenMMForConditionalGeneration) -> None:
    lengths: list[int] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    session.send(*with_pictures(TURNS[0]))
    first = lengths[0]
    lengths.clear()
    cached = session.num_cached_tokens
    session.send(*with_pictures(TURNS[1]))
    handle.remove()
    assert cached >= first
    assert lengths[0] < first / 2
    assert session.num_cached_tokens >= cached + lengths[0]


def test_answer_that_was_cut_off_does_not_spoil_the_next_turn(
    session: ChatSession, model: XGenMMForConditionalGeneration, processor: XGenMMProcessor
) -> None:
    session.send(*with_pictures(TURNS[0]), max_new_tokens=1)
    fresh = ChatSession(model, processor, max_new_tokens=8)
    fresh.messages = copy.deepcopy(session.messages)
    assert session.send(*with_pictures(TURNS[1])) == fresh.send(*with_pictures(TURNS[1]))


def test_changed_history_is_computed_from_the_change_on(
    session: ChatSession, model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, tower_calls: list[int]
) -> None:
    for turn in TURNS[:2]:
        session.send(*with_pictures(turn))
    del session.messages[2:]
    session.messages[1]["content"][0]["text"] = "7"
    tower_calls.clear()
    answer = session.send(*with_pictures(TURNS[1]))
    assert tower_calls == []
    fresh = ChatSession(model, processor, max_new_tokens=8)
    fresh.messages = copy.deepcopy(session.messages[:-2])
    assert answer == fresh.send(*with_pictures(TURNS[1]))


def test_exchanged_picture_is_encoded_again(session: ChatSession, tower_calls: list[int]) -> None:
    # A picture cannot be told from its placeholders, so it is the caller who starts anew.
    session.send(*with_pictures(TURNS[0]))
    session.restart()
    tower_calls.clear()
    assert session.messages == []
    assert session.num_cached_tokens == 0
    assert session.send(picture(392), "What number is in the image?") == "392"
    assert sum(tower_calls) == 5


def test_window_smaller_than_the_conversation_keeps_answers_right(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor
) -> None:
    small_window = copy.deepcopy(model)
    for config in (small_window.config.text_config, small_window.model.language_model.config):
        config.sliding_window = 24
    session = ChatSession(small_window, processor, max_new_tokens=4)
    for turn in TURNS:
        # Cut off, so that the cache would have to go back.
        answer = session.send(*with_pictures(turn), max_new_tokens=2)
        fresh = ChatSession(small_window, processor, max_new_tokens=4)
        fresh.messages = copy.deepcopy(session.messages[:-2])
        assert answer == fresh.send(*with_pictures(turn), max_new_tokens=2)


def test_failed_turn_leaves_the_conversation_as_it_was(session: ChatSession) -> None:
    session.send(*with_pictures(TURNS[0]))
    messages = copy.copy(session.messages)
    with pytest.raises(FileNotFoundError):
        session.send(*with_pictures(TURNS[1]), streamer=Broken())
    assert session.messages == messages
    assert session.send(*with_pictures(TURNS[1])) == "2"


class Broken:
    """A streamer whose reader has gone."""

    def put(self, value: torch.Tensor) -> None:
        raise FileNotFoundError

    def end(self) -> None:
        raise FileNotFoundError


def test_paths_and_system_prompts_are_taken(model: XGenMMForConditionalGeneration, processor: XGenMMProcessor) -> None:
    session = ChatSession(model, processor, system_prompt="Be brief.", max_new_tokens=8)
    session.send(Path(PICTURES / "86.png"), "What number is in the image?")
    assert session.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert session.messages[1]["content"][0] == {"type": "image", "path": str(PICTURES / "86.png")}
