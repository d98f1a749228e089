"""Prompts of benchmarks: texts with pictures in their places."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, TypeAlias

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from ..data.records import Picture
from ..errors import XGenMMError
from ..processing.chat_template import break_up_tokens, in_breaking_order
from .task import MarkerKind, Style, TaskError

# A text, or the index of a picture of the sample.
Piece: TypeAlias = str | int

IMAGE_TOKEN, END_OF_CHUNK = "<image>", "<|endofchunk|>"
# Written by the model's format, so data must not bring them along.
CONTROL_TOKENS = (IMAGE_TOKEN, "<image placeholder>", END_OF_CHUNK, "<|end|>", "<|endoftext|>")
_IN_BREAKING_ORDER = in_breaking_order(CONTROL_TOKENS)
_PLACE = re.compile("\x00([0-9]+)\x00")
_MARKERS = {"numbered": re.compile(r"<image (\d+)>"), "plain": re.compile(r"<(?:image|img)>()")}
_PICTURE_NAME = re.compile(r"\S+\.(?:jpe?g|png|webp|gif|bmp)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked.

    Attributes:
        pieces: Texts and indices of pictures in reading order.
        pictures: The pictures, not decoded yet.
        style: `chat` for one turn of a user, `text` for text without a chat template.
    """

    pieces: tuple[Piece, ...]
    pictures: tuple[Picture, ...] = ()
    style: Style = "chat"

    @property
    def text(self) -> str:
        """The prompt with `<image>` where pictures stand."""
        return "".join(piece if isinstance(piece, str) else IMAGE_TOKEN for piece in self.pieces)

    @property
    def shown_pictures(self) -> tuple[Picture, ...]:
        """Pictures in the order of their places; one may stand at several."""
        return tuple(self.pictures[piece] for piece in self.pieces if isinstance(piece, int))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPrompt:
    """A prompt as a model reads it.

    Attributes:
        text: With one `<image>` per picture.
        pictures: In the order of their places.
        style: As in `Prompt`.
    """

    text: str
    pictures: tuple[Picture, ...] = ()
    style: Style = "chat"


def write_prompt(prompt: Prompt, processor: Any) -> WrittenPrompt:
    """Write a prompt, in style `chat` as one turn of a user.

    Args:
        prompt: Control tokens in the texts of style `text` count.
        processor: Has the chat template.

    Raises:
        XGenMMError: As in `write_chat`.
    """
    text = prompt.text
    if prompt.style == "chat":
        content = [
            {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image"} for piece in prompt.pieces
        ]
        text = write_chat([{"role": "user", "content": content}], processor)
    return WrittenPrompt(text=text, pictures=prompt.shown_pictures, style=prompt.style)


def write_chat(turns: Sequence[Mapping[str, Any]], processor: Any) -> str:
    """Write a conversation up to where the reply begins.

    Args:
        turns: With `role` and `content`, a list of text and image parts.
        processor: Has the chat template.

    Raises:
        XGenMMError: If the chat template does not write one `<image>` per picture.
    """
    text: str = processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    num_pictures = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if text.count(IMAGE_TOKEN) != num_pictures:
        raise XGenMMError("the chat template of this checkpoint does not place pictures where the prompt has them.")
    return text


class PlaceMarker:
    """Replaces a data set's marks of pictures by places, and counts which pictures have one."""

    def __init__(self, kind: MarkerKind, num_pictures: int) -> None:
        self._kind = kind
        self._num_pictures = num_pictures
        self._next = 0
        self._placed: set[int] = set()

    def mark(self, text: str) -> str:
        """The text with places instead of marks. Marks without a picture stay as they are, as the text they are."""
        text = text.replace("\x00", "")
        if self._kind == "none":
            return text
        pattern = _MARKERS["numbered" if self._kind == "numbered" else "plain"]
        return pattern.sub(self._place, text)

    def mark_option(self, text: str) -> str:
        """As `mark`; an option that is the name of a picture file stands for the next picture."""
        if self._kind == "file_names" and _PICTURE_NAME.fullmatch(text.strip()) and self._next < self._num_pictures:
            return self._take(self._next)
        return self.mark(text)

    def rest(self) -> list[str]:
        """Places of the pictures that no text has placed."""
        return [f"\x00{index}\x00" for index in range(self._num_pictures) if index not in self._placed]

    @property
    def has_placed(self) -> bool:
        """Whether any text has placed a picture."""
        return bool(self._placed)

    def _place(self, match: re.Match[str]) -> str:
        index = int(match[1]) - 1 if match[1] else self._next
        return self._take(index) if 0 <= index < self._num_pictures else match[0]

    def _take(self, index: int) -> str:
        self._placed.add(index)
        self._next = max(self._next, index + 1)
        # The released evaluation code puts a space behind every picture.
        return f"\x00{index}\x00 "


def render(template: str, fields: Mapping[str, Any]) -> tuple[Piece, ...]:
    """Fill a template and split it at the places of pictures.

    Args:
        template: Jinja template.
        fields: Values; texts hold places as `PlaceMarker` writes them.

    Raises:
        TaskError: If the template uses a field that is not there.
    """
    try:
        text = _compile(template).render(**fields)
    except Exception as error:
        raise TaskError(f"the prompt cannot be filled: {error}") from error
    return split_places(text)


def split_places(text: str) -> tuple[Piece, ...]:
    """Texts and picture indices of a text with places."""
    parts = _PLACE.split(text)
    pieces = [int(part) if index % 2 else part for index, part in enumerate(parts)]
    return tuple(piece for piece in pieces if piece != "")


def format_options(options: Sequence[str]) -> str:
    r"""One line per option, as VLMEvalKit writes them; an empty one has no line but keeps its letter.

    >>> format_options(["a cat", "", "a dog"])
    'A. a cat\nC. a dog\n'
    """
    lettered = zip(ascii_uppercase, options, strict=False)
    return "".join(f"{letter}. {option}\n" for letter, option in lettered if option)


def disarm(text: str) -> str:
    """A text whose control tokens are broken up by a zero-width space, as the chat template does it."""
    return break_up_tokens(text, _IN_BREAKING_ORDER)


@functools.cache
def _compile(template: str) -> Any:
    environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(template)
