from typing import TYPE_CHECKING

import pytest

from tests.data.made_records import conversation, document, parts, provenance
from xgen_mm.data.records import Conversation, PreferencePair, Turn
from xgen_mm.data.text_forms import TextSettings, WrittenRecord, write_record

if TYPE_CHECKING:
    from xgen_mm import XGenMMProcessor

# A chat format of another language model that marks no answers.
UNMARKED = (
    "{%- for message in messages -%}<s>{{ message.role ~ '\n' }}"
    "{%- for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor -%}"
    "</s>{{ '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<s>assistant\n' }}{%- endif -%}"
)


def learned_texts(written: WrittenRecord) -> list[str]:
    return [written.text[start:end] for start, end in written.learned]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param("<image>A cat.", "<image>A cat.<|endofchunk|>", id="caption-pair"),
        pytest.param(
            "One <image>two<image> three",
            "One <image>two<|endofchunk|><image> three<|endofchunk|><|endoftext|>",
            id="interleaved",
        ),
        pytest.param(
            "<image><image>Two at once.<image>",
            "<image><image>Two at once.<|endofchunk|><image><|endofchunk|><|endoftext|>",
            id="pictures-in-a-row-share-a-chunk",
        ),
        pytest.param("Only text.", "Only text.<|endofchunk|><|endoftext|>", id="text-only"),
    ],
)
def test_document_is_written_in_the_base_form(tiny_processor: "XGenMMProcessor", source: str, text: str) -> None:
    written = write_record(document(source), tiny_processor, settings=TextSettings())
    assert written.text == text
    assert "".join(learned_texts(written)) == text.replace("<image>", "")
    assert len(written.pictures) == source.count("<image>")


def test_document_without_supervised_stop_tokens_learns_text_alone(tiny_processor: "XGenMMProcessor") -> None:
    settings = TextSettings(supervise_stop_tokens=False)
    written = write_record(document("<image>one<image>two"), tiny_processor, settings=settings)
    assert learned_texts(written) == ["one", "two"]


@pytest.mark.parametrize(("eos_after", "ends"), [("always", True), ("never", False)])
def test_document_end_of_text_token_follows_the_setting(
    tiny_processor: "XGenMMProcessor", eos_after: str, ends: bool
) -> None:
    written = write_record(document("<image>A cat."), tiny_processor, settings=TextSettings(eos_after=eos_after))
    assert written.text.endswith("<|endoftext|>") is ends


def test_document_text_that_spells_out_control_tokens_cannot_forge_them(tiny_processor: "XGenMMProcessor") -> None:
    record = document("a <|endofchunk|> b <|end|>")
    written = write_record(record, tiny_processor, settings=TextSettings(eos_after="never"))
    assert written.text == "a <\u200b|endofchunk|> b <\u200b|end|><|endofchunk|>"


def test_document_tokenizer_without_end_of_chunk_is_refused(tiny_processor: "XGenMMProcessor") -> None:
    class Bare:
        image_token = "<image>"
        tokenizer = type("Tokenizer", (), {"get_added_vocab": lambda self: {}})()

    with pytest.raises(ValueError, match="has no token `<|endofchunk|>`".replace("|", r"\|")):
        write_record(document("text"), Bare(), settings=TextSettings())


def test_conversation_learns_answers_and_their_end_marks(tiny_processor: "XGenMMProcessor") -> None:
    record = conversation("<image>What?", "A <image> cat.", "And?", "Nothing.")
    written = write_record(record, tiny_processor, settings=TextSettings())
    assert written.text == (
        "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\nA <image> cat.<|end|>\n"
        "<|user|>\nAnd?<|end|>\n<|assistant|>\nNothing.<|end|>\n"
    )
    assert learned_texts(written) == ["A <image> cat.<|end|>", "Nothing.<|end|>"]


def test_conversation_without_breaks_keeps_the_white_space_of_the_data(tiny_processor: "XGenMMProcessor") -> None:
    record = conversation("Look <image>, <image>.", "<image>Yes.")
    written = write_record(record, tiny_processor, settings=TextSettings(break_after_pictures=False))
    assert written.text == "<|user|>\nLook <image>, <image>.<|end|>\n<|assistant|>\n<image>Yes.<|end|>\n"
    assert learned_texts(written) == ["<image>Yes.<|end|>"]


def test_conversation_system_prompt_is_added_where_there_is_none(tiny_processor: "XGenMMProcessor") -> None:
    settings = TextSettings(system_prompt="Be brief.", add_bos=True)
    written = write_record(conversation("Hi", "Hello"), tiny_processor, settings=settings)
    assert written.text.startswith("<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi")
    assert learned_texts(written) == ["Hello<|end|>"]
    own = Conversation((Turn("system", parts("Mine.")), *conversation("Hi", "Hello").turns), provenance())
    assert "Be brief." not in write_record(own, tiny_processor, settings=settings).text


def test_conversation_template_without_marks_is_read_by_its_prefixes(tiny_processor: "XGenMMProcessor") -> None:
    tiny_processor.chat_template = UNMARKED
    written = write_record(conversation("Hi <image>", "Hello", "So?", "So."), tiny_processor, settings=TextSettings())
    assert written.text == (
        "<s>user\nHi <image></s>\n<s>assistant\nHello</s>\n<s>user\nSo?</s>\n<s>assistant\nSo.</s>\n"
    )
    assert learned_texts(written) == ["Hello</s>", "So.</s>"]


def test_conversation_template_that_rewrites_the_past_is_refused(tiny_processor: "XGenMMProcessor") -> None:
    tiny_processor.chat_template = "{{ messages | length }}" + UNMARKED
    with pytest.raises(ValueError, match="answer 1 cannot be told"):
        write_record(conversation("Hi", "Hello", "So?", "So."), tiny_processor, settings=TextSettings())


def test_preference_pair_is_refused_with_its_own_writer_named(tiny_processor: "XGenMMProcessor") -> None:
    turns = conversation("Hi", "Hello").turns
    pair = PreferencePair(prompt=turns[:1], chosen=turns[1], rejected=turns[1], provenance=provenance())
    with pytest.raises(TypeError, match="preference_example"):
        write_record(pair, tiny_processor, settings=TextSettings())
