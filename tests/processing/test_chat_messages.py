"""Messages as people and web interfaces write them: read in full, or refused in one line that says what to write."""

import logging
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from jinja2 import TemplateError
from PIL import Image

from tests.conversion.tiny_parts import CHATML_STYLE
from xgen_mm import XGenMMImageProcessor, XGenMMProcessor
from xgen_mm.conversion.chat_format import extend_chat_template
from xgen_mm.processing import chat_messages
from xgen_mm.processing.chat_messages import keep_as_text, read_conversations
from xgen_mm.tiny.tokenizer import build_tokenizer

PICTURE = Image.new("RGB", (8, 4))
SIDE = {"height": 28, "width": 28}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(picture: Any = PICTURE) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def processor() -> XGenMMProcessor:
    image_processor = XGenMMImageProcessor(size=SIDE, image_grid_pinpoints=[[28, 56]])
    return XGenMMProcessor(image_processor, build_tokenizer(), num_latents=1)


@pytest.fixture(autouse=True)
def warns_anew() -> Iterator[None]:
    chat_messages._warn_of_text.cache_clear()
    yield
    chat_messages._warn_of_text.cache_clear()


def read_parts(*content: Any) -> Any:
    return read_conversations([user(list(content))], image_token="<image>")[0]["content"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        pytest.param({"type": "input_text", "text": "q"}, text("q"), id="responses-text"),
        pytest.param({"type": "output_text", "text": "q", "annotations": []}, text("q"), id="responses-answer"),
        pytest.param({"type": "text", "text": "q", "cache_control": {"type": "x"}}, text("q"), id="cached-text"),
        pytest.param({"type": "text", "text": "q", "image": None, "url": ""}, text("q"), id="table-text"),
        pytest.param({"type": "image", "text": None, "image": "a.png"}, image("a.png"), id="table-image"),
        pytest.param({"type": "image"}, {"type": "image"}, id="image-passed-beside"),
        pytest.param(
            {"type": "image_url", "image_url": "http://x/a"}, {"type": "image", "url": "http://x/a"}, id="url"
        ),
        pytest.param(
            {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
            {"type": "image", "url": "data:,"},
            id="url-object",
        ),
        pytest.param(
            {"type": "input_image", "image_url": "http://x/a", "detail": "auto"},
            {"type": "image", "url": "http://x/a"},
            id="responses-image",
        ),
        pytest.param(
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            {"type": "image", "base64": "AAAA"},
            id="source-base64",
        ),
        pytest.param(
            {"type": "image", "source": {"type": "url", "url": "http://x/a"}},
            {"type": "image", "url": "http://x/a"},
            id="source-url",
        ),
    ],
)
def test_part_of_a_common_interface_is_read(part: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_parts(part) == [expected]


def test_images_of_web_interfaces_reach_the_model(processor: XGenMMProcessor) -> None:
    buffer = BytesIO()
    PICTURE.save(buffer, "PNG")
    pixel = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "input_image", "image_url": pixel}, {"type": "input_text", "text": "What?"}]
    inputs = processor.apply_chat_template([user(content)], tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["image_sizes"].tolist() == [[4, 8]]
    assert "What?" in processor.decode(inputs["input_ids"][0])


def test_developer_is_the_system(processor: XGenMMProcessor) -> None:
    prompt = processor.apply_chat_template([{"role": "developer", "content": "Be brief."}, user("Hi")])
    assert prompt == "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n"


TOOL_CALL = [{"function": {"name": "f", "arguments": "{}"}}]
REFUSED: list[Any] = [
    pytest.param([], ValueError, "holds no message", id="no-messages"),
    pytest.param([[]], ValueError, "holds no message", id="batch-without-messages"),
    pytest.param(user("q"), TypeError, "`dict`; expected a list of messages", id="message-alone"),
    pytest.param("q", TypeError, "`str`; expected a list of messages", id="text-alone"),
    pytest.param(None, TypeError, "`NoneType`; expected a list", id="nothing"),
    pytest.param(["q"], TypeError, r"messages\[0\].*`str`; expected a message", id="text-as-message"),
    pytest.param([5], TypeError, r"messages\[0\].*`int`", id="number-as-message"),
    pytest.param([{"content": "q"}], ValueError, "has `content`, but no text as `role`", id="no-role"),
    pytest.param([{"from": "human", "value": "q"}], ValueError, "has `from`, `value`, but no", id="other-keys"),
    pytest.param([{"role": "user", "value": "q"}], ValueError, "`value`, but no `content`", id="other-content-key"),
    pytest.param([user(None)], ValueError, "but no `content`", id="content-none"),
    pytest.param([user([])], ValueError, "content` is empty", id="content-empty"),
    pytest.param([user(5)], TypeError, "content` is a `int`", id="content-number"),
    pytest.param([user(text("q"))], TypeError, "content` is a `dict`", id="content-part"),
    pytest.param([user(["q"])], TypeError, r"content\[0\]` is a `str`", id="part-text"),
    pytest.param([user([PICTURE])], TypeError, r"content\[0\]` is a `Image`", id="part-image"),
    pytest.param([user([{"text": "q"}])], ValueError, "has `text`, but no `type`", id="no-type"),
    pytest.param([user([{}])], ValueError, "has nothing, but no `type`", id="empty-part"),
    pytest.param([user([{"type": 5}])], ValueError, "type `5`", id="type-number"),
    pytest.param([user([{"type": "text", "content": "q"}])], ValueError, "has `content`; write its words", id="words"),
    pytest.param([user([text(None)])], ValueError, "has nothing; write its words under `text`", id="text-none"),
    pytest.param([user([text(5)])], TypeError, "text` is a `int`", id="text-number"),
    pytest.param([user([text({"value": "q"})])], TypeError, "text` is a `dict`", id="text-object"),
    pytest.param([user([text("q") | {"content": "r"}])], ValueError, r"\.content` would be lost", id="more-words"),
    pytest.param([user([text("q") | {"image": PICTURE}])], ValueError, r"\.image` would be lost", id="image-in-text"),
    pytest.param([user([{"type": "image", "file": "a.png"}])], ValueError, "`file`, which cannot be read", id="file"),
    pytest.param([user([{"type": "input_image", "file_id": "f"}])], ValueError, "`file_id`", id="file-id"),
    pytest.param([user([image() | {"path": "a.png"}])], ValueError, "`image`, `path`, of which one", id="two-sources"),
    pytest.param([user([{"type": "video"}])], ValueError, "type `video`.*`text` and `image`", id="video"),
    pytest.param([user([{"type": "input_audio"}])], ValueError, "type `input_audio`", id="audio"),
    pytest.param([user([{"type": "input_file", "file_id": "f"}])], ValueError, "type `input_file`", id="input-file"),
    pytest.param([user([{"type": "tool_result", "content": "r"}])], ValueError, "type `tool_result`", id="result"),
    pytest.param([user("q") | {"images": ["AAAA"]}], ValueError, "images` would be lost", id="images-of-a-message"),
    pytest.param([user("q"), {"role": "tool", "content": "r"}], ValueError, "role `tool`: expected", id="tool"),
    pytest.param([user("q"), {"role": "judge", "content": "r"}], ValueError, "role `judge`: expected", id="role"),
    pytest.param([answer(None) | {"tool_calls": TOOL_CALL}], ValueError, "`tool_calls`: this model", id="tool-calls"),
    pytest.param([answer("So") | {"tool_calls": TOOL_CALL}], ValueError, "`tool_calls`: this model", id="calls"),
    pytest.param([[user("q")], [user(None)]], ValueError, r"conversation\[1\]\[0\]", id="batch"),
]


@pytest.mark.parametrize(("messages", "kind", "message"), REFUSED)
@pytest.mark.parametrize("tokenize", [False, True])
def test_structure_that_cannot_be_read_is_refused_in_one_line(
    processor: XGenMMProcessor, messages: Any, kind: type[Exception], message: str, tokenize: bool
) -> None:
    with pytest.raises(kind, match=message) as found:
        processor.apply_chat_template(messages, tokenize=tokenize, return_dict=True)
    assert "\n" not in str(found.value)


def test_refusals_of_a_template_are_value_errors_and_still_template_errors(processor: XGenMMProcessor) -> None:
    for kind in (ValueError, TemplateError):
        with pytest.raises(kind, match="Never"):
            processor.apply_chat_template([user("q")], chat_template="{{ raise_exception('Never') }}")


def test_messages_of_the_caller_stay_as_they_are(processor: XGenMMProcessor) -> None:
    content = [image(), text("a"), text(""), text("b")]
    messages = [user(content)]
    processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert messages == [{"role": "user", "content": [image(), text("a"), text(""), text("b")]}]


def test_language_model_with_tools_gets_its_tool_messages() -> None:
    tokenizer = build_tokenizer()
    template = extend_chat_template(CHATML_STYLE, tokenizer)
    processor = XGenMMProcessor(XGenMMImageProcessor(), tokenizer, chat_template=template)
    prompt = processor.apply_chat_template([user("q"), {"role": "tool", "content": [text("42")]}])
    assert prompt.endswith("<|im_start|>tool\n42<|im_end|>\n")


# The layout of training data: texts with placeholders, images in front of the first question or passed beside.


LAYOUTS = [
    pytest.param(
        ["First <image> then <image>: which?", "One."],
        "<|user|>\nFirst <image> then <image>\n: which?<|end|>\n<|assistant|>\nOne.<|end|>\n",
        id="in-one-turn",
    ),
    pytest.param(
        ["<image>\nWhat?", "A.", "And <image>?"],
        "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\nA.<|end|>\n<|user|>\nAnd <image>\n?<|end|>\n",
        id="in-two-turns",
    ),
    pytest.param(
        ["Hi", "Ho", "<image><image>"],
        "<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n<|user|>\n<image>\n<image><|end|>\n",
        id="in-a-later-turn",
    ),
    pytest.param(
        ["<image> <image>", "It says <image>."],
        "<|user|>\n<image> <image><|end|>\n<|assistant|>\nIt says <\u200bimage>.<|end|>\n",
        id="named-in-an-answer",
    ),
]


def turns(texts: list[str]) -> list[dict[str, Any]]:
    return [(answer if index % 2 else user)(value) for index, value in enumerate(texts)]


@pytest.mark.parametrize(("texts", "expected"), LAYOUTS)
def test_images_in_front_go_to_the_places_that_texts_name(
    processor: XGenMMProcessor, texts: list[str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = Image.new("RGB", (4, 8))
    first, *rest = texts
    messages = [user([image(), image(other), text(first)]), *turns(["", *rest])[1:]]
    assert processor.apply_chat_template(messages) == expected
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["image_sizes"].tolist() == [[4, 8], [8, 4]]
    assert caplog.text == ""


@pytest.mark.parametrize(("texts", "expected"), LAYOUTS)
def test_images_passed_beside_texts_go_to_the_places_that_texts_name(
    processor: XGenMMProcessor, texts: list[str], expected: str
) -> None:
    beside = {"images": [PICTURE, PICTURE]}
    assert processor.apply_chat_template(turns(texts), processor_kwargs=beside) == expected
    batch = processor.apply_chat_template([turns(texts)], processor_kwargs={"images": [[PICTURE, PICTURE]]})
    assert batch == [expected]


@pytest.mark.parametrize("words", ["<image>", "<image><image><image>"])
def test_another_number_of_places_than_images_is_refused_with_both(processor: XGenMMProcessor, words: str) -> None:
    message = f"{words.count('<image>')} `<image>` for 2 images"
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([user([image(), image(), text(words)])])
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([user(words)], processor_kwargs={"images": [PICTURE, PICTURE]})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("a <image>", id="no-image"),
        pytest.param([text("a <image>"), image()], id="image-behind"),
        pytest.param([{"type": "image"}, text("a <image>")], id="image-to-come"),
        pytest.param([image("a.png"), text("a <image>")], id="path"),
        pytest.param([image(), text("a <image>"), text("b")], id="two-texts"),
        pytest.param([image(), text("a <im"), text("age>")], id="split"),
    ],
)
def test_placeholder_in_a_text_beside_placed_images_stays_text(processor: XGenMMProcessor, content: Any) -> None:
    prompt = processor.apply_chat_template([user(content)])
    assert "a <\u200bimage>" in prompt
    assert prompt.count("<image>") == (0 if isinstance(content, str) else 1)


def test_placeholder_that_stays_text_is_warned_of_once(
    processor: XGenMMProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            processor.apply_chat_template([user("What is <image>?")])
    assert len(caplog.records) == 1
    assert '`<image>`; it is broken up and stays text. Write `{"type": "image"' in caplog.text


def test_texts_can_be_kept_from_placing_images(processor: XGenMMProcessor) -> None:
    messages = [user([image(), text("What is ")]), answer("?"), user([text("<ima"), text("ge>")])]
    kept = keep_as_text(messages, "<image>")
    assert processor.apply_chat_template(kept).count("<image>") == 1
    assert kept[2]["content"] == [text("<\u200bimage>")]
