"""Mantis and MMDU: conversations about several pictures."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Record
from .llava_json import find_pictures, without_first_answer
from .placeholders import PLACEHOLDER, Message, build_conversation, read_messages
from .row import FormatReader, Row


@dataclass(frozen=True)
class MantisReader(FormatReader):
    """Mantis-Instruct (`TIGER-Lab/Mantis-Instruct`).

    `{"id", "images": [...], "conversations" or "conversation": [...]}`. Messages are `{"from", "value"}` or `{"role",
    "content"}`; pictures are names, or `{"bytes", "path"}`.

    Attributes:
        max_images: Refuse rows with more pictures; the released code had 4.
        put_missing_first: Rows without any `<image>` get all of their pictures before the first question, as the
            description of the format suggests where no better place is known.

    Verified with the description of the training format by its authors: the fields and both spellings of a message.
    Assumed: `conversation` as the name in the parquet files.
    """

    max_images: int | None = None
    put_missing_first: bool = True

    dataset: ClassVar[str] = "mantis"
    placeholder: ClassVar[str] = PLACEHOLDER

    def read(self, row: Row) -> list[Record]:
        """One conversation."""
        field = row.first_of("conversations", "conversation")
        messages = [
            Message(message.role, message.text.replace(self.placeholder, PLACEHOLDER))
            for message in read_messages(row, row.require(field), field)
        ]
        messages = without_first_answer(messages)
        pictures = find_pictures(row, "images", "image")
        if self.put_missing_first and pictures and not any(PLACEHOLDER in message.text for message in messages):
            messages = _put_first(messages, len(pictures))
        return build_conversation(row, messages, pictures, max_images=self.max_images)


@dataclass(frozen=True)
class MmduReader(MantisReader):
    """MMDU-45k (`laolao77/MMDU`): `{"id", "image": [name ...], "conversations": [{"from", "value"} ...]}`.

    Both `<image>` and `<ImageHere>` stand for a picture. Names begin with "/", which stands for the directory of
    pictures.

    Verified in code of its users: the fields and `image` as a list of names. Assumed: `<ImageHere>`.
    """

    dataset: ClassVar[str] = "mmdu"
    placeholder: ClassVar[str] = "<ImageHere>"


def _put_first(messages: list[Message], num_pictures: int) -> list[Message]:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return messages
    changed = list(messages)
    changed[first] = Message(messages[first].role, f"{PLACEHOLDER}\n" * num_pictures + messages[first].text)
    return changed
