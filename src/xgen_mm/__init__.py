"""xGen-MM (BLIP-3) models for transformers 5.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`, `AutoImageProcessor` and
`AutoProcessor` load xGen-MM checkpoints. The classes below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .auto import register_on_import

if TYPE_CHECKING:
    from .errors import ImageInputError, PlaceholderMismatchError, XGenMMError
    from .modeling.configuration_xgen_mm import XGenMMConfig, XGenMMResamplerConfig
    from .modeling.modeling_xgen_mm import XGenMMForConditionalGeneration, XGenMMModel, XGenMMPreTrainedModel
    from .modeling.resampler import XGenMMPerceiverResampler
    from .processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
    from .processing.image_processing_xgen_mm import XGenMMImageProcessor
    from .processing.processing_xgen_mm import XGenMMProcessor
    from .tiny.checkpoint import tiny_checkpoint

__version__ = "0.1.0.dev0"

_HOMES = {
    "errors": ("ImageInputError", "PlaceholderMismatchError", "XGenMMError"),
    "modeling.configuration_xgen_mm": ("XGenMMConfig", "XGenMMResamplerConfig"),
    "modeling.modeling_xgen_mm": ("XGenMMForConditionalGeneration", "XGenMMModel", "XGenMMPreTrainedModel"),
    "modeling.resampler": ("XGenMMPerceiverResampler",),
    "processing.image_processing_pil_xgen_mm": ("XGenMMImageProcessorPil",),
    "processing.image_processing_xgen_mm": ("XGenMMImageProcessor",),
    "processing.processing_xgen_mm": ("XGenMMProcessor",),
    "tiny.checkpoint": ("tiny_checkpoint",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ImageInputError",
    "PlaceholderMismatchError",
    "XGenMMConfig",
    "XGenMMError",
    "XGenMMForConditionalGeneration",
    "XGenMMImageProcessor",
    "XGenMMImageProcessorPil",
    "XGenMMModel",
    "XGenMMPerceiverResampler",
    "XGenMMPreTrainedModel",
    "XGenMMProcessor",
    "XGenMMResamplerConfig",
    "__version__",
    "tiny_checkpoint",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted(__all__)


register_on_import()
