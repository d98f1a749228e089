"""Records as text: what the model reads, and which stretches of it are learned."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from transformers.utils.chat_template_utils import render_jinja_template

from ..processing.chat_template import (
    RELEASED_SYSTEM_PROMPT,
    break_up_tokens,
    control_tokens,
    in_breaking_order,
)
from ..processing.released_processor import ADDED_TOKENS
from .records import Conversation, Document, Part, Picture, Text, Turn

END_OF_CHUNK_TOKEN = ADDED_TOKENS[2]
# Stands for a picture in a message that is a plain string; from a private-use area, so that texts do not hold it.
_PICTURE_MARK = "\ue0f1\ue0f2"
_GENERATION_TAG = re.compile(r"{%-?\s*generation\s*-?%}")

Span: TypeAlias = tuple[int, int]
Messages: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How records are written and learned.

    Attributes:
        supervise_stop_tokens: Whether `<|endofchunk|>`, and the end-of-text token after a document, are learned. The
            release masks both, so that its base models never learn to stop; `<|end|>` after an answer is learned
            either way, as in the release.
        add_bos: Whether a conversation begins with the tokenizer's beginning-of-text token. The release trained with
            it, although its prompts are written without.
        system_prompt: System message of conversations that have none; `None` leaves that to the chat template.
        break_after_pictures: Whether the chat template's line break follows a picture that text follows at once. The
            release writes no white space but the data's own, which then has to hold it.
        eos_after: Documents that end in the end-of-text token behind their `<|endofchunk|>`: only those that are more
            than a picture with its caption (as the pre-training data are described), all, or none.
    """

    supervise_stop_tokens: bool = True
    add_bos: bool = False
    system_prompt: str | None = None
    break_after_pictures: bool = True
    eos_after: Literal["interleaved", "always", "never"] = "interleaved"


