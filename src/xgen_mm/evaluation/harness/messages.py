"""Conversations as harnesses hand them over, written as prompts of these models."""

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from PIL import Image

from ...data.records import Picture
from ...errors import ImageInputError, XGenMMError
from ...processing.image_loading import fetch_image
from ..prompts import END_OF_CHUNK, Piece, Prompt, WrittenPrompt, disarm, write_chat, write_prompt
from ..task import Style

Message: TypeAlias = dict[str, Any]
PromptFormat: TypeAlias = Literal["auto", "chat", "text"]

# In prompts of base models, by role.
_TURN_ENDS = {"assistant": f"{END_OF_CHUNK}\n", "system": "\n"}
_IMAGE_KEYS = ("image", "url", "path", "value")
# Data sets mark places of pictures by these words, the second form with the number of the picture.
_MARK = re.compile(r"<(?:image|img|image[ _](\d+))>")


def write_messages(messages: Sequence[Message], *, style: Style, processor: Any) -> WrittenPrompt:
    """Write a conversation.

    Args:
        messages: Turns with `role` and `content`; the content is a text or a list of text and image parts.
        style: `chat` for the checkpoint's chat template, `text` for base models: contents in a row, each answer ended
            by `<|endofchunk|>` and a line break, as in few-shot prompts.
        processor: Has the chat template.

    Returns:
        The prompt, its pictures opened.

    Raises:
        XGenMMError: If a part is neither text nor a picture, or the chat template does not place pictures.
        ImageInputError: If a picture cannot be read.
    """
    turns = [{"role": turn["role"], "content": place_pictures(_parts(turn["content"]))} for turn in messages]
    pictures = tuple(Picture(part["image"]) for turn in turns for part in turn["content"] if part["type"] == "image")
    if style == "chat":
        return WrittenPrompt(text=write_chat(turns, processor), pictures=pictures, style=style)
    return write_prompt(Prompt(pieces=_pieces(turns), pictures=pictures, style=style), processor)


def place_pictures(parts: Sequence[Message]) -> list[Message]:
    """Put pictures where the text marks their places.

    Harnesses put all pictures first, in front of a text that may say `<image>`, `<img>`, `<image 1>` or `<image_1>`
    where each belongs. Those marks count if there is one for every picture and no picture stands elsewhere in between;
    otherwise the parts stay as they are.

    Args:
        parts: Text and image parts.

    Returns:
        The same parts, texts split at the marks.
    """
    pictures = [part for part in parts if part["type"] == "image"]
    is_led_by_pictures = all(part["type"] == "image" for part in parts[: len(pictures)])
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if not pictures or not is_led_by_pictures:
        return list(parts)
    numbers = [match[1] for text in texts for match in _MARK.finditer(text)]
    order = _picture_order(numbers, len(pictures))
    if order is None:
        return list(parts)
    placed: list[Message] = []
    for text in texts:
        position = 0
        for match in _MARK.finditer(text):
            placed += _text_part(text[position : match.start()])
            placed.append(pictures[order.pop(0)])
            position = match.end()
        placed += _text_part(text[position:])
    return placed


def _picture_order(numbers: list[str | None], num_pictures: int) -> list[int] | None:
    """Indices of the pictures that marks stand for; `None` if marks and pictures do not fit together."""
    if all(number is None for number in numbers):
        return list(range(num_pictures)) if len(numbers) == num_pictures else None
    if any(number is None for number in numbers):
        return None
    order = [int(number) - 1 for number in numbers if number is not None]
    # A picture may be named twice; all must be named.
    return order if set(order) == set(range(num_pictures)) else None


def _text_part(text: str) -> list[Message]:
    return [{"type": "text", "text": text}] if text else []


def _parts(content: Any) -> list[Message]:
    if isinstance(content, str):
        return _text_part(content)
    return [part for item in content for part in _part(item)]


def _part(item: Message) -> list[Message]:
    kind = item.get("type")
    if kind == "text":
        text = item.get("text", item.get("value"))
        return _text_part("" if text is None else str(text))
    if kind in ("image", "image_url"):
        source = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if source is None and "image_url" in item:
            source = item["image_url"]["url"]
        return [{"type": "image", "image": load_picture(source)}]
    raise XGenMMError(f"the task shows the model a part of type `{kind}`; expected `text` or `image`.")


def load_picture(source: Any) -> Image.Image:
    """A picture of a harness, opened.

    Raises:
        ImageInputError: If it cannot be read.
        XGenMMError: If it is an array; harnesses hand over files and Pillow images.
    """
    if isinstance(source, str) and source.lower().startswith(("~", "file:")):
        # What a user may write on the command line, rows of a data set may not.
        raise ImageInputError(f"the task names the picture {source[:60]!r}; expected a path, a URL or the picture.")
    picture = fetch_image(source)
    if not isinstance(picture, Image.Image):
        raise XGenMMError(f"the task shows the model a `{type(source).__name__}`; expected a picture.")
    return picture


def _pieces(turns: Sequence[Message]) -> tuple[Piece, ...]:
    """Contents in a row, pictures as their numbers; texts cannot forge a picture or the end of an example."""
    pieces: list[Piece] = []
    num_pictures = 0
    for turn in turns:
        for part in turn["content"]:
            if part["type"] == "image":
                pieces.append(num_pictures)
                num_pictures += 1
            else:
                pieces.append(disarm(part["text"]))
        pieces.append(_TURN_ENDS.get(turn["role"], ""))
    return tuple(pieces)
