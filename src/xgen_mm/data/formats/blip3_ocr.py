"""BLIP3-OCR: pictures with the text that is written in them."""

import re
from dataclasses import dataclass
from typing import ClassVar

from ..records import Document, Record, Text
from .columns import image_column
from .row import FormatReader, Row

# What the paper names as an example of what its loader strips.
FILLER_PHRASES = ("the text",)
GRANULARITIES = range(6)
# Quoted text, and text between OCR tags, is what the picture says; it is kept to the letter.
_LITERAL = re.compile(r'("[^"]*"|<ocr>.*?</ocr>)', re.DOTALL)


@dataclass(frozen=True)
class Blip3Ocr200mReader(FormatReader):
    """BLIP3-OCR-200M (`Salesforce/blip3-ocr-200m`), parquet.

    `captions` is a JSON document: a list of `{"text", "granularity", "include_datacomp_raw_cap"}`. The granularities:
    0 text alone; 1 with its rough place in words; 2 with its place in fractions; 3 with a rounded box in words; 4 with
    a precise box in words ("starts at [x1, y1] and extends upto [x2, y2]"); 5 with tags
    (`<ocr>...</ocr><bbox>[x1, y1][x2, y2]</bbox>`).

    Attributes:
        granularities: Which of the six are read, each a record of its own. Pre-training used 0 alone.
        with_raw_caption: Whether the variant that also holds the picture's caption on the web is read.
        filler_phrases: Phrases removed outside of quoted text, in any case; empty for none. The paper says that its
            loader removes such phrases, `the text` among them, and does not list the others.

    Verified in code of its users and in the report: the columns `uid`, `url`, `captions`, the fields of a caption and
    the numbers 0 to 5. Assumed: that there is one caption per granularity and variant; a row without the one that was
    asked for is refused.
    """

    granularities: tuple[int, ...] = (0,)
    with_raw_caption: bool = False
    filler_phrases: tuple[str, ...] = FILLER_PHRASES

    dataset: ClassVar[str] = "blip3_ocr_200m"
    id_fields: ClassVar[tuple[str, ...]] = ("uid", "key", "__key__")

    def __post_init__(self) -> None:
        """Check the choice."""
        wrong = [number for number in self.granularities if number not in GRANULARITIES]
        if wrong or not self.granularities:
            raise ValueError(f"`granularities` is {self.granularities}; expected some of 0 to 5.")

    def read(self, row: Row) -> list[Record]:
        """One document per granularity: the picture, then the text."""
        captions = row.as_list(row.parsed("captions", notation="json"), "captions")
        field = image_column(row, "image", "jpg", "url")
        picture = row.picture(row.require(field), field)
        url = row.values.get("url")
        return [
            Document(
                (picture, Text(self._caption(row, captions, number))), row.provenance(url=url, granularity=number)
            )
            for number in self.granularities
        ]

    def _caption(self, row: Row, captions: list[object], number: int) -> str:
        for index, entry in enumerate(captions):
            where = f"captions[{index}]"
            caption = row.as_mapping(entry, where)
            if (
                caption.get("granularity") == number
                and bool(caption.get("include_datacomp_raw_cap")) is self.with_raw_caption
            ):
                text = strip_fillers(row.as_text(caption.get("text"), f"{where}.text"), phrases=self.filler_phrases)
                return row.as_text(text, f"{where}.text")
        variant = "with" if self.with_raw_caption else "without"
        raise row.error(
            "missing granularity", "captions", f"no caption of granularity {number} {variant} the raw caption"
        )


class Blip3OcrHd30mReader(Blip3Ocr200mReader):
    """BLIP3-OCR-HD-30M: pictures above 512 pixels, read again at high resolution.

    Nothing of it could be seen; the report says that its rows are those of BLIP3-OCR-200M, which see.
    """

    dataset: ClassVar[str] = "blip3_ocr_hd_30m"


def strip_fillers(text: str, *, phrases: tuple[str, ...]) -> str:
    """Remove phrases that say nothing, but never from what a picture says.

    Args:
        text: A caption; text in double quotes or `<ocr>` tags is kept to the letter.
        phrases: Phrases of whole words, in any case.

    >>> strip_fillers('The image contains the text "THE TEXT", the text "B"', phrases=("the text",))
    'The image contains "THE TEXT", "B"'
    """
    if not phrases:
        return text
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(re.escape(phrase) for phrase in longest_first)})\b\s*", re.IGNORECASE)
    # Every second piece is literal.
    pieces = [piece if index % 2 else pattern.sub("", piece) for index, piece in enumerate(_LITERAL.split(text))]
    return "".join(pieces).strip()
