"""Rows whose texts say where images belong, as ms-swift, LLaMA-Factory and TRL write them."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xgen_mm.data.reading import RowReader
from xgen_mm.data.records import Conversation, Picture, PreferencePair, Text, Turn
from xgen_mm.errors import DataError

QUESTION = "First <image> then <image>: which is larger?"
USER, ANSWER = "user", "assistant"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")
    return tmp_path


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def read(root: Path, kind: str, **row: Any) -> Any:
    (record,) = RowReader(kind, image_root=root, policy="raise")({"images": ["a.png", "b.png"]} | row)
    return record


def placed(root: Path) -> tuple[Any, ...]:
    return (
        Text("First "),
        Picture(root / "a.png"),
        Text(" then "),
        Picture(root / "b.png"),
        Text(": which is larger?"),
    )


def rows(question: Any, reply: str = "B") -> list[Any]:
    """The same question in every format that has messages."""
    asked, good, bad = [turn(USER, question)], [turn(ANSWER, reply)], [turn(ANSWER, "A")]
    return [
        ("messages", {"messages": asked + good}),
        ("trl_preference", {"prompt": asked, "chosen": good, "rejected": bad}),
        ("trl_preference", {"prompt": question, "chosen": reply, "rejected": "A"}),
        ("trl_preference", {"chosen": asked + good, "rejected": asked + bad}),
        ("trl_unpaired", {"prompt": asked, "completion": good, "label": True}),
        ("trl_unpaired", {"prompt": question, "completion": reply, "label": False}),
    ]


NUMBER_OF_ROWS = range(6)


@pytest.mark.parametrize("index", NUMBER_OF_ROWS)
def test_images_go_where_the_text_of_a_row_names_them(root: Path, index: int) -> None:
    kind, row = rows(QUESTION)[index]
    record = read(root, kind, **row)
    first = record.prompt[0] if isinstance(record, PreferencePair) else record.turns[0]
    assert first == Turn("user", placed(root))


@pytest.mark.parametrize("index", NUMBER_OF_ROWS)
@pytest.mark.parametrize("question", ["Only <image>?", "<image><image><image>"])
def test_another_number_of_places_than_images_is_refused_with_both(root: Path, index: int, question: str) -> None:
    kind, row = rows(question)[index]
    with pytest.raises(DataError, match=f"{question.count('<image>')} `<image>` for 2 images"):
        read(root, kind, **row)


@pytest.mark.parametrize("index", NUMBER_OF_ROWS)
def test_images_come_first_where_no_text_names_them(root: Path, index: int) -> None:
    kind, row = rows("Which?")[index]
    record = read(root, kind, **row)
    first = record.prompt[0] if isinstance(record, PreferencePair) else record.turns[0]
    assert first.parts == (Picture(root / "a.png"), Picture(root / "b.png"), Text("Which?"))


@pytest.mark.parametrize("index", NUMBER_OF_ROWS[1:])
def test_answer_that_asks_for_an_image_is_refused(root: Path, index: int) -> None:
    kind, row = rows("<image> or?", "<image>")[index]
    with pytest.raises(DataError, match=r"`<image>` for . images|a picture in the answer"):
        read(root, kind, **row)


@pytest.mark.parametrize("index", NUMBER_OF_ROWS)
def test_places_without_images_are_refused(root: Path, index: int) -> None:
    kind, row = rows("What is in <image>?")[index]
    with pytest.raises(DataError, match="1 `<image>` for 0 images"):
        read(root, kind, **row, images=[])


def test_images_go_to_later_turns_and_to_texts_that_are_parts(root: Path) -> None:
    messages = [
        turn(USER, [{"type": "text", "text": "<image>\nWhat?"}]),
        turn(ANSWER, "A cup."),
        turn(USER, [{"type": "text", "text": "And this: <image>"}]),
        turn(ANSWER, "A plate."),
    ]
    record = read(root, "messages", messages=messages)
    assert [part for each in record.turns for part in each.parts if isinstance(part, Picture)] == [
        Picture(root / "a.png"),
        Picture(root / "b.png"),
    ]
    assert record.turns[0].parts == (Picture(root / "a.png"), Text("\nWhat?"))
    assert record.turns[2].parts == (Text("And this: "), Picture(root / "b.png"))


def test_text_beside_image_parts_may_speak_of_the_placeholder(root: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Why <image>?"}, {"type": "image"}]
    record = read(root, "messages", messages=[turn(USER, content), turn(ANSWER, "So.")])
    assert record.turns[0].parts == (Picture(root / "a.png"), Text("Why <image>?"), Picture(root / "b.png"))


def test_parts_of_web_interfaces_are_read(root: Path) -> None:
    content = [{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "What?"}]
    messages = [turn("developer", "Be brief."), turn(USER, content), turn(ANSWER, "A cup.")]
    record = read(root, "messages", messages=messages, images=[])
    assert record.turns[0] == Turn("system", (Text("Be brief."),))
    assert record.turns[1].parts == (Picture(root / "a.png"), Text("What?"))


@pytest.mark.parametrize(
    "part",
    [{"type": "text", "content": "q"}, {"type": "text", "text": None}, {"text": "q"}, {"type": "tool_use"}, 5, None],
)
def test_part_that_cannot_be_read_is_refused_with_its_place(root: Path, part: Any) -> None:
    with pytest.raises(DataError, match=r"messages\[0\]\.content\[0\]"):
        read(root, "messages", messages=[turn(USER, [part]), turn(ANSWER, "So.")], images=[])


@pytest.mark.parametrize("name", ["system_prompt", "system"])
@pytest.mark.parametrize("index", NUMBER_OF_ROWS)
def test_system_prompt_of_a_row_is_its_first_turn(root: Path, index: int, name: str) -> None:
    kind, row = rows(QUESTION)[index]
    record = read(root, kind, **row, **{name: "Be brief."})
    found = record.prompt if isinstance(record, PreferencePair) else record.turns
    assert found[:2] == (Turn("system", (Text("Be brief."),)), Turn("user", placed(root)))


def test_system_prompt_of_a_llava_row_is_its_first_turn(root: Path) -> None:
    speech = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]
    record = read(root, "llava_json", image="a.png", images=None, conversations=speech, system_prompt="Be brief.")
    assert isinstance(record, Conversation)
    assert record.turns[0] == Turn("system", (Text("Be brief."),))


def test_two_different_system_prompts_are_refused(root: Path) -> None:
    messages = [turn("system", "One."), turn(USER, "Hi"), turn(ANSWER, "Ho")]
    assert len(read(root, "messages", messages=messages, system_prompt="One.", images=[]).turns) == 3
    with pytest.raises(DataError, match="another text than in the system turn"):
        read(root, "messages", messages=messages, system_prompt="Two.", images=[])
