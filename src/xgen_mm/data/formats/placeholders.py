"""Texts in which `<image>` stands for pictures, and conversations made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..records import Conversation, Part, Picture, Record, Role, Text, Turn
from .row import Row, is_missing

PLACEHOLDER = "<image>"
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    # What newer interfaces call a system message.
    "developer": "system",
}
# Columns that hold the system message beside the conversation.
SYSTEM_FIELDS = ("system_prompt", "system")


@dataclass(frozen=True, slots=True)
class Message:
    """One message as a format writes it: who says it, and a text with placeholders."""

    role: Role
    text: str


def read_messages(row: Row, value: Any, where: str) -> list[Message]:
    """Messages of the forms `{"from", "value"}` and `{"role", "content"}` with plain texts."""
    messages = []
    for index, entry in enumerate(row.as_list(value, where)):
        place = f"{where}[{index}]"
        fields = row.as_mapping(entry, place)
        speaker = fields.get("from", fields.get("role"))
        text = fields.get("value", fields.get("content"))
        messages.append(Message(read_role(row, speaker, place), row.as_text(text, place)))
    return messages


def read_role(row: Row, value: Any, where: str) -> Role:
    """The role that a word stands for."""
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise row.error("unknown role", where, f"expected one of {', '.join(ROLES)}, found {value!r}")
    return role


def build_conversation(
    row: Row,
    messages: Sequence[Message],
    pictures: Sequence[Picture],
    *,
    max_images: int | None = None,
    **details: Any,
) -> list[Record]:
    """A conversation with one picture in the place of each placeholder.

    Args:
        row: The row.
        messages: What is said.
        pictures: Pictures in the order of their placeholders.
        max_images: Refuse rows with more pictures.
        details: For the provenance.

    Raises:
        DataError: If placeholders and pictures differ in number, or the turns are in no order to learn from.
    """
    turns = place_in_turns(row, [Turn(message.role, (Text(message.text),)) for message in messages], pictures)
    if max_images is not None and len(pictures) > max_images:
        raise row.error("too many images", "image", f"{len(pictures)} images; expected at most {max_images}")
    turns = add_system_prompt(row, turns)
    check_turns(row, turns)
    return [Conversation(tuple(turns), row.provenance(**details))]


def place_in_turns(row: Row, turns: Sequence[Turn], pictures: Sequence[Picture]) -> list[Turn]:
    """Turns with a picture in the place of each placeholder of their texts, in any of them.

    Args:
        row: The row.
        turns: Turns of texts with placeholders.
        pictures: Pictures in the order of their placeholders.

    Raises:
        DataError: If placeholders and pictures differ in number.
    """
    check_image_count(row, count_placeholders(turns), pictures)
    rest = list(pictures)
    placed = []
    for turn in turns:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, Text):
                count = part.text.count(PLACEHOLDER)
                parts += put_in_place(part.text, rest[:count])
                del rest[:count]
            else:
                parts.append(part)
        placed.append(Turn(turn.role, tuple(parts)))
    return placed


def count_placeholders(turns: Sequence[Turn]) -> int:
    """Placeholders in the texts of some turns."""
    return sum(part.text.count(PLACEHOLDER) for turn in turns for part in turn.parts if isinstance(part, Text))


def add_system_prompt(row: Row, turns: Sequence[Turn]) -> list[Turn]:
    """Turns that begin with the row's system prompt, where that has a column of its own.

    Raises:
        DataError: If a system turn says something else.
    """
    for name in SYSTEM_FIELDS:
        prompt = row.values.get(name)
        if is_missing(prompt) or prompt == "":
            continue
        system = Turn("system", (Text(row.as_text(prompt, name)),))
        if turns[:1] and turns[0].role == "system":
            if turns[0] != system:
                raise row.error("wrong turn order", name, "another text than in the system turn; expected one of them")
            return list(turns)
        return [system, *turns]
    return list(turns)


def put_in_place(text: str, pictures: Sequence[Picture]) -> tuple[Part, ...]:
    """Parts of a text with as many placeholders as there are pictures. White space is kept to the letter."""
    pieces = text.split(PLACEHOLDER)
    parts: list[Part] = [Text(pieces[0])] if pieces[0] else []
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts.append(picture)
        if piece:
            parts.append(Text(piece))
    return tuple(parts)


def check_image_count(row: Row, num_placeholders: int, pictures: Sequence[Picture]) -> None:
    """Compare placeholders with pictures.

    Raises:
        DataError: If one is missing a counterpart.
    """
    found = f"{num_placeholders} `{PLACEHOLDER}` for {len(pictures)} images"
    if num_placeholders > len(pictures):
        raise row.error("more <image> than images", "image", found)
    if num_placeholders < len(pictures):
        raise row.error("more images than <image>", "image", found)


def check_turns(row: Row, turns: Sequence[Turn], *, where: str = "conversations") -> None:
    """Check that a system turn stands first only, and that an answer follows a question.

    Raises:
        DataError: If not.
    """
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in spoken:
        raise row.error("wrong turn order", where, "a system turn after others; expected it first")
    if spoken[:1] != ["user"] or "assistant" not in spoken:
        raise row.error("wrong turn order", where, f"expected a user's turn and an answer, found {roles}")
    if any(first == second for first, second in pairwise(spoken)):
        raise row.error("wrong turn order", where, f"the same role twice in a row: {roles}")
