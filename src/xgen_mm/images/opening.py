"""Opens and decodes images of strangers: known formats only, and one error for whatever is wrong with a file.

Pillow tries every decoder it has on every file. Some of them start other programs (EPS: Ghostscript), decompress
without a limit (FITS) or open what is embedded in any format (IPTC), and a damaged file may raise anything at all.
"""

from io import BytesIO
from typing import Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import ImageInputError

# Pillow's names of the formats that it, or a plug-in of the user's, decodes by itself within this process.
FORMATS = frozenset(
    (
        *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO", "IM"),
        *("IMT", "JPEG", "JPEG2000", "JXL", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI"),
        *("SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
    )
)
# Those that the web is made of: enough for what servers send, and each begins with a mark of its own.
WEB_FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"})
# Decoding these would start a program, or open what is embedded in them with any decoder.
REFUSED_FORMATS = frozenset({"EPS", "IPTC"})
# Pillow limits pixels, not sides: a header of 170 million columns by one row passes and costs a gigabyte.
MAX_SIDE = 1_000_000
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_BY_A_QUARTER = range(5, 9)
# Where Pillow keeps what says which way is up.
_EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def open_header(source: Any, *, name: str, formats: frozenset[str] = FORMATS) -> Image.Image:
    """Open an image as far as its header; its pixels are decoded later.

    Args:
        source: Path, encoded bytes or a binary stream; a stream has to stay open until the pixels are decoded.
        name: What messages call it, quoted where that is usual.

        formats: Formats to look for, of `FORMATS`.

    Returns:
        An image with at least one pixel and sides of at most `MAX_SIDE`.

    Raises:
        ImageInputError: If it is no image in one of the formats, or too large to be decoded.
        OSError: If there is no such file, or it may not be read.
    """
    try:
        image = _open_known(BytesIO(source) if isinstance(source, bytes) else source, formats)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageInputError(
            f"{name} decodes to more than twice `PIL.Image.MAX_IMAGE_PIXELS` = {Image.MAX_IMAGE_PIXELS} pixels. "
            "Scale it down, or raise that limit if you trust the file."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageInputError(
            f"{name} is not a picture in a format that is read here. Convert it, to PNG or JPEG for instance."
        ) from error
    except Exception as error:
        raise _damaged(name, error) from error
    if min(image.size) < 1 or max(image.size) > MAX_SIDE:
        height, width = image.height, image.width
        image.close()
        raise ImageInputError(
            f"{name} has {height} x {width} pixels; every side must be at least 1 and at most {MAX_SIDE}."
        )
    return image


def decode(image: Image.Image, *, name: str) -> None:
    """Decode the pixels of an opened image, in place.

    Raises:
        ImageInputError: If the data are damaged, or its format is one of `REFUSED_FORMATS`.
    """
    # An image that has been decoded has no tiles left and starts nothing any more.
    if image.format in REFUSED_FORMATS and getattr(image, "tile", None):
        raise ImageInputError(
            f"{name} is of format {image.format}, which is not decoded here. Convert it, to PNG or JPEG for instance."
        )
    try:
        image.load()
    except Exception as error:
        raise _damaged(name, error) from error


def header_size(source: Any, *, name: str) -> tuple[int, int]:
    """(height, width) of an image as it is shown, from its header; arguments and errors as in `open_header`."""
    with open_header(source, name=name) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image as its EXIF orientation says it is shown."""
    size = (image.height, image.width)
    if image.format == "TIFF":
        # Pillow states the size of these as they are shown, and turns them when it decodes them.
        return size
    return size[::-1] if exif_orientation(image) in _TURNED_BY_A_QUARTER else size


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where none is stated, or the metadata are damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Damaged metadata must not cost the user an intact image.
        return 1
    return orientation if orientation in _TURNS else 1


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of a decoded image; without one, the image itself."""
    # `exif_transpose` copies the whole image even if there is nothing to turn.
    orientation = exif_orientation(image)
    if orientation == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Metadata that can be read but not written again: the pixels are turned, the metadata left out.
        turned = image.transpose(_TURNS[orientation])
        for key in _EXIF_KEYS:
            turned.info.pop(key, None)
        return turned


def _open_known(stream: Any, formats: frozenset[str]) -> Image.Image:
    """`Image.open` in Pillow's own order: the common formats, then, if none fits, all others that are known."""
    Image.preinit()
    try:
        return Image.open(stream, formats=_in_order(formats))
    except UnidentifiedImageError:
        if not Image.init():
            raise
    if hasattr(stream, "seek"):
        stream.seek(0)
    return Image.open(stream, formats=_in_order(formats))


def _in_order(formats: frozenset[str]) -> list[str]:
    return [format for format in Image.ID if format in formats]


def _damaged(name: str, error: Exception) -> ImageInputError:
    reason = str(error) or type(error).__name__
    return ImageInputError(
        f"{name} could not be decoded ({reason}). It is probably truncated or damaged: download or export it again."
    )
