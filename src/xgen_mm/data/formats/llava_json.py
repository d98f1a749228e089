"""LLaVA JSON: conversations about one picture, several or none."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..records import Picture, Record
from .placeholders import PLACEHOLDER, Message, build_conversation, read_messages
from .row import FormatReader, Row, is_missing


@dataclass(frozen=True)
class LlavaJsonReader(FormatReader):
    """`{"id", "image": name or [name ...], "conversations": [{"from", "value"} ...]}`; text alone without `image`.

    Names are looked up in the directory of pictures.

    A YAML file `data_path: {file.json: count}` is read by `sources.py`, which takes `count` rows of each file.

    Attributes:
        placeholders: What becomes of rows whose `<image>` do not match their pictures: `strict` refuses them;
            `release` does what the released code did for rows with a single picture, which is to remove all `<image>`
            and put one, with a line break, before the first question.
        max_images: Refuse rows with more pictures; the released code had 4.

    Verified with the released fine-tuning code: the layout, both forms of `image`, that a row without it is text only,
    that text-only rows with `<image>` are refused. Assumed: nothing.
    """

    placeholders: Literal["strict", "release"] = "strict"
    max_images: int | None = None

    dataset: ClassVar[str] = "llava_json"

    def __post_init__(self) -> None:
        """Check the choice."""
        if self.placeholders not in ("strict", "release"):
            raise ValueError(f"`placeholders` is {self.placeholders!r}; expected `strict` or `release`.")

    def read(self, row: Row) -> list[Record]:
        """One conversation."""
        messages = read_messages(row, row.require("conversations"), "conversations")
        pictures = find_pictures(row, "image", "images")
        if self.placeholders == "release" and len(pictures) == 1:
            messages = _one_before_first_question(messages)
        return build_conversation(row, messages, pictures, max_images=self.max_images)


def find_pictures(row: Row, *names: str) -> list[Picture]:
    """Pictures of the first of several fields that is there; none if there is none, or it is empty."""
    for name in names:
        value: Any = row.values.get(name)
        if not is_missing(value) and value not in ("", []):
            return row.pictures(value, name)
    return []


def _one_before_first_question(messages: list[Message]) -> list[Message]:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if first is None or messages[first].text.count(PLACEHOLDER) == 1:
        return messages
    repaired = [Message(message.role, message.text.replace(PLACEHOLDER, "").strip()) for message in messages]
    repaired[first] = Message("user", f"{PLACEHOLDER}\n{repaired[first].text}")
    return repaired
