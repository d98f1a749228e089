"""OCR-IDL: scanned documents with the text of their pages."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Document, Record, Text
from .mint1t import split_frames
from .row import FormatReader, Row


@dataclass(frozen=True)
class OcrIdlReader(FormatReader):
    """Industry documents (`pixparse/idl-wds`), tar shards.

    A sample is a `tif` member with a frame per page and a `json` member with `pages`, a list of `{"text": [line ...],
    "bbox": ...}` or, as in the sibling data set of PDF files, `{"lines": {"text": [line ...]}}`. Boxes are not used.

    Attributes:
        max_pages: Read at most so many pages of a document; `None` for all. Documents of thousands of pages exist.

    Verified with the card and a discussion by its authors: the members, the list of pages, that `text` holds lines.
    Assumed: that page i is frame i. Another number of frames than of pages is refused.
    """

    max_pages: int | None = None

    dataset: ClassVar[str] = "ocr_idl"
    has_fields_in_json: ClassVar[bool] = False
    id_fields: ClassVar[tuple[str, ...]] = ("__key__",)

    def read(self, row: Row) -> list[Record]:
        """One document per page with text: the page, then its lines. `num_pages` counts blank pages too."""
        content = row.as_mapping(row.parsed("json", notation="json"), "json")
        pages = row.as_list(content.get("pages"), "json.pages")
        # Frames beyond the last page that is read are not decoded.
        frames = split_frames(row, row.first_of("tif", "tiff"), numbers=range(len(pages)), expected=len(pages))
        records: list[Record] = []
        for index, (page, frame) in enumerate(zip(pages[: self.max_pages], frames, strict=False)):
            text = "\n".join(self._lines(row, page, f"json.pages[{index}]")).strip()
            if text:
                picture = row.picture(frame, f"tif[{index}]")
                records.append(Document((picture, Text(text)), row.provenance(page=index, num_pages=len(pages))))
        if not records:
            raise row.error("empty text", "json.pages", "expected text on some page, found none")
        return records

    def _lines(self, row: Row, page: Any, where: str) -> list[str]:
        fields = row.as_mapping(page, where)
        lines = fields.get("text")
        if lines is None and "lines" in fields:
            lines = row.as_mapping(fields["lines"], f"{where}.lines").get("text")
        return [line for line in row.as_list(lines, f"{where}.text") if isinstance(line, str)]
