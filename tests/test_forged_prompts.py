"""No text can forge a control token: every token, cut at every place, through every way that a text takes to a model.

Each way gets the pieces of one token as texts that end up side by side. Its ids must hold the control tokens that it
writes for harmless texts, and no others.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conversion.tiny_parts import CHATML_STYLE, HEADER_STYLE, TURN_STYLE
from tests.conversion.tiny_parts import build_tokenizer as byte_tokenizer
from tests.data.made_records import phi3_like_tokenizer, provenance
from xgen_mm import XGenMMImageProcessor, XGenMMProcessor
from xgen_mm.conversion.chat_format import choose_chat_format, extend_chat_template
from xgen_mm.data.reading import RowReader
from xgen_mm.data.records import Conversation, Document, Picture, PreferencePair, Text, Turn
from xgen_mm.data.text_forms import RELEASED_FINE_TUNING, TextSettings, to_messages, write_record
from xgen_mm.generation.chat_session import ChatSession
from xgen_mm.modeling.assembly import add_image_tokens
from xgen_mm.processing.chat_template import break_up_tokens, build_chat_template, in_breaking_order
from xgen_mm.tiny.tokenizer import build_tokenizer

PICTURE = Picture(Image.new("RGB", (4, 4)))
Texts = Sequence[str]
Way = Callable[[Texts], list[int]]


def cuts(token: str) -> Iterator[tuple[str, ...]]:
    """A token in two and three pieces, with an empty text between, and with others of its kind around it."""
    for place in range(1, len(token)):
        head, tail = token[:place], token[place:]
        yield head, tail
        yield f"{token} {head}", "", f"{tail}\n{token}x"
        yield f"{head}{token}", token, tail
        if place > 1:
            yield head[:1], head[1:], tail


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def parts(texts: Texts) -> list[dict[str, Any]]:
    return [text(value) for value in texts]


def whole(token: str) -> Iterator[tuple[str, ...]]:
    """A token as one text, for ways that take one."""
    yield (f"a {token}{token} b",)


def check(tokenizer: Any, way: Way, *, pieces: Callable[[str], Iterator[tuple[str, ...]]] = cuts) -> None:
    control = set(tokenizer.get_added_vocab().values())
    for token in tokenizer.get_added_vocab():
        for texts in pieces(token):
            # Blank texts stay blank: a template may write something else around them.
            honest = way(["x" if piece else piece for piece in texts])
            forged = way(list(texts))
            kept = [[token_id for token_id in ids if token_id in control] for ids in (forged, honest)]
            assert kept[0] == kept[1], (token, texts)


def make_processor(tokenizer: Any, template: str | None = None) -> XGenMMProcessor:
    return XGenMMProcessor(XGenMMImageProcessor(), tokenizer, chat_template=template, num_latents=1)


@pytest.fixture(scope="module", params=[build_tokenizer, phi3_like_tokenizer], ids=["bytes", "phi3"])
def processor(request: pytest.FixtureRequest) -> XGenMMProcessor:
    return make_processor(request.param())


def prompt_ids(processor: Any, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    return list(processor.tokenizer(processor.apply_chat_template(messages, **settings))["input_ids"])


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_parts_of_a_message(processor: XGenMMProcessor, role: str) -> None:
    check(
        processor.tokenizer,
        lambda texts: prompt_ids(processor, [{"role": role, "content": [*parts(texts), {"type": "image"}]}]),
    )


def test_texts_around_an_image_and_at_the_borders_of_turns(processor: XGenMMProcessor) -> None:
    def way(texts: Texts) -> list[int]:
        first, *rest = texts
        around = [text(first), {"type": "image"}, *parts(rest)]
        messages: list[dict[str, Any]] = [{"role": "user", "content": around}]
        messages += [{"role": "assistant", "content": texts[-1]}, {"role": "user", "content": first}]
        return prompt_ids(processor, messages, add_generation_prompt=True)

    check(processor.tokenizer, way)


def test_template_alone_as_serving_engines_use_it(processor: XGenMMProcessor) -> None:
    def way(texts: Texts) -> list[int]:
        messages = [{"role": "user", "content": parts(texts)}]
        template = processor.chat_template
        written = processor.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        return list(processor.tokenizer(written)["input_ids"])

    check(processor.tokenizer, way)


class Recorder:
    """Stands in for a model: keeps the prompt and answers nothing."""

    device = "cpu"

    def generate(self, *, input_ids: Any, **_: Any) -> Any:
        self.ids: list[int] = input_ids[0].tolist()
        raise KeyboardInterrupt


def test_texts_that_a_chat_session_is_sent(processor: XGenMMProcessor) -> None:
    model = Recorder()

    def way(texts: Texts) -> list[int]:
        with pytest.raises(KeyboardInterrupt):
            ChatSession(model, processor, system_prompt=texts[0]).send(*texts)
        return model.ids

    check(processor.tokenizer, way)


@pytest.mark.parametrize("settings", [TextSettings(), RELEASED_FINE_TUNING], ids=["own", "released"])
def test_texts_of_training_conversations(processor: XGenMMProcessor, settings: TextSettings) -> None:
    def way(texts: Texts) -> list[int]:
        pieces = tuple(Text(value) for value in texts)
        turns = (Turn("user", (*pieces, PICTURE, *pieces)), Turn("assistant", pieces))
        written = write_record(Conversation(turns, provenance()), processor, settings=settings)
        return list(processor.tokenizer(written.text)["input_ids"])

    check(processor.tokenizer, way)


def test_mark_that_stands_for_images_while_a_conversation_is_written(processor: XGenMMProcessor) -> None:
    pieces = tuple(Text(value) for value in ["a \ue0f1", "\ue0f2 b"])
    record = Conversation((Turn("user", (PICTURE, *pieces)), Turn("assistant", pieces)), provenance())
    written = write_record(record, processor, settings=RELEASED_FINE_TUNING)
    assert written.text.count("<image>") == 1


def test_texts_of_training_documents(processor: XGenMMProcessor) -> None:
    def way(texts: Texts) -> list[int]:
        pieces = tuple(Text(value) for value in texts)
        record = Document((*pieces, PICTURE, *pieces, PICTURE, *pieces), provenance())
        written = write_record(record, processor, settings=TextSettings())
        return list(processor.tokenizer(written.text)["input_ids"])

    check(processor.tokenizer, way)


def test_texts_of_preference_rows(processor: XGenMMProcessor) -> None:
    reader = RowReader("trl_preference", policy="raise")

    def way(texts: Texts) -> list[int]:
        # Blank parts are refused by the reader.
        content = [text(value) for value in texts if value.strip()]
        row = {"prompt": [{"role": "user", "content": content}], "rejected": "no"}
        (pair,) = reader(row | {"chosen": [{"role": "assistant", "content": content}]})
        assert isinstance(pair, PreferencePair)
        return prompt_ids(processor, to_messages((*pair.prompt, pair.chosen)))

    check(processor.tokenizer, way)


def language_model_tokenizer(*special: str, other: tuple[str, ...] = ()) -> Any:
    tokenizer = byte_tokenizer(["<s>", "</s>", *special], other=other, bos_token="<s>", eos_token="</s>")
    add_image_tokens(tokenizer)
    return tokenizer


CONVERTED = {
    "chatml": (CHATML_STYLE, ("<|im_start|>", "<|im_end|>")),
    "headers": (HEADER_STYLE, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "turns": (TURN_STYLE, ("<start_of_turn>", "<end_of_turn>")),
}


@pytest.mark.parametrize("style", CONVERTED)
def test_messages_in_the_format_of_a_language_model(style: str) -> None:
    template, special = CONVERTED[style]
    tokenizer = language_model_tokenizer(*special)
    processor = make_processor(tokenizer, extend_chat_template(template, tokenizer))

    def way(texts: Texts) -> list[int]:
        messages = [
            {"role": "user", "content": [{"type": "image"}, *parts(texts)]},
            {"role": "assistant", "content": parts(texts)},
            {"role": "user", "content": "".join(texts)},
        ]
        return prompt_ids(processor, messages, add_generation_prompt=True)

    check(tokenizer, way)


@pytest.mark.parametrize("white", ["", " ", "\n"], ids=["close", "blank", "break"])
@pytest.mark.parametrize("trims", [False, True], ids=["as-is", "trimmed"])
def test_messages_that_a_language_models_format_writes_in_a_row(trims: bool, white: str) -> None:
    tokenizer = language_model_tokenizer()
    template = "{% for m in messages %}{{ m.content | trim }}{% endfor %}" if trims else None
    chat_format = choose_chat_format(tokenizer, template)
    assert isinstance(chat_format.template, str)
    processor = make_processor(tokenizer, chat_format.template)

    def way(texts: Texts) -> list[int]:
        messages = [{"role": "user", "content": value + white} for value in texts]
        answered = [{"role": "user", "content": texts[0] + white}, {"role": "assistant", "content": texts[-1]}]
        return prompt_ids(processor, messages) + prompt_ids(processor, answered)

    check(tokenizer, way)


TOOLS_STYLE = (
    "{% for tool in tools or [] %}[{{ tool.function.description }}]{% endfor %}"
    "{% for document in documents or [] %}[{{ document.title }}: {{ document.text }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }}\n{{ m.content }}\n{{ m.reasoning_content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{% if call.function.arguments is string %}{{ call.function.arguments }}"
    "{% else %}{{ call.function.arguments | tojson }}{% endif %}</call>{% endfor %}<|im_end|>\n{% endfor %}"
)


def test_every_string_of_messages_tools_and_documents() -> None:
    tokenizer = language_model_tokenizer("<|im_start|>", "<|im_end|>", other=("<call>", "</call>"))
    processor = make_processor(tokenizer, extend_chat_template(TOOLS_STYLE, tokenizer))

    def way(texts: Texts) -> list[int]:
        words = "".join(texts)
        calls = [{"type": "function", "function": {"name": words, "arguments": words}}]
        calls += [{"function": {"name": "f", "arguments": {words: [1, None, {"deep": words}]}}}]
        messages = [
            {"role": "user", "name": words, "content": "q"},
            {"role": "assistant", "content": "ok", "tool_calls": calls, "reasoning_content": words},
            {"role": "tool", "name": words, "content": words},
            {"role": f"user {words}", "content": "x"},
        ]
        tools = [{"type": "function", "function": {"name": "f", "description": words, "parameters": {}}}]
        documents = [{"title": words, "text": words}]
        return prompt_ids(processor, messages, tools=tools, documents=documents)

    check(tokenizer, way, pieces=whole)


def test_values_that_are_no_texts_reach_the_template_unchanged() -> None:
    tokenizer = language_model_tokenizer()
    template = extend_chat_template("{{ messages | tojson }}{{ tools | tojson }}", tokenizer)
    processor = make_processor(tokenizer, template)
    call = {"function": {"name": "f", "arguments": {"a": [1, 2.5, None, True, {"b": "c"}], "": {}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    written = processor.apply_chat_template(
        [{"role": "assistant", "content": "So.", "tool_calls": [call]}], tools=[tool]
    )
    assert written == (
        '[{"role": "assistant", "content": "So.", "tool_calls": [{"function": {"name": "f", "arguments": '
        '{"a": [1, 2.5, null, true, {"b": "c"}], "": {}}}}]}]'
        '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]'
    )


ODD_TOKENS = ("====", "<<", "aab", "ab", "<|end|>", "<\u200b|end|>", "</s", "s>", "<image>", "image>>", "[[", "]]]]")


def odd_tokenizer() -> Any:
    """Tokens that overlap their own copies and one another, and one that breaking another one up would write."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sides = [(False, False), (True, False), (False, True), (True, True)]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, lstrip=sides[index % 4][0], rstrip=sides[index % 4][1])
            for index, token in enumerate(ODD_TOKENS)
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "written", ["=====", "=" * 11, "aaabbb aab", "<<<<<<|end|>", "</s>", "<image>>>", "[[[[]]]]]]]"]
)
def test_tokens_that_overlap_are_broken_up_in_python_and_in_the_template(written: str) -> None:
    tokenizer = odd_tokenizer()
    template = build_chat_template(ODD_TOKENS)
    message = [{"role": "user", "content": written}]
    prompt = tokenizer.apply_chat_template(message, chat_template=template, tokenize=False)
    broken = break_up_tokens(written, in_breaking_order(ODD_TOKENS))
    assert prompt == f"<|user|>\n{broken}<|end|>\n"
    control = set(tokenizer.get_added_vocab().values())
    assert not control & set(tokenizer(broken)["input_ids"])
    assert broken.replace("\u200b", "").replace("\u2060", "") == written.replace("\u200b", "")


def test_odd_tokens_in_parts_of_a_message() -> None:
    processor = make_processor(odd_tokenizer())
    check(
        processor.tokenizer,
        lambda texts: prompt_ids(processor, [{"role": "user", "content": [text("q "), *parts(texts), text(" q")]}]),
    )
