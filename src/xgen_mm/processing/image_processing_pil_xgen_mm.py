"""Image processor on Pillow and NumPy, bit-identical to the released preprocessing."""

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.utils.generic import TensorType

from .image_loading import PixelArray, array_to_pixels, pil_to_rgb, upright
from .image_tiling import (
    CanvasPlan,
    XGenMMBaseImageProcessor,
    XGenMMImageProcessorKwargs,
    channel_values,
    check_ready_tile,
    is_tiled,
    padding_levels,
    plan_canvas,
    plan_square,
    tile_edge,
)


class XGenMMImageProcessorPil(XGenMMBaseImageProcessor, PilBackend):
    """Pictures to tiles with Pillow's bicubic filter; the reference for `XGenMMImageProcessor`.

    In ``"anyres"`` mode a picture is laid, aspect ratio kept, on the canvas that keeps most of its pixels, centred on
    black; the canvas is cut row by row into square tiles, and the whole picture squashed to one tile goes first.

    Source: xGen-MM technical report (arXiv:2408.08872), any-resolution section; order of operations as in the released
    code, checked bit by bit against its output. Pillow 13.0 changed the order of its two passes for pictures that lose
    far more rows than columns: there both this class and the released code give other bits than with earlier versions.
    """

    def __init__(self, **kwargs: Unpack[XGenMMImageProcessorKwargs]) -> None:
        """Store the settings; see `XGenMMImageProcessorKwargs`."""
        super().__init__(**kwargs)

    def process_image(
        self,
        image: Image.Image | PixelArray | torch.Tensor,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        **kwargs: Any,
    ) -> PixelArray:
        """Bring one picture into the working format.

        Args:
            image: PIL image, array or tensor.
            do_convert_rgb: Convert to three channels; see `pil_to_rgb` and `array_to_pixels`.
            input_data_format: Channel axis of an array; inferred if omitted.
            do_rescale: Whether grey levels are rescaled later, which tells what floats mean.
            **kwargs: Other call arguments, unused here.

        Returns:
            ``uint8`` levels, or ``float32`` in ``[0, 1]``, shape ``(channels, height, width)``.

        Raises:
            ImageInputError: If the picture cannot be used.
        """
        if isinstance(image, Image.Image):
            image = np.asarray(pil_to_rgb(image) if do_convert_rgb else upright(image))
            input_data_format = ChannelDimension.LAST
        elif isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        return array_to_pixels(
            image, do_convert_rgb=do_convert_rgb, do_rescale=do_rescale, input_data_format=input_data_format
        )

    def _preprocess(
        self,
        images: list[PixelArray],
        *,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float] | None,
        image_std: float | Sequence[float] | None,
        image_grid_pinpoints: list[list[int]],
        image_aspect_ratio: str,
        do_pad: bool | None = True,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        tile_size = tile_edge(size)
        has_sizes = is_tiled(image_aspect_ratio, do_resize=do_resize)
        cut = []
        for image in images:
            if not do_resize:
                check_ready_tile(image.shape[-2:], tile_size=tile_size)
                tiles = image[None]
            elif has_sizes:
                tiles = self._cut_anyres(image, pinpoints=image_grid_pinpoints, tile_size=tile_size, resample=resample)
            else:
                fill = None if image_aspect_ratio == "none" else image_mean
                tiles = self._squash(image, pad_mean=fill, tile_size=tile_size, resample=resample)
            cut.append(tiles)

        # Filler tiles stay zero: they are added after normalisation.
        most_tiles = max(len(tiles) for tiles in cut)
        pixel_values = np.zeros((len(cut), most_tiles, *cut[0].shape[1:]), dtype=np.float32)
        for values, tiles in zip(pixel_values, cut, strict=True):
            _normalise_into(
                values[: len(tiles)],
                tiles,
                factor=rescale_factor if do_rescale else None,
                mean=image_mean if do_normalize else None,
                std=image_std if do_normalize else None,
            )
        data: dict[str, Any] = {"pixel_values": pixel_values}
        if not do_pad:
            data["pixel_values"] = [values[: len(tiles)] for values, tiles in zip(pixel_values, cut, strict=True)]
        elif return_tensors is None:
            data["pixel_values"] = list(pixel_values)
        if has_sizes:
            data["image_sizes"] = [list(image.shape[-2:]) for image in images]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _cut_anyres(
        self, image: PixelArray, *, pinpoints: list[list[int]], tile_size: int, resample: int
    ) -> PixelArray:
        """Thumbnail and canvas tiles, shape ``(num_tiles, channels, tile_size, tile_size)``."""
        plan = plan_canvas(image.shape[-2:], pinpoints=pinpoints)
        canvas = _lay_on_canvas(_resize(image, plan.resized, resample=resample), plan, fill=None)
        thumbnail = _resize(image, (tile_size, tile_size), resample=resample)
        rows, cols = plan.canvas[0] // tile_size, plan.canvas[1] // tile_size
        # (channels, rows, S, cols, S) -> (rows, cols, channels, S, S)
        tiles = canvas.reshape(-1, rows, tile_size, cols, tile_size).transpose(1, 3, 0, 2, 4)
        return np.concatenate([thumbnail[None], tiles.reshape(rows * cols, -1, tile_size, tile_size)])

    def _squash(
        self, image: PixelArray, *, pad_mean: float | Sequence[float] | None, tile_size: int, resample: int
    ) -> PixelArray:
        """The whole picture as one tile, padded to a square of the mean colour first if ``pad_mean`` is given."""
        if pad_mean is not None:
            plan = plan_square(image.shape[-2:], tile_size=tile_size)
            fill = padding_levels(pad_mean, num_channels=image.shape[0])
            image = _lay_on_canvas(_resize(image, plan.resized, resample=resample), plan, fill=fill)
        return _resize(image, (tile_size, tile_size), resample=resample)[None]


