"""Texts that image files carry beside their pixels: comments, EXIF and XMP, read without decoding the image."""

import zlib
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
# More than any editor writes; a text that is longer is searched up to here.
MAX_TEXT_BYTES = 4_000_000
_MAX_PARTS = 10_000
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PIXELS = frozenset({b"IDAT", b"fdAT", b"VP8 ", b"VP8L", b"ANMF"})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def image_texts(path: Path) -> str:
    """What stands in the metadata of an image file, of whatever kind it really is; at most a few megabytes.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        data = stream.read(16 * MAX_TEXT_BYTES)
    if data.startswith(_PNG):
        parts = _png_parts(data)
    elif data.startswith(_JPEG):
        parts = _jpeg_parts(data)
    elif data[:4] == b"RIFF":
        parts = _webp_parts(data)
    else:
        # Comments of the others stand as they are.
        parts = iter([data])
    found, size = [], 0
    for number, part in enumerate(parts):
        found.append(part[: MAX_TEXT_BYTES - size])
        size += len(found[-1])
        if size >= MAX_TEXT_BYTES or number >= _MAX_PARTS:
            break
    # EXIF has texts of two bytes a character.
    return b"\n".join(found).replace(b"\0\0", b"\n").replace(b"\0", b"").decode("utf-8", errors="replace")


def _png_parts(data: bytes) -> Iterator[bytes]:
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            # The packed text begins behind the keyword, and in `iTXt` behind two more terms.
            yield content
            yield from (_unpacked(content[start:]) for start in _zlib_starts(content))
        elif kind not in _PIXELS:
            yield content
    yield data[position:]


def _zlib_starts(content: bytes) -> Iterator[int]:
    for start in range(min(len(content) - 1, 400)):
        if content[start] == 0x78 and int.from_bytes(content[start : start + 2], "big") % 31 == 0:
            yield start


def _unpacked(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    position = len(_JPEG)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (_START_OF_SCAN, _END_OF_IMAGE) or length < 2:
            break
        yield data[position + 4 : position + 2 + length]
        position += 2 + length
    end = data.rfind(b"\xff\xd9")
    yield data[end + 2 :] if end > position else b""


def _webp_parts(data: bytes) -> Iterator[bytes]:
    position = 12
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind not in _PIXELS:
            yield data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
