"""Images of strangers: which decoders look at them, and the one error for whatever happens then."""

import base64
import os
import stat
import struct
import subprocess
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from xgen_mm.data.encoding import picture_size
from xgen_mm.data.fetching import check_picture
from xgen_mm.data.formats.row import check_header
from xgen_mm.data.records import Picture
from xgen_mm.errors import DataError, ImageInputError
from xgen_mm.images import opening
from xgen_mm.images.opening import FORMATS, MAX_SIDE, header_size, open_header, upright_size
from xgen_mm.processing.image_loading import fetch_image, pil_to_rgb

SOURCE = Path(__file__).parents[2] / "src" / "xgen_mm"
Image.init()
# Without plug-ins, which not every machine has.
WRITTEN = set(Image.SAVE) & FORMATS - {"HEIF", "JXL"}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n"


def picture(height: int = 6, width: int = 10, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that is a header and a bit of data, whatever it says of its size."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 100))
    body = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Ghostscript that leaves a mark when it is started."""
    program, mark = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return mark


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(lambda path: fetch_image(path), id="path"),
        pytest.param(lambda path: fetch_image(path.read_bytes()), id="bytes"),
        pytest.param(lambda path: fetch_image(base64.b64encode(path.read_bytes()).decode()), id="base64"),
        pytest.param(lambda path: pil_to_rgb(Image.open(path)), id="opened-by-the-caller"),
        pytest.param(lambda path: Picture(path).load(), id="data"),
        pytest.param(lambda path: picture_size(Picture(path)), id="size"),
        pytest.param(check_header, id="header"),
        pytest.param(lambda path: check_picture(path.read_bytes(), name="x"), id="fetched"),
    ],
)
def test_postscript_is_refused_and_starts_no_program(load: Any, tmp_path: Path, no_programs: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(EPS)
    with pytest.raises((ImageInputError, DataError), match="PNG or JPEG"):
        load(path)
    assert not no_programs.exists()


def test_ghostscript_of_these_tests_is_one_that_pillow_would_start(no_programs: Path) -> None:
    with Image.open(BytesIO(EPS)) as image, pytest.raises((OSError, subprocess.SubprocessError)):
        image.load()
    assert no_programs.exists()


def test_every_opening_in_the_source_names_its_formats() -> None:
    # The script that the demo writes for its user opens the user's own files.
    careless = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "Image.open(" in line and "formats=" not in line and path.name != "demo_script.py" and ">>>" not in line
    ]
    # What opens images is imported, not called, in words of comments and docstrings.
    assert [line for line in careless if "`Image.open`" not in line] == []


@pytest.mark.parametrize(
    "error",
    [
        *(MemoryError(), NotImplementedError("Unsupported BC format"), struct.error("unpack requires 4 bytes")),
        *(SyntaxError("broken"), ZeroDivisionError(), KeyError("x"), TypeError("x"), RecursionError(), EOFError()),
        *(
            OverflowError(),
            AssertionError(),
            UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
            RuntimeError(),
            IndexError(),
        ),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("step", ["open", "load", "convert"])
def test_whatever_a_decoder_raises_is_the_one_image_error(
    error: Exception, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    content = encode(picture(mode="P"), "PNG")
    owner = {"open": Image, "load": ImageFile.ImageFile, "convert": Image.Image}[step]
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(ImageInputError):
        pil_to_rgb(fetch_image(content))


@pytest.mark.parametrize("format", sorted(WRITTEN & {"AVIF", "DDS", "BLP", "TIFF", "WEBP", "JPEG2000", "ICO", "PCX"}))
def test_damaged_image_of_any_format_opens_or_is_the_image_error(format: str) -> None:
    content = encode(picture(40, 40, mode="P" if format == "BLP" else "RGB"), format)
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 8):
            damaged[position] = rng.integers(0, 256)
        try:
            pil_to_rgb(fetch_image(bytes(damaged[: rng.integers(1, len(content) + 1)])))
        except ImageInputError:
            continue


@pytest.mark.parametrize("size", [(170_000_000, 1), (1, 170_000_000), (MAX_SIDE + 1, 1)])
def test_image_with_an_endless_side_is_refused_from_its_header(size: tuple[int, int]) -> None:
    for load in (fetch_image, check_header, lambda content: picture_size(Picture(content))):
        with pytest.raises(ImageInputError, match=f"{size[1]} x {size[0]} pixels"):
            load(png_header(*size))


def test_image_of_too_many_pixels_is_refused_from_its_header() -> None:
    with pytest.raises(ImageInputError, match="MAX_IMAGE_PIXELS"):
        header_size(png_header(20_000, 20_000), name="x")


@pytest.mark.parametrize("format", sorted(WRITTEN))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_every_image_that_pillow_writes_opens_as_pillow_opens_it(format: str, mode: str) -> None:
    source = Image.new(mode, (30, 20)) if mode in ("I;16", "F") else picture(20, 30, mode=mode)
    try:
        content = encode(source, format)
    except (OSError, ValueError, KeyError):
        # No format knows all modes; the common ones are covered by all of these together.
        return
    ours, theirs = fetch_image(content), Image.open(BytesIO(content))
    assert isinstance(ours, Image.Image)
    theirs.load()
    assert (ours.format, ours.mode, ours.size) == (theirs.format, theirs.mode, theirs.size)
    assert ours.tobytes() == theirs.tobytes()


def test_formats_are_known_to_pillow_or_to_a_plug_in() -> None:
    assert FORMATS - set(Image.ID) <= {"AVIF", "WEBP", "JPEG2000", "HEIF", "JXL", "MPO"}
    assert not FORMATS & {"EPS", "IPTC", "FITS", "WMF", "PDF", "MPEG", "GRIB", "BUFR", "HDF5", "FPX", "MIC"}


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9, 65535])
def test_size_from_the_header_is_that_of_the_upright_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode(picture(), "JPEG", exif=exif)
    shown = pil_to_rgb(fetch_image(content))
    assert header_size(content, name="x") == (shown.height, shown.width)


def test_metadata_that_cannot_be_written_again_still_turn_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(picture(), "PNG", exif=exif)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise struct.error("argument out of range")

    expected = pil_to_rgb(fetch_image(content))
    monkeypatch.setattr(opening.ImageOps, "exif_transpose", fail)
    turned = pil_to_rgb(fetch_image(content))
    assert turned.tobytes() == expected.tobytes()
    assert upright_size(turned) == (10, 6)


def test_missing_file_and_directory_stay_errors_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_header(tmp_path / "missing.png", name="x")
    with pytest.raises((IsADirectoryError, PermissionError)):
        open_header(tmp_path, name="x")


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_size_of_a_turned_tiff_is_that_of_the_decoded_image(orientation: int, compression: str | None) -> None:
    # Pillow turns TIFF files itself when it decodes them, and states their size accordingly before.
    stream = BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (6, 10)).save(stream, "TIFF", exif=exif, compression=compression)
    shown = pil_to_rgb(fetch_image(stream.getvalue()))
    assert shown.size == ((10, 6) if orientation > 4 else (6, 10))
    assert header_size(stream.getvalue(), name="x") == (shown.height, shown.width)
