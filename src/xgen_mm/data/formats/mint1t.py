"""MINT-1T: web pages, PDF files and papers with pictures."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from PIL import Image

from ...errors import DataError
from ...images.opening import open_header
from ..errors import Reason
from ..records import Document, Record
from .row import FormatReader, Row, cause, describe_value, interleave, is_missing, preview

# Of a document of many pages.
MAX_TIFF_BYTES = 256 * 2**20
# Of its frames as PNG, in which a blank TIFF of little size may become a large one.
MAX_FRAMES_BYTES = 512 * 2**20
_REFERENCE = re.compile(r"page_(\d{1,9})_image_(\d{1,9})")
_PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")


@dataclass(frozen=True)
class Mint1THtmlReader(FormatReader):
    """MINT-1T HTML (`mlfoundations/MINT-1T-HTML`), parquet.

    One document per row from `texts` and `images`, two lists of the same length with nulls, pictures as URLs.

    Verified: that the files are parquet and hold URLs only. Assumed: the alternation, as in OBELICS, and that an
    address of the page, if there is one, is called `url`.
    """

    dataset: ClassVar[str] = "mint1t_html"

    def read(self, row: Row) -> list[Record]:
        """One document."""
        parts = interleave(row, row.items("texts"), row.items("images"), names=("texts", "images"))
        return [Document(parts, row.provenance(url=row.values.get("url")))]


@dataclass(frozen=True)
class Mint1TPdfReader(FormatReader):
    """MINT-1T PDF (`mlfoundations/MINT-1T-PDF-CC-*`), tar shards.

    A sample is a `json` member with `texts` and `images`, two lists of the same length with nulls, and a `tiff` (or
    `tif`) member whose frames are the pictures. An entry of `images` such as `page_0_image_5` names page and number
    (`xref`) of a picture; `image_metadata` lists `{"page", "xref", ...}` of the frames, which says which of them is
    meant. Without it, or `xref` in it, the i-th entry of `images` that is not null is frame i.

    Verified in code of its users: the members, that `images` holds references rather than pictures, that the TIFF has
    several frames. Assumed: that `image_metadata` is in the order of the frames; and that frames come in the order of
    the references where it is missing. Another number of frames than of entries in `image_metadata`, or of references
    without it, is refused, because then it cannot be known which is which.
    """

    dataset: ClassVar[str] = "mint1t_pdf"
    has_fields_in_json: ClassVar[bool] = False
    id_fields: ClassVar[tuple[str, ...]] = ("__key__",)

    def read(self, row: Row) -> list[Record]:
        """One document."""
        content = row.as_mapping(row.parsed("json", notation="json"), "json")
        texts = row.as_list(content.get("texts"), "json.texts")
        references = row.as_list(content.get("images"), "json.images")
        images = self._frames_in_place(row, references, content.get("image_metadata"))
        parts = interleave(row, texts, images, names=("json.texts", "json.images"))
        url = content.get("url") or content.get("pdf_name")
        return [Document(parts, row.provenance(url=url))]

    def _frames_in_place(self, row: Row, references: list[Any], metadata: Any) -> list[Any]:
        named = [reference for reference in references if not is_missing(reference)]
        if not named:
            return [None] * len(references)
        field = row.first_of("tiff", "tif")
        numbers, count = _frame_numbers(row, named, metadata)
        frames = split_frames(row, field, numbers=numbers, expected=count)
        return [None if is_missing(reference) else next(frames) for reference in references]


def _frame_numbers(row: Row, references: list[Any], metadata: Any) -> tuple[list[int], int]:
    """The frame of each reference, and how many frames there have to be."""
    matches = [_REFERENCE.fullmatch(reference) if isinstance(reference, str) else None for reference in references]
    entries = [] if is_missing(metadata) else row.as_list(metadata, "json.image_metadata")
    has_places = any(isinstance(entry, Mapping) and "xref" in entry for entry in entries)
    if not has_places or not any(matches):
        return list(range(len(references))), len(references)
    frames: dict[tuple[int, int], int] = {}
    for index, entry in enumerate(entries):
        fields = row.as_mapping(entry, f"json.image_metadata[{index}]")
        place = (fields.get("page"), fields.get("xref"))
        if not all(isinstance(number, int) for number in place):
            expected = f"expected whole numbers `page` and `xref`, found {preview(place)}"
            raise row.error("wrong type", f"json.image_metadata[{index}]", expected)
        frames.setdefault(place, index)  # type: ignore[arg-type]
    numbers = []
    for reference, match in zip(references, matches, strict=True):
        number = None if match is None else frames.get((int(match[1]), int(match[2])))
        if number is None:
            found = f"{preview(reference)} is no page and xref of `image_metadata`"
            raise row.error("missing image", "json.images", found)
        numbers.append(number)
    return numbers, len(entries)


@dataclass(frozen=True)
class Mint1TArxivReader(Mint1TPdfReader):
    """MINT-1T ArXiv (`mlfoundations/MINT-1T-ArXiv`), tar shards.

    A sample is a `json` member with `texts` and `images`, two lists of the same length with nulls, and its pictures:
    a `tiff` member with one frame each, or members of their own (`0.png`, `1.jpg` ...) named by an entry of `images`.

    Verified: that the files are tar shards with a `json` member per sample. Assumed: the rest. Some users' code reads
    a field `captions` instead; such shards are refused with the names of the fields that were found.
    """

    dataset: ClassVar[str] = "mint1t_arxiv"

    def _frames_in_place(self, row: Row, references: list[Any], metadata: Any) -> list[Any]:
        members = {name: value for name, value in row.values.items() if name.rpartition(".")[2] in _PICTURE_SUFFIXES}
        if not members:
            return super()._frames_in_place(row, references, metadata)
        images: list[Any] = []
        for index, reference in enumerate(references):
            if not is_missing(reference) and (not isinstance(reference, str) or reference not in members):
                found = ", ".join(members)
                raise row.error(
                    "missing image", f"json.images[{index}]", f"{reference!r} is no member; there are {found}"
                )
            images.append(None if is_missing(reference) else members[reference])
        return images


def split_frames(row: Row, name: str, *, numbers: Iterable[int], expected: int) -> Iterator[bytes]:
    """Pictures of a TIFF, one per frame.

    Frames are decoded one after the other as they are asked for, within the limits of a decoded picture, and kept as
    PNG; a TIFF of a single frame is kept as it is.

    Args:
        row: The row.
        name: Field with the TIFF's bytes.
        numbers: Frames in the order in which they are wanted, from 0.
        expected: How many frames there must be.

    Raises:
        DataError: If the TIFF cannot be read or has another number of frames, or the frames take too much together.
    """
    content = row.require(name)
    if not isinstance(content, bytes):
        raise row.error("wrong type", name, f"expected the bytes of a TIFF, found {describe_value(content)}")
    if len(content) > MAX_TIFF_BYTES:
        raise row.error("too large", name, f"a TIFF of {len(content)} bytes; expected at most {MAX_TIFF_BYTES}")
    num_bytes = 0
    try:
        with open_header(content, name="the TIFF", formats=frozenset({"TIFF"})) as tiff:
            count = getattr(tiff, "n_frames", 1)
            if count != expected:
                reason: Reason = "more <image> than images" if count < expected else "more images than <image>"
                raise row.error(reason, name, f"{count} frames for {expected} references")
            for number in numbers:
                frame = content if count == 1 else _encode_frame(tiff, number)
                num_bytes += len(frame)
                if num_bytes > MAX_FRAMES_BYTES:
                    raise row.error("too large", name, f"frames of more than {MAX_FRAMES_BYTES} bytes together")
                yield frame
    except DataError:
        raise
    except Exception as error:
        # A decoder may raise anything.
        raise row.error("unreadable image", name, f"expected a TIFF that can be read ({cause(error)})") from error


def _encode_frame(tiff: Image.Image, index: int) -> bytes:
    tiff.seek(index)
    stream = BytesIO()
    frame = tiff if tiff.mode in ("1", "L", "RGB", "RGBA", "LA", "P", "I;16") else tiff.convert("RGB")
    # Little compression: the frame is decoded again soon.
    frame.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
