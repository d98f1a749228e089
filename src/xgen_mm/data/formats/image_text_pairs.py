"""Pictures with one caption each: DataComp, CC12M, CC3M, SBU, Visual Genome and everything shaped like them."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record, Text
from .row import FormatReader, Row

# Without its dot, a field of a tar sample has the name of the member's suffix.
IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_path", "file_name", "url", "image_url", "URL")
CAPTION_FIELDS = ("caption", "text", "txt", "TEXT", "alt_text", "description")


@dataclass(frozen=True)
class ImageTextPairReader(FormatReader):
    """Picture and caption, from parquet, csv, json or tar shards (as `img2dataset` writes them).

    Attributes:
        image: Field of the picture; `None` takes the first of `image`, `jpg`, `jpeg`, `png`, `webp`, `img`,
            `image_path`, `file_name`, `url`, `image_url`, `URL`.
        caption: Field of the caption; `None` takes the first of `caption`, `text`, `txt`, `TEXT`, `alt_text`,
            `description`.

    Verified with the documentation of `img2dataset`: tar samples of `jpg`, `txt` and `json`. Assumed: the names of the
    other layouts, which differ between copies of the same data set; a row with none of them is refused with the names
    that it has.
    """

    image: str | None = None
    caption: str | None = None

    dataset: ClassVar[str] = "image_text_pairs"

    def read(self, row: Row) -> list[Record]:
        """One document: the picture, then its caption."""
        caption_field = self.caption or row.first_of(*CAPTION_FIELDS)
        caption = row.text(caption_field).strip()
        if self.image is None and not any(row.values.get(name) for name in IMAGE_FIELDS):
            raise row.error(
                "missing image", "image", f"expected one of {', '.join(IMAGE_FIELDS)}; found {', '.join(row.values)}"
            )
        image_field = self.image or row.first_of(*IMAGE_FIELDS)
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
