"""xGen-MM (BLIP-3) models for transformers 5.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`, `AutoImageProcessor` and
`AutoProcessor` load xGen-MM checkpoints. The classes below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from .auto import PUBLIC_HOMES, load_public, register
from .compatibility import refuse_old_host

if TYPE_CHECKING:
    from .blip3o.configuration_blip3o import Blip3oConfig
    from .blip3o.image_processing_blip3o import Blip3oImageProcessor
    from .blip3o.modeling_blip3o import Blip3oForConditionalGeneration
    from .blip3o.processing_blip3o import Blip3oProcessor
    from .connectors.mlp import XGenMMMLPConfig, XGenMMMLPConnector
    from .connectors.perceiver import XGenMMPerceiverResampler, XGenMMResamplerConfig
    from .conversion.presets import PRESETS, preset_config
    from .errors import ConversionError, ImageInputError, PlaceholderMismatchError, PushError, XGenMMError
    from .generation.chat_session import ChatSession
    from .modeling.configuration_xgen_mm import XGenMMConfig
    from .modeling.modeling_xgen_mm import XGenMMForConditionalGeneration, XGenMMModel
    from .modeling.pretrained_xgen_mm import XGenMMPreTrainedModel
    from .processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
    from .processing.image_processing_xgen_mm import XGenMMImageProcessor
    from .processing.processing_xgen_mm import XGenMMProcessor
    from .tiny.checkpoint import tiny_checkpoint
    from .v1.configuration_xgen_mm_v1 import XGenMMV1Config
    from .v1.image_processing_xgen_mm_v1 import XGenMMV1ImageProcessor, XGenMMV1ImageProcessorPil
    from .v1.modeling_xgen_mm_v1 import XGenMMV1ForConditionalGeneration, XGenMMV1Model

__version__ = "0.1.0.dev0"

__all__ = [
    "PRESETS",
    "Blip3oConfig",
    "Blip3oForConditionalGeneration",
    "Blip3oImageProcessor",
    "Blip3oProcessor",
    "ChatSession",
    "ConversionError",
    "ImageInputError",
    "PlaceholderMismatchError",
    "PushError",
    "XGenMMConfig",
    "XGenMMError",
    "XGenMMForConditionalGeneration",
    "XGenMMImageProcessor",
    "XGenMMImageProcessorPil",
    "XGenMMMLPConfig",
    "XGenMMMLPConnector",
    "XGenMMModel",
    "XGenMMPerceiverResampler",
    "XGenMMPreTrainedModel",
    "XGenMMProcessor",
    "XGenMMResamplerConfig",
    "XGenMMV1Config",
    "XGenMMV1ForConditionalGeneration",
    "XGenMMV1ImageProcessor",
    "XGenMMV1ImageProcessorPil",
    "XGenMMV1Model",
    "__version__",
    "preset_config",
    "tiny_checkpoint",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    return load_public(name)


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *(name for names in PUBLIC_HOMES.values() for name in names)})


refuse_old_host()
register()
