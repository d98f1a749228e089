"""Messages as callers write them, checked and brought into one form before a chat template writes them."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from jinja2 import TemplateError

from .chat_template import break_up_tokens

logger = logging.getLogger(__name__)

Message: TypeAlias = dict[str, Any]
ContentPart: TypeAlias = dict[str, Any]

# Names that common chat interfaces give to the two kinds of parts.
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
IMAGE_SOURCES = ("image", "url", "path", "base64")
# Fields beside the words of a text part, and beside the source of an image part, that change nothing here.
_HARMLESS = {"type", "annotations", "cache_control", "citations", "detail", "id", "index", "logprobs", "uuid"}
# Answers that consist of these have no content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call")


class ChatError(TemplateError, ValueError):
    """Messages that a chat template cannot write, or would write with something missing."""


def read_conversations(conversation: Any, *, image_token: str, num_images: Sequence[int] | None = None) -> Any:
    """Check a conversation, or a batch of them, and bring its contents into the form that templates read.

    Texts that stand side by side become one. A conversation in the layout of training data, whose texts hold one
    `image_token` where each image belongs, gets its images there: images that stand together in front of the first
    question, as TRL puts them, or that are passed beside messages without image parts.

    Args:
        conversation: Messages, or a list of conversations.
        image_token: Placeholder of an image.
        num_images: Images passed beside the messages, for each conversation.

    Returns:
        New messages in the same nesting; the caller's are not changed.

    Raises:
        TypeError: If a message, its content or a part is of another type than expected.
        ChatError: If something is missing, cannot be read by these models, or would be lost.
    """
    if not _is_list(conversation):
        raise TypeError(
            f"`conversation` is a `{type(conversation).__name__}`; expected a list of messages "
            '`{"role": ..., "content": ...}`, or a list of such lists.'
        )
    if len(conversation) == 0:
        raise ChatError("`conversation` holds no message; expected at least one.")
    if not _is_list(conversation[0]):
        return _read_conversation(conversation, "messages", image_token, num_images[0] if num_images else 0)
    counts = num_images if num_images is not None and len(num_images) == len(conversation) else [0] * len(conversation)
    return [
        _read_conversation(messages, f"conversation[{index}]", image_token, count)
        for index, (messages, count) in enumerate(zip(conversation, counts, strict=True))
    ]


def keep_as_text(messages: Sequence[Message], image_token: str) -> list[Message]:
    """Messages whose texts cannot be taken for the layout of training data, see `read_conversations`."""
    return [{**message, "content": _without_token(message.get("content"), image_token)} for message in messages]


def _without_token(content: Any, image_token: str) -> Any:
    if isinstance(content, str):
        return break_up_tokens(content, [image_token])
    if not _is_list(content):
        return content
    return [
        {**part, "text": break_up_tokens(part["text"], [image_token])} if _is_text(part) else part
        for part in _join(content)
    ]


def _read_conversation(messages: Any, where: str, image_token: str, num_images: int) -> list[Message]:
    if not _is_list(messages):
        raise TypeError(f"`{where}` is a `{type(messages).__name__}`; expected a list of messages.")
    if len(messages) == 0:
        raise ChatError(f"`{where}` holds no message; expected at least one.")
    read = [_read_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    if any(image_token in text for message in read for text in _texts_of(message)):
        # Before texts are joined: a placeholder that is split over two of them is none.
        read = _place_images(read, image_token, num_images)
    return [
        message | {"content": _join(message["content"])} if _is_list(message.get("content")) else message
        for message in read
    ]


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise TypeError(
            f'`{where}` is a `{type(message).__name__}`; expected a message `{{"role": ..., "content": ...}}`.'
        )
    given = {name: value for name, value in message.items() if value is not None}
    has = ", ".join(f"`{name}`" for name in given) or "nothing"
    if not isinstance(given.get("role"), str):
        raise ChatError(f"`{where}` has {has}, but no text as `role`; expected `system`, `user` or `assistant`.")
    if _is_given(given.get("images")):
        raise ChatError(f"`{where}.images` would be lost; write the images as parts of `content`.")
    content = given.get("content")
    if content is None:
        if any(given.get(name) for name in _INSTEAD_OF_CONTENT):
            return given
        raise ChatError(f"`{where}` has {has}, but no `content`; write its words there, or leave the message out.")
    if isinstance(content, str):
        return given
    if not _is_list(content):
        raise TypeError(
            f"`{where}.content` is a `{type(content).__name__}`; expected a text, or a list of parts such as "
            '`{"type": "text", "text": ...}`.'
        )
    if len(content) == 0:
        raise ChatError(f"`{where}.content` is empty; write at least one part, or leave the message out.")
    parts = [_read_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return given | {"content": parts}


def _read_part(part: Any, where: str) -> ContentPart:
    if not isinstance(part, Mapping):
        raise TypeError(
            f'`{where}` is a `{type(part).__name__}`; write texts as `{{"type": "text", "text": ...}}` and images as '
            '`{"type": "image", "image": ...}`.'
        )
    given = {name: value for name, value in part.items() if _is_given(value)}
    kind = given.get("type")
    if kind is None:
        raise ChatError(f"`{where}` has {_names(given)}, but no `type`; expected `text` or `image`.")
    if kind in TEXT_TYPES:
        return _read_text(part, given, where)
    if kind in IMAGE_TYPES:
        return _read_image(given, where)
    raise ChatError(f"`{where}` is a part of type `{kind}`; this model reads `text` and `image` parts.")


def _read_text(part: Mapping[str, Any], given: ContentPart, where: str) -> ContentPart:
    words = part.get("text")
    if words is None:
        raise ChatError(f"`{where}` of type `{given['type']}` has {_names(given)}; write its words under `text`.")
    if not isinstance(words, str):
        raise TypeError(f"`{where}.text` is a `{type(words).__name__}`; expected a text.")
    lost = [name for name in given if name != "text" and name not in _HARMLESS]
    if lost:
        raise ChatError(
            f"`{where}.{lost[0]}` would be lost: a part of type `text` has its words under `text`. Write a part of "
            "its own, or leave it out."
        )
    return {"type": "text", "text": words}


def _read_image(given: ContentPart, where: str) -> ContentPart:
    sources = {name: given[name] for name in IMAGE_SOURCES if name in given}
    link = given.get("image_url")
    # An object in one interface, a text in another.
    link = link.get("url") if isinstance(link, Mapping) else link
    if link is not None:
        sources["url"] = link
    if isinstance(given.get("source"), Mapping):
        source = given["source"]
        sources |= {name: source[key] for name, key in (("base64", "data"), ("url", "url")) if source.get(key)}
    if len(sources) > 1:
        raise ChatError(f"`{where}` has {_names(sources)}, of which one is the image; leave out the others.")
    unknown = [name for name in given if name not in sources and name not in _HARMLESS]
    if not sources and unknown:
        raise ChatError(
            f"`{where}` of type `{given['type']}` has `{unknown[0]}`, which cannot be read; give the image as "
            f"{', '.join(f'`{name}`' for name in IMAGE_SOURCES)} or `image_url`."
        )
    return {"type": "image", **sources}


def _join(parts: Sequence[Any]) -> list[Any]:
    """Parts with texts that stand side by side made one, so that no control token is split over them."""
    joined: list[Any] = []
    for part in parts:
        if joined and _is_text(part) and _is_text(joined[-1]):
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _place_images(messages: list[Message], image_token: str, num_images: int) -> list[Message]:
    """Put images where texts hold placeholders, if these are as many."""
    in_front = _images_in_front(messages)
    images = in_front if in_front is not None else [{"type": "image"}] * num_images
    if not images:
        _warn_of_text(image_token)
        return messages
    texts = ["".join(_texts_of(message)) for message in messages]
    counts = [text.count(image_token) for text in texts]
    asked = [count if message["role"] == "user" else 0 for message, count in zip(messages, counts, strict=True)]
    # Answers may speak of the placeholder where the questions account for all images.
    if sum(asked) == len(images):
        counts = asked
    if sum(counts) != len(images):
        raise ChatError(
            f"The texts of the messages hold {sum(counts)} `{image_token}` for {len(images)} images; write one where "
            "each image belongs, or none to have the images first."
        )
    rest = iter(images)
    # Without a placeholder a message keeps its text alone; it may be the one that the images stood in front of.
    return [
        {**message, "content": _split(text, image_token, rest) if count else text}
        for message, text, count in zip(messages, texts, counts, strict=True)
    ]


def _images_in_front(messages: list[Message]) -> list[ContentPart] | None:
    """Images of a conversation of plain texts with all images in front of its first question; `None` for others.

    These are the only image parts that may be meant for placeholders: whoever wrote the parts one by one has put the
    images in their places.
    """
    first = next((message for message in messages if message["role"] == "user"), None)
    images: list[ContentPart] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) or content is None:
            continue
        *before, last = content
        if not _is_text(last) or (before and message is not first):
            return None
        # The picture itself, which TRL has filled in, and no link or path.
        if any("image" not in part or isinstance(part["image"], str) for part in before):
            return None
        images += before
    return images or None


def _split(text: str, image_token: str, images: Any) -> list[ContentPart]:
    parts: list[ContentPart] = []
    for index, piece in enumerate(text.split(image_token)):
        if index:
            parts.append(next(images))
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _texts_of(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or [] if _is_text(part)]


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in TEXT_TYPES and isinstance(part.get("text"), str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | Mapping)


def _is_given(value: Any) -> bool:
    """Whether a field holds something: tables give every part every key, and fill them with nothing."""
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and len(value) == 0)


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in fields if name != "type") or "nothing"


@cache
def _warn_of_text(image_token: str) -> None:
    """Say once that a placeholder in a text is none."""
    logger.warning(
        'A message spells out `%s`; it is broken up and stays text. Write `{"type": "image", "image": ...}` as a part '
        "of the content where an image belongs.",
        image_token,
    )
