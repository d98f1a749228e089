"""Image processors with the settings of the v1 release; everything else is as in v1.5."""

from typing import ClassVar

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
from ..processing.image_processing_xgen_mm import XGenMMImageProcessor
from ..processing.image_tiling import XGenMMImageProcessorKwargs

TILE_SIZE = 378
# The host looks for the arguments of a class under its own name.
XGenMMV1ImageProcessorKwargs = XGenMMImageProcessorKwargs
# (rows, cols); the order breaks ties.
_GRIDS = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
_CANVASES = [[rows * TILE_SIZE, cols * TILE_SIZE] for rows, cols in _GRIDS]


class XGenMMV1ImageProcessor(XGenMMImageProcessor):
    """`XGenMMImageProcessor` for v1: tiles of 378 pixels, normalised with CLIP's mean and standard deviation."""

    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar[dict[str, int]] = {"height": TILE_SIZE, "width": TILE_SIZE}
    image_grid_pinpoints: ClassVar[list[list[int]]] = _CANVASES


class XGenMMV1ImageProcessorPil(XGenMMImageProcessorPil):
    """`XGenMMImageProcessorPil` for v1: tiles of 378 pixels, normalised with CLIP's mean and standard deviation."""

    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar[dict[str, int]] = {"height": TILE_SIZE, "width": TILE_SIZE}
    image_grid_pinpoints: ClassVar[list[list[int]]] = _CANVASES
