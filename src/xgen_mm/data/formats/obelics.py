"""OBELICS: web pages with pictures."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record
from .row import FormatReader, Row, interleave


@dataclass(frozen=True)
class ObelicsReader(FormatReader):
    """OBELICS (`HuggingFaceM4/OBELICS`), parquet.

    One document per row from `images` (list of URL or null) and `texts` (list of text or null), which have the same
    length and hold one thing at each place. `general_metadata` is a JSON document with the page's address.

    Verified with the data set's card: the four columns, the alternation of both lists, that pictures are URLs.
    Assumed: that the page's address is `url` in `general_metadata`; nothing depends on it.
    """

    dataset: ClassVar[str] = "obelics"

    def read(self, row: Row) -> list[Record]:
        """One document."""
        parts = interleave(row, row.items("texts"), row.items("images"), names=("texts", "images"))
        url = None
        if row.values.get("general_metadata"):
            metadata = row.as_mapping(row.parsed("general_metadata", notation="json"), "general_metadata")
            url = metadata.get("url")
        return [Document(parts, row.provenance(url=url))]