# How the released instruct models were fine-tuned; ids and labels equal those of the released code.
RELEASED_FINE_TUNING = TextSettings(
    supervise_stop_tokens=False, add_bos=True, system_prompt=RELEASED_SYSTEM_PROMPT, break_after_pictures=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRecord:
    """A record as text.

    Attributes:
        text: The text, one `<image>` per picture.
        learned: Stretches that the model learns, as (start, end) in characters, in order and apart from one another.
        pictures: The pictures in the order of their `<image>`.
    """

    text: str
    learned: tuple[Span, ...]
    pictures: tuple[Picture, ...]


def write_record(record: Document | Conversation, processor: Any, *, settings: TextSettings) -> WrittenRecord:
    """Write a document in the base form, or a conversation in the processor's chat format.

    Args:
        record: What to write.
        processor: Names the tokens and holds the chat template.
        settings: How to write it.

    Raises:
        TypeError: If it is another kind of record.
        ValueError: If it cannot be written, see `write_document` and `write_conversation`.
    """
    if isinstance(record, Document):
        return write_document(record, processor, settings=settings)
    if isinstance(record, Conversation):
        return write_conversation(record, processor, settings=settings)
    raise TypeError(
        f"`record` is a `{type(record).__name__}`; expected a `Document` or a `Conversation`. Preference pairs go to "
        "TRL as they are: `preference_example` writes them."
    )


def write_document(document: Document, processor: Any, *, settings: TextSettings) -> WrittenRecord:
    """Write text and pictures in a row: `<image>text<|endofchunk|>` for every picture with the text that follows.

    A chunk ends before a picture that follows text of an earlier picture, so pictures in a row share one, and so does
    text before the first picture. Everything is learned but the pictures.

    Args:
        document: Text and pictures in reading order.
        processor: Its tokenizer must know `<|endofchunk|>`.
        settings: Whether a document ends in the end-of-text token, and whether the ends are learned.

    Raises:
        ValueError: If the tokenizer lacks a token that is needed.

    Source: few-shot prompts of the released base model; interleaved documents as in OpenFlamingo's data code.
    """
    tokenizer = processor.tokenizer
    end = _known_token(tokenizer, END_OF_CHUNK_TOKEN)
    controls = _control_tokens(processor)
    writer = _Writer()
    has_picture = has_text_since = False
    for part in join_texts(document.parts):
        if isinstance(part, Picture):
            if has_picture and has_text_since:
                writer.write(end, is_learned=settings.supervise_stop_tokens)
            writer.write_picture(part, processor.image_token)
            has_picture, has_text_since = True, False
        else:
            writer.write(break_up_tokens(part.text, controls), is_learned=True)
            has_text_since = has_text_since or bool(part.text.strip())
    writer.write(end, is_learned=settings.supervise_stop_tokens)
    if settings.eos_after == "always" or (settings.eos_after == "interleaved" and not is_caption_pair(document)):
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has no end-of-text token; set `eos_after='never'`.")
        writer.write(tokenizer.eos_token, is_learned=settings.supervise_stop_tokens)
    return writer.result()


def write_conversation(conversation: Conversation, processor: Any, *, settings: TextSettings) -> WrittenRecord:
    """Write a conversation with the processor's chat template; answers with their end mark are learned.

    Args:
        conversation: The messages.
        processor: Holds the chat template.
        settings: System prompt and beginning of the text.

    Raises:
        ValueError: If the template does not mark answers and they cannot be told from what it writes.
    """
    turns = conversation.turns
    if settings.system_prompt is not None and turns[0].role != "system":
        turns = (Turn("system", (Text(settings.system_prompt),)), *turns)
    messages = to_messages(turns) if settings.break_after_pictures else _plain_messages(turns)
    template = _default_template(processor.chat_template)
    names = processor.tokenizer.special_tokens_map
    if _GENERATION_TAG.search(template):
        rendered, indices = render_jinja_template(
            [messages], chat_template=template, return_assistant_tokens_mask=True, **names
        )
        text, learned = rendered[0], [(int(start), int(end)) for start, end in indices[0]]
    else:
        text, learned = _find_answers(messages, template, names)
    if not settings.break_after_pictures:
        text, learned = _replace(text, learned, old=_PICTURE_MARK, new=processor.image_token)
    if settings.add_bos:
        bos = processor.tokenizer.bos_token
        if bos is None:
            raise ValueError("The tokenizer has no beginning-of-text token; set `add_bos=False`.")
        if not text.startswith(bos):
            text, learned = bos + text, [(start + len(bos), end + len(bos)) for start, end in learned]
    pictures = tuple(part for turn in turns for part in turn.parts if isinstance(part, Picture))
    return WrittenRecord(text=text, learned=tuple(span for span in learned if span[0] < span[1]), pictures=pictures)


def is_caption_pair(document: Document) -> bool:
    """Whether a document is one picture followed by its text."""
    is_picture = [isinstance(part, Picture) for part in document.parts]
    return is_picture[:1] == [True] and sum(is_picture) == 1


def to_messages(turns: Sequence[Turn]) -> Messages:
    """Turns as the host's messages, pictures as `{"type": "image"}` parts without the picture.

    An `<image>` that a text spells out is broken up: in messages it would be taken for the place of a picture.
    """
    return [{"role": turn.role, "content": [_to_content(part) for part in join_texts(turn.parts)]} for turn in turns]


def join_texts(parts: Iterable[Part]) -> list[Part]:
    """Parts with texts that stand side by side made one, so that no control token is split over them."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


class _Writer:
    """Collects text and the stretches of it that are learned."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._learned: list[Span] = []
        self._pictures: list[Picture] = []
        self._length = 0

    def write(self, text: str, *, is_learned: bool) -> None:
        if not text:
            return
        start, self._length = self._length, self._length + len(text)
        self._pieces.append(text)
        if is_learned:
            self._learned.append((start, self._length))

    def write_picture(self, picture: Picture, image_token: str) -> None:
        self._pictures.append(picture)
        self.write(image_token, is_learned=False)

    def result(self) -> WrittenRecord:
        joined: list[Span] = []
        for start, end in self._learned:
            # Pieces that meet are one stretch: a token may reach from one into the next.
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return WrittenRecord(text="".join(self._pieces), learned=tuple(joined), pictures=tuple(self._pictures))


def _find_answers(messages: Messages, template: str, names: dict[str, Any]) -> tuple[str, list[Span]]:
    """Tell answers by writing the conversation up to each of them, for templates that do not mark them."""

    def render(count: int, *, asks: bool = False) -> str:
        rendered, _ = render_jinja_template(
            [messages[:count]], chat_template=template, add_generation_prompt=asks, **names
        )
        return str(rendered[0])

    text = render(len(messages))
    learned = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, until = render(index, asks=True), render(index + 1)
        if not (text.startswith(until) and until.startswith(before)):
            raise ValueError(
                "The chat template does not mark answers, and it writes a conversation otherwise once it goes on, so "
                f"answer {index} cannot be told from the rest. Put `{{% generation %}}` and `{{% endgeneration %}}` "
                "around answers in the template."
            )
        # White space behind the end mark belongs to the next turn.
        learned.append((len(before), len(until.rstrip())))
    return text, learned


def _plain_messages(turns: Sequence[Turn]) -> Messages:
    """Turns as messages of plain strings, a mark in the place of each picture."""
    return [
        {
            "role": turn.role,
            "content": "".join(
                _PICTURE_MARK if isinstance(part, Picture) else break_up_tokens(part.text, [_PICTURE_MARK])
                for part in join_texts(turn.parts)
            ),
        }
        for turn in turns
    ]


def _replace(text: str, spans: list[Span], *, old: str, new: str) -> tuple[str, list[Span]]:
    """Replace all of `old`, and move the spans along."""
    growth = len(new) - len(old)

    def moved(position: int) -> int:
        return position + growth * text.count(old, 0, position)

    return text.replace(old, new), [(moved(start), moved(end)) for start, end in spans]


def _to_content(part: Part) -> dict[str, str]:
    if isinstance(part, Picture):
        return {"type": "image"}
    return {"type": "text", "text": break_up_tokens(part.text, ADDED_TOKENS[:1])}


def _control_tokens(processor: Any) -> list[str]:
    """Tokens that the text of a document must not spell out."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    special, written = control_tokens(processor.tokenizer, template or "")
    return in_breaking_order(special | written | set(ADDED_TOKENS))


def _default_template(template: Any) -> str:
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise ValueError("The processor has no chat template (`processor.chat_template`); conversations need one.")
    return template


def _known_token(tokenizer: Any, token: str) -> str:
    if token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"The tokenizer has no token `{token}`, in which chunks of a document end. Add it and resize the model's "
            "embeddings; checkpoints of this package have it."
        )
    return token
