"""From whatever a caller passes as a picture to 8-bit RGB pixels.

Both image processors take the same inputs and make the same decisions about them, so the decisions live here: where a
picture may come from, how much may be downloaded, which way is up, what becomes of transparency and of deep colour.
"""

import base64
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from ..errors import ImageInputError
from ..images.bounded_download import download, is_url
from ..images.opening import decode, open_header, turn_upright
from .jpeg_decoding import START_OF_JPEG, decode_beside, jpeg_decoder, pixels_beside

logger = logging.getLogger(__name__)

PixelArray = np.ndarray[Any, np.dtype[Any]]
ImageSource = Image.Image | PixelArray | torch.Tensor | str | bytes | os.PathLike[str]

_CHANNELS = (1, 3, 4)
_ACCEPTED = "a PIL image, a NumPy array, a torch tensor, a path, an http(s) URL, encoded bytes or a base64 string"


def fetch_image(source: ImageSource) -> Image.Image | PixelArray | torch.Tensor:
    """Open one picture; pictures already in memory pass through untouched.

    Args:
        source: PIL image, array, tensor, path, ``file://`` or ``http(s)`` URL, ``data:image/...;base64,`` URI, bare
            base64 string, encoded bytes, or a mapping with ``bytes`` or ``path``. A two-dimensional array or tensor is
            read as one grayscale picture.

    Returns:
        A decoded PIL image, or the array or tensor with three or more dimensions.

    Raises:
        ImageInputError: If the source has another type, cannot be found, cannot be decoded, or exceeds the limits
            (``DownloadLimits`` for an address, ``PIL.Image.MAX_IMAGE_PIXELS`` for a decoded picture).
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray | torch.Tensor):
        return source[None] if source.ndim == 2 else source
    if isinstance(source, Mapping):
        # What `datasets` gives for an image that it has not decoded.
        found = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if isinstance(found, bytes | bytearray | memoryview | str | os.PathLike):
            return fetch_image(found)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), name=f"'{len(source)} bytes'")
    if isinstance(source, os.PathLike):
        return _open_file(os.path.expanduser(os.fspath(source)))
    if isinstance(source, str):
        return _fetch_string(source)
    raise ImageInputError(
        f"`images` holds a `{type(source).__name__}`; expected {_ACCEPTED}, or nested lists of these."
    )


def is_collection(images: Any) -> bool:
    """Whether something holds pictures, as a list, a generator or a column of a data set does, and is none itself."""
    if isinstance(images, np.ndarray) and images.dtype == object:
        return True
    leaves = (str, bytes, bytearray, memoryview, Mapping, os.PathLike, Image.Image, np.ndarray, torch.Tensor)
    return isinstance(images, Iterable) and not isinstance(images, leaves)


def arrange_images(images: Any) -> Any:
    """Pictures of a call as nested lists, so that they can be counted.

    Args:
        images: As the image processors take them; ``None`` in a list stands for a sample without a picture.

    Returns:
        One picture, lists of pictures, or one list per sample; stacked arrays are taken apart. ``None`` if there is no
        picture at all.
    """
    if not is_collection(images):
        return list(images) if _is_stack(images) else images
    items: list[Any] = []
    for image in images:
        if is_collection(image):
            items.append(list(_leaves(image)))
        else:
            items.extend(image if _is_stack(image) else [image])
    if any(item is None for item in items):
        # A place without a picture tells that each place is a sample.
        items = [item if isinstance(item, list) else [] if item is None else [item] for item in items]
    return items if any(not isinstance(item, list) or item for item in items) else None


def _leaves(images: Any) -> Iterator[Any]:
    for image in images:
        if is_collection(image):
            yield from _leaves(image)
        elif _is_stack(image):
            yield from image
        elif image is not None:
            yield image


def _is_stack(images: Any) -> bool:
    return isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4


def flatten_images(images: Any) -> list[Any]:
    """Put nested lists of pictures and stacked arrays into one flat list, in reading order.

    Args:
        images: Picture, array or tensor of shape ``(channels, height, width)``, ``(height, width, channels)`` or with
            a leading batch axis, or lists of these, nested as one list per sample or per conversation.

    Returns:
        PIL images and three-dimensional arrays or tensors.

    Raises:
        ImageInputError: If there is no picture at all, or an array has neither three nor four dimensions.
    """
    flat = list(_walk(images))
    if not flat:
        raise ImageInputError("`images` is empty; pass at least one picture, or leave `images` out for text alone.")
    return flat


def _walk(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for item in images:
            yield from _walk(item)
    elif images is None:
        # A sample without a picture.
        return
    elif isinstance(images, Image.Image) or images.ndim == 3:
        yield images
    elif images.ndim == 4:
        yield from images
    else:
        raise ImageInputError(
            f"`images` holds an array of shape {tuple(images.shape)}; expected 2 dimensions (grayscale), 3 (one "
            "picture) or 4 (a stack of pictures). Index into it first."
        )


def upright(image: Image.Image) -> Image.Image:
    """Decode a picture completely and apply its EXIF orientation.

    Of an animation the frame the image stands at is used, the first one after opening.

    Args:
        image: Any PIL image, possibly not read beyond its header; it is not modified.

    Returns:
        The picture as a viewer shows it, mode unchanged.

    Raises:
        ImageInputError: If the picture has no pixels or its data are damaged.
    """
    if 0 in image.size:
        _raise_no_pixels((image.height, image.width))
    decode(image, name=f"A {image.width}x{image.height} picture of mode {image.mode!r}")
    return turn_upright(image)


def pil_to_pixels(image: Image.Image, *, do_convert_rgb: bool | None) -> PixelArray | Image.Image:
    """Turn a picture upright, and into 8-bit RGB if asked.

    Args:
        image: Any PIL image; it is not modified.
        do_convert_rgb: Whether to convert; see `pil_to_rgb`.

    Returns:
        Levels of shape (height, width, 3) where the picture has been decoded to that form, else a PIL image.

    Raises:
        ImageInputError: As in `pil_to_rgb`.
    """
    pixels = pixels_beside(image)
    if pixels is not None:
        return pixels
    return pil_to_rgb(image) if do_convert_rgb else upright(image)


def pil_to_rgb(image: Image.Image) -> Image.Image:
    """Turn a picture upright and into 8-bit RGB.

    Transparent pixels are composited onto white, as the host's processors do and as a viewer shows them; the released
    code dropped the alpha channel instead, which uncovers whatever colour hides below it. Opaque pictures are the same
    either way. Modes with more than 8 bits are scaled to 8 bits rather than clipped.

    Args:
        image: Any PIL image; it is not modified.

    Returns:
        Image of mode ``RGB``.

    Raises:
        ImageInputError: If the picture has no pixels, its data are damaged, or its mode has no RGB equivalent.
    """
    image = upright(image)
    has_transparency = image.mode[-1] in "Aa" or image.info.get("transparency") is not None
    if image.mode == "RGB" and not has_transparency:
        return image
    try:
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_deep_to_8_bit(np.asarray(image), is_16_bit=image.mode.startswith("I;16"))).convert(
                "RGB"
            )
        return _composite_on_white(image) if has_transparency else image.convert("RGB")
    except ImageInputError:
        raise
    except Exception as error:
        raise ImageInputError(
            f"A picture of mode {image.mode!r} has no RGB equivalent here ({error}). Convert it to RGB first."
        ) from error


def array_to_pixels(
    image: PixelArray,
    *,
    do_convert_rgb: bool | None = True,
    do_rescale: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
) -> PixelArray:
    """Bring an array into the processors' working format: channels first, 8 bits or unit range.

    Integers are grey levels 0-255 (``uint16``: 0-65535, scaled down). Floats follow the host's convention: with
    ``do_rescale`` they are grey levels, without it they already lie in ``[0, 1]``. Floats in ``[0, 1]`` that come with
    ``do_rescale`` would turn nearly black; they are taken as unit range and a warning is logged once.

    Args:
        image: One picture of 2 or 3 dimensions, with 1, 3 or 4 channels on the first or the last axis.
        do_convert_rgb: Repeat one channel three times, and composite RGBA onto white.
        do_rescale: Whether grey levels are going to be rescaled later.
        input_data_format: ``"channels_first"`` or ``"channels_last"``; inferred if omitted (first wins if both fit).

    Returns:
        ``uint8`` grey levels, or ``float32`` in ``[0, 1]`` for floats that need no rescaling, of shape
        ``(channels, height, width)``.

    Raises:
        ImageInputError: If the shape is not a picture's, there are no pixels, or values lie outside their range.
    """
    pixels = _to_levels(_to_channels_first(image, input_data_format=input_data_format), do_rescale=do_rescale)
    if not do_convert_rgb:
        return pixels
    if pixels.shape[0] == 1:
        return np.repeat(pixels, 3, axis=0)
    if pixels.shape[0] != 4:
        return pixels
    if pixels.dtype == np.uint8:
        rgba = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
        return np.moveaxis(np.asarray(_composite_on_white(rgba)), -1, 0)
    alpha = pixels[3:]
    return np.asarray(pixels[:3] * alpha + (1 - alpha))


def _fetch_string(source: str) -> Image.Image:
    if is_url(source):
        return _decode(download(source), name=repr(_shorten(source)))
    path = _path_of(source)
    if path is not None:
        return _open_file(path)
    if source[:5].lower() == "data:":
        return _decode(decode_data_uri(source), name=repr(_shorten(source)))
    try:
        content = _decode_base64(source)
    except ValueError as error:
        raise ImageInputError(
            f"{_shorten(source)!r} is no existing file, http(s) URL or base64 picture. Check the path; relative paths "
            f"start at {os.getcwd()!r}."
        ) from error
    return _decode(content, name=repr(_shorten(source)))


def _path_of(source: str) -> str | None:
    """Path of an existing file, which may be written with `~` or as a `file://` address."""
    if source[:7].lower() == "file://":
        address = urlsplit(source)
        if address.netloc.lower() not in ("", "localhost"):
            raise ImageInputError(
                f"{_shorten(source)!r} names a file of another machine; expected one of this machine, or a plain path."
            )
        return unquote(address.path)
    if os.path.isfile(source):
        return source
    home = os.path.expanduser(source)
    return home if home != source and os.path.isfile(home) else None


def decode_data_uri(uri: str) -> bytes:
    """Encoded picture that a `data:image/...;base64,` URI holds.

    Raises:
        ImageInputError: If it is no such URI.
    """
    header, _, payload = uri.partition(",")
    if not re.fullmatch(r"data:image/[\w.+-]+(;[\w.=+-]+)*;base64", header, re.IGNORECASE):
        raise ImageInputError(
            f"The data URI starts with {_shorten(header)!r}; expected `data:image/<format>;base64,<data>`."
        )
    try:
        return _decode_base64(unquote(payload) if "%" in payload else payload)
    except ValueError as error:
        raise ImageInputError(f"The data URI {_shorten(uri)!r} holds no base64 picture ({error}).") from error


def _decode_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _open_file(path: str) -> Image.Image:
    name = repr(_shorten(path))
    try:
        with open(path, "rb") as file:
            if jpeg_decoder() is not None and file.read(len(START_OF_JPEG)) == START_OF_JPEG:
                return _decode(START_OF_JPEG + file.read(), name=name)
            file.seek(0)
            return _decode_stream(file, name=name)
    except ImageInputError:
        raise
    except FileNotFoundError as error:
        raise ImageInputError(
            f"{name} does not exist. Check the path; relative paths start at {os.getcwd()!r}."
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageInputError(f"{name} cannot be opened as a picture: {reason}.") from error


def _decode(content: bytes, *, name: str) -> Image.Image:
    return _decode_stream(BytesIO(content), name=name)


def _decode_stream(stream: Any, *, name: str) -> Image.Image:
    image = open_header(stream, name=name)
    if not (isinstance(stream, BytesIO) and decode_beside(image, stream.getvalue())):
        decode(image, name=name)
    return image


def _composite_on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, image).convert("RGB")


def _to_channels_first(image: PixelArray, *, input_data_format: str | ChannelDimension | None) -> PixelArray:
    if image.ndim == 2:
        image, input_data_format = image[None], ChannelDimension.FIRST
    if image.ndim != 3:
        raise ImageInputError(
            f"`images` holds an array of shape {image.shape}; expected (height, width), (channels, height, width) or "
            "(height, width, channels)."
        )
    if 0 in image.shape:
        _raise_no_pixels(image.shape)
    if input_data_format is None:
        if image.shape[0] in _CHANNELS and image.shape[-1] in _CHANNELS:
            _warn_once(
                f"An array of shape {image.shape} may have its channels first or last; they are taken to be first. "
                "Pass `input_data_format` to say which."
            )
        try:
            input_data_format = infer_channel_dimension_format(image, num_channels=_CHANNELS)
        except ValueError as error:
            raise ImageInputError(
                f"`images` holds an array of shape {image.shape} without an axis of 1, 3 or 4 channels; expected "
                "(channels, height, width) or (height, width, channels)."
            ) from error
    return np.moveaxis(image, -1, 0) if ChannelDimension(input_data_format) is ChannelDimension.LAST else image


def _to_levels(pixels: PixelArray, *, do_rescale: bool | None) -> PixelArray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(pixels.dtype, np.floating):
        return _deep_to_8_bit(pixels, is_16_bit=pixels.dtype == np.uint16, limit=255)
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= 0 and highest <= 255):
        raise ImageInputError(
            f"Float pixels range from {lowest:g} to {highest:g}; expected 0 to 1 (with `do_rescale=False`) or 0 to "
            "255. Undo a normalisation, the image processor does its own."
        )
    is_unit = highest <= 1
    if not do_rescale:
        return pixels.astype(np.float32) if is_unit else np.rint(pixels).astype(np.uint8)
    if is_unit and highest > 0:
        _warn_once(
            "Float pixels between 0 and 1 came with `do_rescale=True`; they are taken as already rescaled. Pass "
            "`do_rescale=False` to say so, or grey levels from 0 to 255."
        )
        pixels = pixels.astype(np.float32) * 255
    return np.rint(pixels).astype(np.uint8)


def _deep_to_8_bit(pixels: PixelArray, *, is_16_bit: bool, limit: int = 65535) -> PixelArray:
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= 0 and highest <= (65535 if is_16_bit else limit)):
        raise ImageInputError(
            f"Pixels of type {pixels.dtype} range from {lowest:g} to {highest:g}; expected 0 to {limit}. Scale them "
            "to 8 bits (0 to 255) before passing them."
        )
    if is_16_bit or highest > 255:
        scale = 255 / 65535
    else:
        scale = 255.0 if np.issubdtype(pixels.dtype, np.floating) and highest <= 1 else 1.0
    return np.rint(pixels * scale).astype(np.uint8)


def _raise_no_pixels(shape: tuple[int, ...]) -> None:
    raise ImageInputError(f"`images` holds a picture of shape {shape} without pixels; every side must be at least 1.")


def _shorten(text: str, *, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
