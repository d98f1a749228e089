"""LLaVA JSON: conversations about one picture, several or none."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..records import Picture, Record
from .columns import IMAGE_COLUMNS, MEMBER_IMAGES, numbered_images
from .placeholders import PLACEHOLDER, Message, build_conversation, read_messages
from .row import FormatReader, Row


@dataclass(frozen=True)
class LlavaJsonReader(FormatReader):
    """`{"id", "image": name or [name ...], "conversations": [{"from", "value"} ...]}`; text alone without `image`.

    An answer before the first question is left out, as LLaVA's code does. Names are looked up in the directory of
    pictures.

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
        messages = without_first_answer(messages)
        pictures = find_pictures(row, "image", "images")
        if self.placeholders == "release" and len(pictures) == 1:
            messages = _one_before_first_question(messages)
        if pictures and not any(PLACEHOLDER in message.text for message in messages):
            remedy = (
                "option `placeholders: release` puts one before the first question"
                if len(pictures) == 1
                else "format `mantis` puts them before the first question"
            )
            found = f"0 `{PLACEHOLDER}` for {len(pictures)} images; {remedy}"
            raise row.error("more images than <image>", "image", found)
        return build_conversation(row, messages, pictures, max_images=self.max_images)


def find_pictures(row: Row, *names: str) -> list[Picture]:
    """Pictures of the first of several fields that holds some; none if there is none.

    Behind the names given come the members of a tar sample, which win where the row is one, fields of file names and
    addresses, and `image_1`, `image_2` ... together.
    """
    is_member = "__key__" in row.values
    others = (*IMAGE_COLUMNS, "url") if is_member else IMAGE_COLUMNS
    for name in (*(MEMBER_IMAGES if is_member else ()), *names, *others):
        if row.has(name):
            return row.pictures(row.values[name], name)
    return [picture for name in numbered_images(row) for picture in row.pictures(row.values[name], name)]


def without_first_answer(messages: list[Message]) -> list[Message]:
    """Messages without answers that precede the first question."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), 0)
    return [message for index, message in enumerate(messages) if message.role == "system" or index >= first]


def _one_before_first_question(messages: list[Message]) -> list[Message]:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if first is None or messages[first].text.count(PLACEHOLDER) == 1:
        return messages
    repaired = [Message(message.role, message.text.replace(PLACEHOLDER, "").strip()) for message in messages]
    repaired[first] = Message("user", f"{PLACEHOLDER}\n{repaired[first].text}")
    return repaired
