"""MINT-1T: web pages, PDF files and papers with pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from PIL import Image

from ...errors import DataError
from ...images.opening import open_header
from ..errors import Reason
from ..records import Document, Record
from .row import FormatReader, Row, cause, describe_value, interleave, is_missing

# Of a document of many pages.
MAX_TIFF_BYTES = 256 * 2**20
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
    `tif`) member whose frames are the pictures. The i-th entry of `images` that is not null is frame i.

    Verified in code of its users: the members, that `images` holds references rather than pictures, that the TIFF has
    several frames. Assumed: that frames come in the order of the references. Another number of frames than of
    references is refused, because then it cannot be known which is which.
    """

    dataset: ClassVar[str] = "mint1t_pdf"
    id_fields: ClassVar[tuple[str, ...]] = ("__key__",)

    def read(self, row: Row) -> list[Record]:
        """One document."""
        content = row.as_mapping(row.parsed("json", notation="json"), "json")
        texts = row.as_list(content.get("texts"), "json.texts")
        references = row.as_list(content.get("images"), "json.images")
        images = self._frames_in_place(row, references)
        parts = interleave(row, texts, images, names=("json.texts", "json.images"))
        url = content.get("url") or content.get("pdf_name")
        return [Document(parts, row.provenance(url=url))]

    def _frames_in_place(self, row: Row, references: list[Any]) -> list[Any]:
        count = sum(not is_missing(reference) for reference in references)
        if count == 0:
            return [None] * len(references)
        frames = split_frames(row, row.first_of("tiff", "tif"), expected=count)
        return [None if is_missing(reference) else next(frames) for reference in references]


@dataclass(frozen=True)
class Mint1TArxivReader(Mint1TPdfReader):
    """MINT-1T ArXiv (`mlfoundations/MINT-1T-ArXiv`), tar shards.

    A sample is a `json` member with `texts` and `images`, two lists of the same length with nulls, and its pictures:
    a `tiff` member with one frame each, or members of their own (`0.png`, `1.jpg` ...) named by an entry of `images`.

    Verified: that the files are tar shards with a `json` member per sample. Assumed: the rest. Some users' code reads
    a field `captions` instead; such shards are refused with the names of the fields that were found.
    """

    dataset: ClassVar[str] = "mint1t_arxiv"

    def _frames_in_place(self, row: Row, references: list[Any]) -> list[Any]:
        members = {name: value for name, value in row.values.items() if name.rpartition(".")[2] in _PICTURE_SUFFIXES}
        if not members:
            return super()._frames_in_place(row, references)
        images: list[Any] = []
        for index, reference in enumerate(references):
            if not is_missing(reference) and (not isinstance(reference, str) or reference not in members):
                found = ", ".join(members)
                raise row.error(
                    "missing image", f"json.images[{index}]", f"{reference!r} is no member; there are {found}"
                )
            images.append(None if is_missing(reference) else members[reference])
        return images


def split_frames(row: Row, name: str, *, expected: int) -> Iterator[bytes]:
    """Pictures of a TIFF, one per frame.

    Frames are decoded one after the other as they are asked for, within the limits of a decoded picture, and kept as
    PNG; a TIFF of a single frame is kept as it is.

    Args:
        row: The row.
        name: Field with the TIFF's bytes.
        expected: How many frames there must be.

    Raises:
        DataError: If the TIFF cannot be read or has another number of frames.
    """
    content = row.require(name)
    if not isinstance(content, bytes):
        raise row.error("wrong type", name, f"expected the bytes of a TIFF, found {describe_value(content)}")
    if len(content) > MAX_TIFF_BYTES:
        raise row.error("too large", name, f"a TIFF of {len(content)} bytes; expected at most {MAX_TIFF_BYTES}")
    try:
        with open_header(content, name="the TIFF", formats=frozenset({"TIFF"})) as tiff:
            count = getattr(tiff, "n_frames", 1)
            if count != expected:
                reason: Reason = "more <image> than images" if count < expected else "more images than <image>"
                raise row.error(reason, name, f"{count} frames for {expected} references")
            if count == 1:
                yield content
                return
            for index in range(count):
                yield _encode_frame(tiff, index)
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
