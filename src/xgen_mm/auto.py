"""Tells transformers' Auto classes about our configuration, models and processors.

Importing torch and the model classes takes seconds, so nothing is imported before it is wanted: `register_on_import`
waits until transformers loads the module of an Auto class and adds our entries then.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "xgenmm"


def register() -> None:
    """Add all entries now. Calling it again changes nothing."""
    for add_entries in _ENTRIES.values():
        add_entries()


def register_on_import() -> None:
    """Add each entry as soon as transformers has loaded the Auto class it belongs to."""
    waiting = dict(_ENTRIES)
    for name in _ENTRIES:
        if name in sys.modules:
            waiting.pop(name)()
    if waiting:
        sys.meta_path.insert(0, _PostImportFinder(waiting))


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .modeling.configuration_xgen_mm import XGenMMConfig

    AutoConfig.register(MODEL_TYPE, XGenMMConfig, exist_ok=True)


def _register_models() -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    from .modeling.configuration_xgen_mm import XGenMMConfig
    from .modeling.modeling_xgen_mm import XGenMMForConditionalGeneration

    _register_config()
    # `AutoModel` gives the class that can generate: that is what `AutoModel.from_pretrained` is used for with these models.
    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        auto_class = getattr(modeling_auto, name, None)
        if auto_class is not None:
            auto_class.register(XGenMMConfig, XGenMMForConditionalGeneration, exist_ok=True)
    # TRL, serving engines and pipelines look classes up by architecture name, not through the Auto classes.
    class_name = XGenMMForConditionalGeneration.__name__
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MODEL_TYPE] = class_name
    setattr(transformers, class_name, XGenMMForConditionalGeneration)


def _register_image_processors() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .modeling.configuration_xgen_mm import XGenMMConfig
    from .processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil
    from .processing.image_processing_xgen_mm import XGenMMImageProcessor

    AutoImageProcessor.register(
        XGenMMConfig,
        image_processor_classes={"torchvision": XGenMMImageProcessor, "pil": XGenMMImageProcessorPil},
        exist_ok=True,
    )


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from .modeling.configuration_xgen_mm import XGenMMConfig
    from .processing.processing_xgen_mm import XGenMMProcessor

    AutoProcessor.register(XGenMMConfig, XGenMMProcessor, exist_ok=True)


_AUTO = "transformers.models.auto."
_ENTRIES: dict[str, Callable[[], None]] = {
    _AUTO + "configuration_auto": _register_config,
    _AUTO + "modeling_auto": _register_models,
    _AUTO + "image_processing_auto": _register_image_processors,
    _AUTO + "processing_auto": _register_processor,
}


class _PostImportFinder(MetaPathFinder):
    """Finds nothing itself; lets the regular finders do it and runs a function after the module was executed."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        add_entries = self.waiting.pop(fullname, None)
        if add_entries is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            add_entries()

        # Set on this one loader object, which belongs to this one module.
        loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
