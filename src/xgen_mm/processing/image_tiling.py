"""What both image processors share: settings, checks, and the plan of which pixels go into which tile."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from transformers.image_processing_utils import BaseImageProcessor, get_size_dict
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..anyres import Size, best_canvas, count_tiles, fit_inside
from ..errors import ImageInputError
from .image_loading import fetch_image, flatten_images, is_collection
from .released_processor import translate_image_settings

ASPECT_RATIO_MODES = ("anyres", "pad", "none")
# Beyond this a padded square is not built at full resolution: 20000 x 1 pixels would become 400 million.
MAX_PADDED_PIXELS = 2**26


class XGenMMImageProcessorKwargs(ImagesKwargs, total=False):
    """Call and constructor arguments of the image processors, beyond the host's own.

    Attributes:
        image_grid_pinpoints: Canvases a picture may be laid on, as ``[height, width]`` in pixels, multiples of
            ``size``; order breaks ties.
        image_aspect_ratio: ``"anyres"`` cuts each picture into tiles and puts a thumbnail first; ``"pad"`` centres it
            on a square of the mean colour and scales that to one tile; ``"none"`` squashes it into one tile.
        max_tiles: Most tiles, thumbnail included, that a picture may cost in ``"anyres"`` mode. One that would cost
            more is scaled down first until a smaller canvas suits it, and ``image_sizes`` tells the size it then has.
            ``None`` sets no limit.
    """

    image_grid_pinpoints: list[list[int]]
    image_aspect_ratio: str
    max_tiles: int | None


class CanvasPlan(NamedTuple):
    """Where one picture lies on its canvas, in pixels; sizes are ``(height, width)``."""

    canvas: Size
    resized: Size
    top: int
    left: int


class XGenMMBaseImageProcessor(BaseImageProcessor):
    """Settings and geometry of the xGen-MM image processors; the pixels are the subclasses' business.

    Defaults are those of the released v1.5 instruct checkpoints. The v1 checkpoints differ in ``size`` (378),
    ``image_grid_pinpoints`` (multiples of 378) and the CLIP mean and standard deviation.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]
    valid_kwargs = XGenMMImageProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size: ClassVar[dict[str, int]] = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    image_grid_pinpoints: ClassVar[list[list[int]]] = [[768, 384], [384, 768], [768, 768], [384, 1152], [1152, 384]]
    image_aspect_ratio = "anyres"
    max_tiles: int | None = None

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the stored settings; those of the original processor are translated."""
        settings, unused = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        # Where the code of a saved processor lies is no setting of the loaded one.
        settings.pop("auto_map", None)
        return translate_image_settings(settings, source=str(pretrained_model_name_or_path)), unused

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open pictures given as paths, URLs or encoded data; nesting is kept, pictures in memory pass through.

        Args:
            image_url_or_urls: One source or nested lists of sources, see ``image_loading.fetch_image``.

        Returns:
            The same nesting of PIL images, arrays and tensors.

        Raises:
            ImageInputError: If a source cannot be read.
        """
        if image_url_or_urls is not None and is_collection(image_url_or_urls):
            return [item if item is None else self.fetch_images(item) for item in image_url_or_urls]
        return fetch_image(image_url_or_urls)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Count the tiles one picture becomes (the host's word for tile is "patch").

        Args:
            height: Height of the upright picture in pixels.
            width: Width of the upright picture in pixels.
            images_kwargs: Call arguments that override the stored settings.

        Returns:
            Number of tiles, thumbnail included; 1 unless ``image_aspect_ratio`` is ``"anyres"``.
        """
        return self.count_tiles([(height, width)], images_kwargs)[0]

    def count_tiles(self, image_sizes: Sequence[Size], images_kwargs: dict[str, Any] | None = None) -> list[int]:
        """Count the tiles of several pictures.

        Args:
            image_sizes: ``(height, width)`` of each upright picture in pixels.
            images_kwargs: Call arguments that override the stored settings.

        Returns:
            Tiles of each picture, as `get_number_of_image_patches` counts them.
        """
        names = ("image_aspect_ratio", "image_grid_pinpoints", "do_resize", "max_tiles")
        settings = {name: getattr(self, name) for name in names}
        settings |= {name: value for name, value in (images_kwargs or {}).items() if value is not None}
        if not is_tiled(settings["image_aspect_ratio"], do_resize=settings["do_resize"]):
            return [1] * len(image_sizes)
        size = settings.get("size", self.size)
        tile_size = tile_edge(size if isinstance(size, SizeDict) else SizeDict(**get_size_dict(size)))
        pinpoints, max_tiles = settings["image_grid_pinpoints"], settings["max_tiles"]
        _check_budget(max_tiles, pinpoints, tile_size=tile_size)
        counts: dict[Size, int] = {}
        for image_size in set(image_sizes):
            limited = limited_size(image_size, pinpoints=pinpoints, tile_size=tile_size, max_tiles=max_tiles)
            counts[image_size] = count_tiles(limited, pinpoints=pinpoints, tile_size=tile_size)
        return [counts[image_size] for image_size in image_sizes]

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        return flatten_images(self.fetch_images(images))

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        pinpoints = kwargs.get("image_grid_pinpoints")
        if pinpoints is not None:
            kwargs["image_grid_pinpoints"] = [[int(side) for side in canvas] for canvas in pinpoints]
        return kwargs

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        mode = kwargs["image_aspect_ratio"]
        if mode not in ASPECT_RATIO_MODES:
            raise ValueError(f"`image_aspect_ratio` is {mode!r}; expected one of {', '.join(ASPECT_RATIO_MODES)}.")
        tile_size = tile_edge(kwargs["size"])
        if is_tiled(mode, do_resize=kwargs["do_resize"]):
            _check_pinpoints(kwargs["image_grid_pinpoints"], tile_size=tile_size)
            _check_budget(kwargs.get("max_tiles"), kwargs["image_grid_pinpoints"], tile_size=tile_size)


def tile_edge(size: SizeDict) -> int:
    """Edge of a tile in pixels, from the host's ``size`` setting; `ValueError` unless that is square."""
    if not size.height or size.height != size.width:
        raise ValueError(f"`size` is {dict(size)}; tiles are square, pass `size={{'height': n, 'width': n}}`.")
    return int(size.height)


def is_tiled(mode: str, *, do_resize: bool | None) -> bool:
    """Whether pictures are cut into tiles; otherwise each one becomes a single tile."""
    return mode == "anyres" and bool(do_resize)


def _check_pinpoints(pinpoints: Sequence[Sequence[int]] | None, *, tile_size: int) -> None:
    if not pinpoints:
        raise ValueError("`image_grid_pinpoints` is empty; list at least one [height, width] canvas.")
    bad = [canvas for canvas in pinpoints if len(canvas) != 2 or any(s < 1 or s % tile_size for s in canvas)]
    if bad:
        raise ValueError(
            f"`image_grid_pinpoints` holds {bad}; every canvas must be [height, width] in multiples of the tile size "
            f"{tile_size}. Change `size` and `image_grid_pinpoints` together."
        )


def _check_budget(max_tiles: int | None, pinpoints: Sequence[Sequence[int]], *, tile_size: int) -> None:
    if max_tiles is not None and (isinstance(max_tiles, bool) or not isinstance(max_tiles, int | np.integer)):
        raise ValueError(f"`max_tiles` is {max_tiles!r}; expected a whole number of tiles, or `None` for no limit.")
    fewest = min(_num_tiles(canvas, tile_size=tile_size) for canvas in pinpoints)
    if max_tiles is not None and max_tiles < fewest:
        raise ValueError(
            f"`max_tiles` is {max_tiles}, but the smallest canvas in `image_grid_pinpoints` costs {fewest} tiles with "
            f"the thumbnail; give at least {fewest}, or `None` for no limit."
        )


def _num_tiles(canvas: Sequence[int], *, tile_size: int) -> int:
    return 1 + (canvas[0] // tile_size) * (canvas[1] // tile_size)


def limited_size(
    image_size: Size, *, pinpoints: Sequence[Sequence[int]], tile_size: int, max_tiles: int | None
) -> Size:
    """Size at which a picture costs at most ``max_tiles`` tiles.

    A picture that just fits a canvas keeps all its pixels there, so that no canvas with more tiles is preferred to it
    and everyone who plans from the new size (prompt, model) comes to the same tiles.

    Args:
        image_size: ``(height, width)`` of the upright picture.
        pinpoints: Permitted canvases as ``(height, width)`` in pixels.
        tile_size: Edge of a tile in pixels.
        max_tiles: Limit, thumbnail included; ``None`` sets none.

    Returns:
        ``image_size`` itself if it is within the limit.

    >>> limited_size((2000, 3000), pinpoints=[[384, 768], [768, 768]], tile_size=384, max_tiles=3)
    (384, 576)
    """
    if max_tiles is None or _num_tiles(best_canvas(image_size, pinpoints), tile_size=tile_size) <= max_tiles:
        return image_size
    affordable = [canvas for canvas in pinpoints if _num_tiles(canvas, tile_size=tile_size) <= max_tiles]
    return fit_inside(image_size, best_canvas(image_size, affordable))


def plan_canvas(image_size: Size, *, pinpoints: Sequence[Sequence[int]]) -> CanvasPlan:
    """Choose the canvas of one picture and centre the scaled picture on it.

    Args:
        image_size: ``(height, width)`` of the upright picture.
        pinpoints: Permitted canvases as ``(height, width)`` in pixels.

    Returns:
        Canvas, size of the scaled picture, and its top left corner; odd margins are larger at the bottom and right.

    >>> plan_canvas((170, 600), pinpoints=[[384, 768], [768, 768]])
    CanvasPlan(canvas=(384, 768), resized=(218, 768), top=83, left=0)
    """
    canvas = best_canvas(image_size, pinpoints)
    resized = fit_inside(image_size, canvas)
    return CanvasPlan(canvas, resized, (canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)


def plan_square(image_size: Size, *, tile_size: int) -> CanvasPlan:
    """Centre one picture on a square as wide as its longer side.

    Args:
        image_size: ``(height, width)`` of the upright picture.
        tile_size: Edge of a tile in pixels.

    Returns:
        The square as canvas. The picture keeps its size, unless the square would exceed ``MAX_PADDED_PIXELS``: then it
        is scaled down first, to a square still eight times finer than the tile.

    >>> plan_square((170, 600), tile_size=384)
    CanvasPlan(canvas=(600, 600), resized=(170, 600), top=215, left=0)
    """
    side = max(image_size)
    resized = image_size
    if side * side > MAX_PADDED_PIXELS:
        resized = fit_inside(image_size, (8 * tile_size, 8 * tile_size))
        side = 8 * tile_size
    return CanvasPlan((side, side), resized, (side - resized[0]) // 2, (side - resized[1]) // 2)


def padding_levels(image_mean: float | Sequence[float], *, num_channels: int) -> list[int]:
    """Grey levels of the square a picture is padded to in ``"pad"`` mode: the mean colour, cut to whole levels."""
    return [int(mean * 255) for mean in channel_values(image_mean, num_channels=num_channels, name="image_mean")]


def channel_values(values: float | Sequence[float], *, num_channels: int, name: str) -> list[float]:
    """Spread a per-channel setting over the channels.

    Args:
        values: One number for all channels, or one per channel.
        num_channels: Channels of the pictures.
        name: Name of the setting, for the error message.

    Returns:
        ``num_channels`` numbers.

    Raises:
        ValueError: If the number of values is neither one nor ``num_channels``.
    """
    spread = [float(value) for value in np.atleast_1d(np.asarray(values))]
    if len(spread) == 1:
        spread *= num_channels
    if len(spread) != num_channels:
        raise ValueError(f"`{name}` has {len(spread)} values for pictures of {num_channels} channels.")
    return spread


def check_ready_tile(image_size: Size, *, tile_size: int) -> None:
    """Refuse a picture that cannot be used as a tile when ``do_resize=False``."""
    if tuple(image_size) != (tile_size, tile_size):
        raise ImageInputError(
            f"`do_resize=False` takes pictures as finished tiles of {tile_size} x {tile_size} pixels, but one has "
            f"(height, width) = {tuple(image_size)}. Scale it first, or leave `do_resize` on."
        )
