"""A plain folder of pictures with captions beside them."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record, Text
from .row import FormatReader, Row


@dataclass(frozen=True)
class FolderReader(FormatReader):
    """Pictures with a text file of the same name each (`cat.jpg`, `cat.txt`), in any depth of directories.

    A row is `{"image": name below the folder, "text": caption}`. Of a folder with a table of captions instead
    (`metadata.jsonl` or `metadata.csv` with `file_name`) read that table as `image_text_pairs`.

    Verified and assumed: nothing, the layout is our own.
    """

    dataset: ClassVar[str] = "folder"
    id_fields: ClassVar[tuple[str, ...]] = ("image",)

    def read(self, row: Row) -> list[Record]:
        """One document: the picture, then its caption."""
        picture = row.picture(row.require("image"), "image")
        if row.values.get("text") is None:
            raise row.error("empty text", "text", "expected a text file of the picture's name, found none")
        return [Document((picture, Text(row.text("text").strip())), row.provenance())]
