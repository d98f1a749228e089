"""The common conversational format: `messages` with typed parts, and `images`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ...processing.chat_messages import IMAGE_TYPES, TEXT_TYPES
from ..records import Conversation, Part, Picture, Record, Text, Turn
from .layouts import with_messages
from .llava_json import find_pictures
from .placeholders import (
    add_system_prompt,
    check_image_count,
    check_turns,
    count_placeholders,
    place_in_turns,
    read_role,
)
from .row import FormatReader, Row, is_missing

_IMAGE_FIELDS = ("image", "url", "path", "base64", "image_url")


@dataclass(frozen=True)
class MessagesReader(FormatReader):
    """`{"messages": [{"role", "content"}], "images": [...]}`, as TRL and chat templates read it.

    `content` is a text or a list of parts `{"type": "text", "text"}` and `{"type": "image"}`. A picture stands in the
    part itself (`image`, `url`, `path`, `base64`, `image_url`) or is the next of `images` (or `image`). In rows of
    texts alone, pictures stand where texts have `<image>`, which has to be there once for each; without any `<image>`
    they come before the first question, as TRL puts them. The parts of other interfaces (`input_text`, `input_image`)
    are read likewise, and `system_prompt` (or `system`) is the system message of a row that has none.

    Verified with the documentation of chat templates and with TRL's code: the parts, where pictures are, and where
    they go if contents are plain texts. Assumed: that `<image>` in texts is meant as other training tools read it.
    """

    dataset: ClassVar[str] = "messages"

    def read(self, row: Row) -> list[Record]:
        """One conversation."""
        turns = read_question(with_messages(row), "messages")
        check_turns(row, turns, where="messages")
        return [Conversation(turns, row.provenance())]


class PictureQueue:
    """Pictures of a row's `images` that parts take one after the other.

    Attributes:
        pictures: All of them.
        num_taken: How many parts have asked for one.
        has_parts: Whether a content is a list of parts, whose texts may speak of `<image>` without meaning a picture.
    """

    def __init__(self, row: Row) -> None:
        self.pictures = find_pictures(row, "images", "image")
        self.num_taken = 0
        self.has_parts = False

    def take(self) -> Picture | None:
        """The next picture; `None` past the end, which is counted all the same."""
        self.num_taken += 1
        return self.pictures[self.num_taken - 1] if self.num_taken <= len(self.pictures) else None

    def check(self, row: Row) -> None:
        """Compare what was taken with what there is.

        Raises:
            DataError: If the numbers differ.
        """
        check_image_count(row, self.num_taken, self.pictures)


def read_turns(row: Row, *names: str, pictures: PictureQueue) -> tuple[Turn, ...]:
    """Turns of one or several fields with messages; a field that is a text is one turn of the user or the assistant.

    Raises:
        DataError: If parts or placeholders and pictures do not fit together.
    """
    turns = [turn for name in names for turn in _turns_of(row, name, pictures)]
    if pictures.num_taken == 0 and (pictures.pictures or not pictures.has_parts):
        if count_placeholders(turns):
            turns = place_in_turns(row, turns, pictures.pictures)
            pictures.num_taken = len(pictures.pictures)
        else:
            _put_before_first_question(turns, pictures)
    pictures.check(row)
    return tuple(turns)


def read_question(row: Row, *names: str) -> tuple[Turn, ...]:
    """As `read_turns`, with the pictures of the row and its system prompt."""
    return tuple(add_system_prompt(row, read_turns(row, *names, pictures=PictureQueue(row))))


def _turns_of(row: Row, name: str, pictures: PictureQueue) -> Iterator[Turn]:
    value = row.require(name)
    if isinstance(value, str):
        yield Turn("user" if name == "prompt" else "assistant", (Text(row.as_text(value, name)),))
        return
    for index, entry in enumerate(row.as_list(value, name)):
        where = f"{name}[{index}]"
        message = row.as_mapping(entry, where)
        role = read_role(row, message.get("role"), where)
        yield Turn(role, tuple(_parts_of(row, message.get("content"), f"{where}.content", pictures)))


def _parts_of(row: Row, content: Any, where: str, pictures: PictureQueue) -> Iterator[Part]:
    if isinstance(content, str):
        yield Text(row.as_text(content, where))
        return
    parts = row.as_list(content, where)
    pictures.has_parts = True
    if not parts:
        raise row.error("empty text", where, "expected parts, found none")
    for index, entry in enumerate(parts):
        place = f"{where}[{index}]"
        part = row.as_mapping(entry, place)
        kind = part.get("type")
        if kind in TEXT_TYPES:
            yield Text(row.as_text(part.get("text"), place))
        elif kind in IMAGE_TYPES:
            yield _picture_of(row, part, place, pictures)
        else:
            raise row.error("wrong type", place, f"expected a part of type `text` or `image`, found {kind!r}")


def _picture_of(row: Row, part: dict[str, Any], where: str, pictures: PictureQueue) -> Picture:
    for name in _IMAGE_FIELDS:
        value = part.get(name)
        # The `image_url` parts of web interfaces hold an object.
        if name == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if is_missing(value):
            continue
        if name == "base64" and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:image/unknown;base64,{value}"
        return row.picture(value, f"{where}.{name}")
    picture = pictures.take()
    if picture is None:
        raise row.error(
            "more <image> than images", where, f"an image part for which `images` has only {len(pictures.pictures)}"
        )
    return picture


def _put_before_first_question(turns: list[Turn], pictures: PictureQueue) -> None:
    for index, turn in enumerate(turns):
        if turn.role == "user" and pictures.pictures:
            turns[index] = Turn("user", (*pictures.pictures, *turn.parts))
            pictures.num_taken = len(pictures.pictures)
            return
