"""BLIP3-GROUNDING-50M: captions that say where things are."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Document, Record, Text
from .columns import image_column
from .row import FormatReader, Row

BOX_FORMATS = {"position": 0, "coordinates": 1, "tags": 2}


@dataclass(frozen=True)
class Blip3Grounding50mReader(FormatReader):
    """BLIP3-GROUNDING-50M (`Salesforce/blip3-grounding-50m`), parquet.

    `captions` is a Python literal (not JSON): a list of `[caption, granularity, include_datacomp_raw_cap]`. It is read
    with `ast.literal_eval`, up to a limit of size and depth, and never executed.

    Attributes:
        box_formats: Which of three are read, each a record of its own: `position` (granularity 0, "player (in the
            center)"), `coordinates` (1, "starts at (x1, y1) and extends up to (x2, y2)"), `tags` (2,
            `<object>...</object><bbox>[x1, y1][x2, y2]</bbox>`). Coordinates are fractions of width and height.
        with_raw_caption: Whether the variant that also holds the picture's caption on the web is read.

    Verified in code of its users and in the report: the columns `url`, `captions`, `cogvlm_caption`, the triples and
    the numbers 0 to 2. Assumed: that there is one caption per format and variant, and that `uid` identifies a row.
    """

    box_formats: tuple[str, ...] = ("position",)
    with_raw_caption: bool = False

    dataset: ClassVar[str] = "blip3_grounding_50m"
    id_fields: ClassVar[tuple[str, ...]] = ("uid", "key", "__key__")

    def __post_init__(self) -> None:
        """Check the choice."""
        wrong = [name for name in self.box_formats if name not in BOX_FORMATS]
        if wrong or not self.box_formats:
            raise ValueError(f"`box_formats` is {self.box_formats}; expected some of: {', '.join(BOX_FORMATS)}.")

    def read(self, row: Row) -> list[Record]:
        """One document per box format: the picture, then the caption."""
        captions = row.as_list(row.parsed("captions", notation="python"), "captions")
        field = image_column(row, "image", "jpg", "url")
        picture = row.picture(row.require(field), field)
        url = row.values.get("url")
        return [
            Document((picture, Text(self._caption(row, captions, name))), row.provenance(url=url, box_format=name))
            for name in self.box_formats
        ]

    def _caption(self, row: Row, captions: list[Any], name: str) -> str:
        for index, entry in enumerate(captions):
            where = f"captions[{index}]"
            triple = row.as_list(entry, where)
            if len(triple) != 3:
                raise row.error(
                    "wrong nesting", where, f"expected [caption, granularity, flag], found {len(triple)} entries"
                )
            if triple[1] == BOX_FORMATS[name] and bool(triple[2]) is self.with_raw_caption:
                return row.as_text(triple[0], where).strip()
        variant = "with" if self.with_raw_caption else "without"
        raise row.error("missing granularity", "captions", f"no caption of format `{name}` {variant} the raw caption")
