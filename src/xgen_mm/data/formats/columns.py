"""Columns of rows as people name them, and checks that none that matters is dropped without a word."""

import re
from collections.abc import Sequence

from ..records import Record, pictures_of
from .row import Row

# Without its dot, a field of a tar sample has the name of the member's suffix.
MEMBER_IMAGES = ("jpg", "jpeg", "png", "webp")
IMAGE_FILES = ("image_path", "img_path", "image_file", "image_name", "file_name", "filename", "file")
IMAGE_URLS = ("image_url", "URL")
IMAGE_COLUMNS = ("image", "images", *MEMBER_IMAGES, "img", *IMAGE_FILES, *IMAGE_URLS)
_NUMBERED_IMAGE = re.compile(r"(?:image|img)_?(\d{1,4})")
_OTHER_MEDIA = ("video", "videos", "video_path", "video_url", "mp4", "audio", "audios", "audio_path")
_SAID = re.compile(
    r"(?:.*_)?questions?(?:_text)?|query|queries|prompts?|instructions?|problem|conversations?|messages|texts|dialog|dialogue"
    r"|choices|hint|answers?",
    re.IGNORECASE,
)


def image_column(row: Row, *names: str) -> str:
    """The field that holds the picture of a row; of a tar sample, the member that is one comes first.

    Args:
        row: The row.
        names: Fields of the format, tried in order.

    Raises:
        DataError: If there is none.
    """
    if "__key__" in row.values:
        for name in MEMBER_IMAGES:
            if row.has(name):
                return name
    return row.first_of(*names)


def numbered_images(row: Row) -> list[str]:
    """Fields `image_1`, `image_2` ... that hold something, by their numbers."""
    numbers = {name: _NUMBERED_IMAGE.fullmatch(str(name)) for name in row.values}
    found = sorted((int(match[1]), name) for name, match in numbers.items() if match is not None)
    return [name for _, name in found if row.has(name)]


def check_other_media(row: Row) -> None:
    """Refuse a row with a film or a sound: without it, what the row says is about nothing.

    Raises:
        DataError: If it has one.
    """
    for name in _OTHER_MEDIA:
        if row.has(name):
            raise row.error("unread media", name, "only pictures are read; leave the row out, or take its frames")


def check_pictures_are_read(row: Row, records: Sequence[Record]) -> None:
    """Refuse a row whose records have no picture while it has one, in a field that its format does not read.

    Raises:
        DataError: If so.
    """
    if not records or any(True for record in records for _ in pictures_of(record)):
        return
    for name in (*IMAGE_COLUMNS, *numbered_images(row)):
        if row.has(name):
            raise row.error("unread column", name, "the format reads no picture of this field; rename it to `image`")


def check_words_are_read(row: Row, *, read: Sequence[str], ignored: Sequence[str]) -> None:
    """Refuse a row with a field that looks like a question or an answer and is not read.

    Args:
        row: The row.
        read: Fields that are read.
        ignored: Fields that the user wants left out.

    Raises:
        DataError: If it has one.
    """
    for name in row.values:
        is_said = isinstance(name, str) and _SAID.fullmatch(name) is not None
        if is_said and name not in read and name not in ignored and row.has(name):
            raise row.error(
                "unread column",
                name,
                f"it looks like part of a question and is not read (read are {', '.join(read)}); take format "
                f"`question_answer`, or leave it out with option `ignore: [{name}]`",
            )
