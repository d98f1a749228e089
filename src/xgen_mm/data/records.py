"""What every data set is read into: documents, conversations and preference pairs, text and pictures in order.

A picture is kept as it came (bytes, path, URL or decoded) and decoded when a batch needs it, so that records are small
and cheap to shuffle.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from ..processing.image_loading import fetch_image, pil_to_rgb

Role: TypeAlias = Literal["system", "user", "assistant"]
PictureSource: TypeAlias = bytes | str | Path | Image.Image


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text.

    Attributes:
        text: The text, without placeholders for pictures.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that has not been decoded yet.

    Attributes:
        source: Encoded bytes, a path, an `http(s)` URL, or a decoded picture.
    """

    source: PictureSource

    def load(self) -> Image.Image:
        """Decode the picture: upright, RGB, first frame, on white where it is transparent.

        Raises:
            ImageInputError: If it cannot be read or decoded.
        """
        # None of the sources above gives an array.
        picture: Any = fetch_image(self.source)
        return pil_to_rgb(picture)


Part: TypeAlias = Text | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a record comes from.

    Attributes:
        dataset: Name of the data set.
        key: What tells the record from others of that data set: its id there, or file and row.
        details: Anything else worth keeping, such as the URL of a page.
    """

    dataset: str
    key: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """Interleaved text and pictures without roles, as base models are trained on.

    Attributes:
        parts: Text and pictures in reading order; at least one.
        provenance: Where it comes from.
    """

    parts: tuple[Part, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: Who says it.
        parts: Text and pictures in order.
    """

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, as instruct models are trained on.

    Attributes:
        turns: At least one; a system turn only first.
        provenance: Where it comes from.
    """

    turns: tuple[Turn, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one conversation, the first preferred.

    Attributes:
        prompt: The conversation so far; it ends with a user's turn.
        chosen: The better answer.
        rejected: The worse answer.
        provenance: Where it comes from.
    """

    prompt: tuple[Turn, ...]
    chosen: Turn
    rejected: Turn
    provenance: Provenance


Record: TypeAlias = Document | Conversation | PreferencePair


def pictures_of(record: Record) -> Iterator[Picture]:
    """Pictures of a record in the order in which its text refers to them."""
    for part in parts_of(record):
        if isinstance(part, Picture):
            yield part


def parts_of(record: Record) -> Iterator[Part]:
    """All parts of a record in order; of a preference pair, prompt, chosen and rejected answer."""
    if isinstance(record, Document):
        yield from record.parts
        return
    turns = record.turns if isinstance(record, Conversation) else (*record.prompt, record.chosen, record.rejected)
    for turn in turns:
        yield from turn.parts
