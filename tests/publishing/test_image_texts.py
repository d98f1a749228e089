"""Secrets and paths in the metadata of images are found before anything is sent, within bounds."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from xgen_mm.publishing.image_texts import MAX_TEXT_BYTES, image_texts
from xgen_mm.publishing.push_scan import scan_file

SECRET = "hf_" + "a1B2" * 8
IMAGE = Image.new("RGB", (8, 8))


def png(words: str, *, packed: bool = False, international: bool = False) -> bytes:
    info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    (info.add_itxt if international else info.add_text)("Comment", words, zip=packed)
    IMAGE.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def with_exif(words: str, format: str) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x010E] = words
    IMAGE.save(stream, format, exif=exif)
    return stream.getvalue()


def with_comment(words: str, format: str) -> bytes:
    stream = io.BytesIO()
    IMAGE.save(stream, format, comment=words.encode())
    return stream.getvalue()


def two_byte_comment(words: str) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x9C9C] = words.encode("utf-16-le") + b"\0\0"
    IMAGE.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


MAKERS: dict[str, Callable[[str], bytes]] = {
    "text.png": png,
    "packed.png": lambda words: png(words, packed=True),
    "international.png": lambda words: png(words, packed=True, international=True),
    "exif.png": lambda words: with_exif(words, "PNG"),
    "behind.png": lambda words: png("nothing") + words.encode(),
    "exif.jpg": lambda words: with_exif(words, "JPEG"),
    "comment.jpeg": lambda words: with_comment(words, "JPEG"),
    "two_bytes.jpg": two_byte_comment,
    "exif.webp": lambda words: with_exif(words, "WEBP"),
    "comment.gif": lambda words: with_comment(words, "GIF"),
    "really_a.jpg": png,
}


@pytest.mark.parametrize("name", MAKERS)
def test_secret_and_path_in_an_image_are_found_and_not_repeated(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(MAKERS[name](f"made with {SECRET} in /home/somebody/runs "))
    findings = scan_file(tmp_path, name)
    assert any("a Hugging Face token in the metadata" in finding for finding in findings), findings
    assert any("a path of this computer in the metadata" in finding for finding in findings), findings
    assert SECRET not in str(findings)


@pytest.mark.parametrize("name", MAKERS)
def test_harmless_image_passes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(MAKERS[name]("Loss over steps"))
    assert scan_file(tmp_path, name) == []


def test_packed_text_is_read_within_bounds(tmp_path: Path) -> None:
    content = b"Comment\0\0" + zlib.compress(b"\0" + b"a" * (50 * MAX_TEXT_BYTES))
    chunk = len(content).to_bytes(4, "big") + b"zTXt" + content + b"\0" * 4
    path = tmp_path / "bomb.png"
    path.write_bytes(png("x")[:33] + chunk * 20)
    assert len(image_texts(path)) <= MAX_TEXT_BYTES + 100


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b""])
def test_damaged_image_is_no_error(start: bytes, tmp_path: Path) -> None:
    for rest in (b"", b"\xff" * 50, b"\0" * 50, bytes(range(256))):
        (tmp_path / "damaged.png").write_bytes(start + rest)
        assert scan_file(tmp_path, "damaged.png") == []