def _resize(image: PixelArray, size: tuple[int, int], *, resample: int) -> PixelArray:
    """Scale ``(channels, height, width)`` pixels to ``size`` = (height, width) with Pillow's filter."""
    if image.shape[-2:] == tuple(size):
        return image
    if image.dtype != np.uint8:
        # Pillow filters colour in 8 bits only; the unit range is restored after it.
        levels = np.rint(image * 255).astype(np.uint8)
        return _resize(levels, size, resample=resample).astype(np.float32) / np.float32(255)
    height, width = size
    if image.shape[0] == 3:
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        return np.asarray(picture.resize((width, height), resample)).transpose(2, 0, 1)
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), resample) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def _lay_on_canvas(image: PixelArray, plan: CanvasPlan, *, fill: Iterable[int] | None) -> PixelArray:
    """Paste the scaled picture on a canvas that is black, or filled with the grey levels in ``fill``."""
    canvas = np.zeros((image.shape[0], *plan.canvas), dtype=image.dtype)
    if fill is not None:
        levels = np.asarray(list(fill)).reshape(-1, 1, 1)
        canvas[:] = levels if image.dtype == np.uint8 else levels / 255
    height, width = plan.resized
    canvas[:, plan.top : plan.top + height, plan.left : plan.left + width] = image
    return canvas


def _normalise_into(
    values: PixelArray,
    tiles: PixelArray,
    *,
    factor: float | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> None:
    """Write ``(tiles * factor - mean) / std`` in float32, rounded as the released code rounds."""
    if factor is None:
        values[:] = tiles
    else:
        # The product is formed in float64 and rounded once: for 1/255 that is the float32 quotient of the release.
        np.multiply(tiles, factor, out=values, casting="same_kind", dtype=np.float64)
    num_channels = tiles.shape[1]
    if mean is not None and std is not None:
        means = channel_values(mean, num_channels=num_channels, name="image_mean")
        deviations = channel_values(std, num_channels=num_channels, name="image_std")
        values -= np.array(means, dtype=np.float32)[:, None, None]
        values /= np.array(deviations, dtype=np.float32)[:, None, None]
