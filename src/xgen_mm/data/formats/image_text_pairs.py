"""Pictures with one caption each: DataComp, CC12M, CC3M, SBU, Visual Genome and everything shaped like them."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record, Text
from .columns import IMAGE_FILES, IMAGE_URLS, MEMBER_IMAGES, check_words_are_read, image_column
from .row import FormatReader, Row

IMAGE_FIELDS = ("image", *MEMBER_IMAGES, "img", *IMAGE_FILES, "url", *IMAGE_URLS)
CAPTION_FIELDS = ("caption", "text", "txt", "TEXT", "alt_text", "description")


@dataclass(frozen=True)
class ImageTextPairReader(FormatReader):
    """Picture and caption, from parquet, csv, json or tar shards (as `img2dataset` writes them).

    Attributes:
        image: Field of the picture; `None` takes the member of a tar sample that is one, or else the first of
            `IMAGE_FIELDS` that is there.
        caption: Field of the caption; `None` takes `txt` of a tar sample, or else the first of `CAPTION_FIELDS`.
        ignore: Fields that look like a question or an answer and are to be left out; otherwise a row with such a field
            is refused.

    Verified with the documentation and the output of `img2dataset`: tar samples of `jpg`, `txt` and `json`. Assumed:
    the names of the other layouts, which differ between copies of the same data set; a row with none of them is
    refused with the names that it has.
    """

    image: str | None = None
    caption: str | None = None
    ignore: tuple[str, ...] = ()

    dataset: ClassVar[str] = "image_text_pairs"

    def read(self, row: Row) -> list[Record]:
        """One document: the picture, then its caption."""
        is_member = "__key__" in row.values and row.has("txt")
        caption_field = self.caption or ("txt" if is_member else row.first_of(*CAPTION_FIELDS))
        caption = row.text(caption_field).strip()
        image_field = self.image or image_column(row, *IMAGE_FIELDS)
        check_words_are_read(row, read=(image_field, caption_field), ignored=self.ignore)
        picture = row.picture(row.values.get(image_field), image_field)
        return [Document((picture, Text(caption)), row.provenance(url=row.values.get("url")))]


class DataCompReader(ImageTextPairReader):
    """DataComp-1B (`mlfoundations/datacomp_1b`): see `ImageTextPairReader`; the metadata has `uid`, `url`, `text`."""

    dataset: ClassVar[str] = "datacomp"


class Cc12mReader(ImageTextPairReader):
    """Conceptual 12M: see `ImageTextPairReader`; the original tsv of URL and caption has no header (assumed)."""

    dataset: ClassVar[str] = "cc12m"
    columns: ClassVar[tuple[str, ...]] = ("url", "caption")


class Cc3mReader(ImageTextPairReader):
    """Conceptual Captions: see `ImageTextPairReader`; the original tsv of caption and URL has none (assumed)."""

    dataset: ClassVar[str] = "cc3m"
    columns: ClassVar[tuple[str, ...]] = ("caption", "url")


class SbuReader(ImageTextPairReader):
    """SBU captions: see `ImageTextPairReader`."""

    dataset: ClassVar[str] = "sbu"


class VisualGenomeReader(ImageTextPairReader):
    """Visual Genome captions: see `ImageTextPairReader`; one caption per row."""

    dataset: ClassVar[str] = "vg"
