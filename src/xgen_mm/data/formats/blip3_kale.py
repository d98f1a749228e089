"""BLIP3-KALE: pictures with dense, knowledge-augmented captions."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record, Text
from .columns import image_column
from .row import FormatReader, Row


@dataclass(frozen=True)
class Blip3KaleReader(FormatReader):
    """BLIP3-KALE (`Salesforce/blip3-kale`, configurations `core` and `full`), parquet.

    Attributes:
        caption: Field of the caption that is learned.

    Verified: parquet files, the configurations, the columns `url` and `caption`. Assumed: nothing else is read, except
    that a picture that was downloaded beside the table is found in `image` or `jpg`. Of the tar shards that
    `img2dataset` makes of it, the caption may be the member `txt`.
    """

    caption: str = "caption"

    dataset: ClassVar[str] = "blip3_kale"

    def read(self, row: Row) -> list[Record]:
        """One document: the picture, then its caption."""
        caption = row.text(self.caption if row.has(self.caption) or not row.has("txt") else "txt").strip()
        field = image_column(row, "image", "jpg", "url")
        return [
            Document(
                (row.picture(row.require(field), field), Text(caption)), row.provenance(url=row.values.get("url"))
            )
        ]
