"""Makes transformers' Auto classes, and everything else that looks classes up by name, find ours.

transformers keeps tables of class *names* and imports a class when it is asked for. Our names are entered into the
same tables, so that `import xgen_mm` costs milliseconds and nothing of ours is imported while transformers itself is
half-way through an import. The tables live in modules that may not be loaded yet; each gets our names right after it
is.
"""

import functools
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .compatibility import NEWEST_TESTED, OLDEST_TESTED, host_version, warn_about_new_host
from .connectors.connector_table import CONNECTORS

PUBLIC_HOMES = {
    "blip3o.configuration_blip3o": ("Blip3oConfig",),
    "blip3o.image_processing_blip3o": ("Blip3oImageProcessor",),
    "blip3o.modeling_blip3o": ("Blip3oForConditionalGeneration",),
    "blip3o.processing_blip3o": ("Blip3oProcessor",),
    "connectors.mlp": ("XGenMMMLPConfig", "XGenMMMLPConnector"),
    "connectors.perceiver": ("XGenMMPerceiverResampler", "XGenMMResamplerConfig"),
    "conversion.presets": ("PRESETS", "preset_config"),
    "errors": ("ConversionError", "ImageInputError", "PlaceholderMismatchError", "PushError", "XGenMMError"),
    "generation.chat_session": ("ChatSession",),
    "modeling.configuration_xgen_mm": ("XGenMMConfig",),
    "modeling.modeling_xgen_mm": ("XGenMMForConditionalGeneration", "XGenMMModel", "XGenMMPreTrainedModel"),
    "processing.image_processing_pil_xgen_mm": ("XGenMMImageProcessorPil",),
    "processing.image_processing_xgen_mm": ("XGenMMImageProcessor",),
    "processing.processing_xgen_mm": ("XGenMMProcessor",),
    "tiny.checkpoint": ("tiny_checkpoint",),
    "v1.configuration_xgen_mm_v1": ("XGenMMV1Config", "XGenMMV1FirstReleaseConfig"),
    "v1.image_processing_xgen_mm_v1": ("XGenMMV1ImageProcessor", "XGenMMV1ImageProcessorPil"),
    "v1.modeling_xgen_mm_v1": ("XGenMMV1ForConditionalGeneration", "XGenMMV1Model"),
}
_HOME_OF = {name: home for home, names in PUBLIC_HOMES.items() for name in names}
# The released files name the original's class; found under that name, ours is used and no remote code is asked for.
_RELEASED_NAMES = {
    "Blip3ImageProcessor": "XGenMMImageProcessor",
    "Blip3ImageProcessorPil": "XGenMMImageProcessorPil",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Names of the classes of one `model_type`.

    Attributes:
        model_type: As in `config.json`.
        config: Configuration class.
        model: Class that can generate.
        base_model: Class without head, if there is one.
        processor: Processor class.
        image_processors: Image processor classes by backend.
        is_xgen_mm: Whether its models are xGen-MM's tower, resampler and language model; the command line and cards
            describe those only.
    """

    model_type: str
    config: str
    model: str
    base_model: str | None
    processor: str
    image_processors: dict[str, str]
    is_xgen_mm: bool = True


FAMILIES = (
    Family(
        model_type="xgenmm",
        config="XGenMMConfig",
        model="XGenMMForConditionalGeneration",
        base_model="XGenMMModel",
        processor="XGenMMProcessor",
        image_processors={"torchvision": "XGenMMImageProcessor", "pil": "XGenMMImageProcessorPil"},
    ),
    Family(
        model_type="xgenmm_v1",
        config="XGenMMV1Config",
        model="XGenMMV1ForConditionalGeneration",
        base_model="XGenMMV1Model",
        processor="XGenMMProcessor",
        image_processors={"torchvision": "XGenMMV1ImageProcessor", "pil": "XGenMMV1ImageProcessorPil"},
    ),
    Family(
        model_type="blip3o",
        config="Blip3oConfig",
        model="Blip3oForConditionalGeneration",
        base_model=None,
        processor="Blip3oProcessor",
        image_processors={"torchvision": "Blip3oImageProcessor", "pil": "Blip3oImageProcessor"},
        is_xgen_mm=False,
    ),
)
# Model types that only files of a release carry; reading one gives the configuration of a family.
_RELEASED_MODEL_TYPES = {
    "blip_3": "XGenMMV1FirstReleaseConfig",
    "blip3o_qwen": "Blip3oConfig",
    "blip3o_qwen_inference": "Blip3oConfig",
}
_MODEL_TYPES = (*(family.model_type for family in FAMILIES), *_RELEASED_MODEL_TYPES)
# Modules to import along with others: reading `XGenMMConfig` may find a file of the v1 release.
_COMPANIONS = {"modeling.configuration_xgen_mm": "v1.configuration_xgen_mm_v1"}

_MODELS = ("modeling.modeling_xgen_mm", "v1.modeling_xgen_mm_v1", "blip3o.modeling_blip3o")
# What is saved with the code that loads it.
_SAVES_CODE = (*_MODELS, "processing.processing_xgen_mm")


def load_public(name: str) -> Any:
    """Import one of the package's public names.

    Raises:
        AttributeError: If there is no such name.
    """
    name = _RELEASED_NAMES.get(name, name)
    if name not in _HOME_OF:
        raise AttributeError(f"module `{__package__}` has no attribute `{name}`")
    warn_about_new_host()
    home = _HOME_OF[name]
    module = import_module(f".{home}", __package__)
    value = getattr(module, name)
    if home in _COMPANIONS:
        import_module(f".{_COMPANIONS[home]}", __package__)
    if home in _MODELS:
        # Checkpoints in the released layout load through the same classes.
        import_module(".conversion.released_loading", __package__).register_released_layouts()
    if home in _SAVES_CODE:
        self_contained = import_module(".self_contained", __package__)
        self_contained.attach(module)
    return value


def register() -> None:
    """Enter our names wherever transformers looks classes up, now or as soon as that place exists."""
    for model_type in (*_MODEL_TYPES, *(connector.model_type for connector in CONNECTORS)):
        alias = f"transformers.models.{model_type}"
        sys.modules.setdefault(alias, _PublicNames(alias))
    for name, enter_names in _ENTRIES.items():
        if name in sys.modules:
            _enter_into(sys.modules[name], enter_names)
    if not any(isinstance(finder, _PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImportFinder())


class _PublicNames(ModuleType):
    """Stands where transformers expects the module of a model; its attributes are our public names."""

    def __getattr__(self, name: str) -> Any:
        return load_public(name)


def _enter_into(module: ModuleType, enter_names: Callable[[ModuleType], None]) -> None:
    try:
        enter_names(module)
    except AttributeError as error:
        raise ImportError(
            f"transformers {host_version()} lacks what xgen-mm registers its models with: {error} "
            f"(`{module.__name__}`). "
            f"Versions {OLDEST_TESTED[0]}.{OLDEST_TESTED[1]} to {NEWEST_TESTED[0]}.{NEWEST_TESTED[1]} have it."
        ) from error


def _enter_top_level(_: ModuleType) -> None:
    # TRL and serving engines ask `transformers` itself for the class that a config names.
    host = sys.modules["transformers"]
    for name in (*_HOME_OF, *_RELEASED_NAMES):
        host._class_to_module.setdefault(name, f"models.{FAMILIES[0].model_type}")


def _enter_configs(module: ModuleType) -> None:
    module.CONFIG_MAPPING._mapping.update({family.model_type: family.config for family in FAMILIES})
    module.CONFIG_MAPPING._mapping.update(_RELEASED_MODEL_TYPES)
    module.CONFIG_MAPPING._mapping.update({connector.model_type: connector.config for connector in CONNECTORS})


def _enter_models(module: ModuleType) -> None:
    # `AutoModel` gives the class that can generate: that is what `AutoModel.from_pretrained` is used for with these
    # models.
    for table in ("MODEL_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING"):
        _enter(getattr(module, table), {family.model_type: family.model for family in FAMILIES})
    _enter(module.MODEL_MAPPING, {connector.model_type: connector.model for connector in CONNECTORS})
    # The host knows a class without a head by its name being in this table. No configuration has these types.
    without_head = {f"{family.model_type}_without_head": family.base_model for family in FAMILIES if family.base_model}
    module.MODEL_MAPPING._model_mapping.update(without_head)


def _enter_image_processors(module: ModuleType) -> None:
    _prefer_fast_image_processors(module)
    _enter(module.IMAGE_PROCESSOR_MAPPING, {family.model_type: family.image_processors for family in FAMILIES})


def _prefer_fast_image_processors(module: ModuleType) -> None:
    """Make the fast image processors the default where torchvision is absent: unlike the host's, ours do not need it.

    The host settles on a backend before it looks at the table of classes, so the table alone cannot say this.
    """
    resolve = module._resolve_backend
    if hasattr(resolve, "__wrapped__"):
        return
    fast_names = {family.image_processors["torchvision"] for family in FAMILIES} | set(_RELEASED_NAMES)

    @functools.wraps(resolve)
    def resolve_backend(backend: str | None, use_fast: bool | None, base_class_name: str | None) -> str:
        if backend is None and use_fast is None and base_class_name in fast_names:
            return "torchvision"
        return str(resolve(backend, use_fast, base_class_name))

    setattr(module, "_resolve_backend", resolve_backend)  # noqa: B010 - mypy knows no such attribute


def _enter_processors(module: ModuleType) -> None:
    _enter(module.PROCESSOR_MAPPING, {family.model_type: family.processor for family in FAMILIES})


def _enter(mapping: Any, names: dict[str, Any]) -> None:
    """Add names by model type to one of the host's lazy mappings from configuration class to class."""
    mapping._model_mapping.update(names)
    # Built when the mapping was created, which may have been before us.
    mapping._reverse_config_mapping.update({entry.config: entry.model_type for entry in (*FAMILIES, *CONNECTORS)})


def _enter_tokenizers(module: ModuleType) -> None:
    # `tokenizer.json` is used as it is. The released files name a class that would build another normaliser and so
    # give other ids; the host treats Phi-3 itself the same way.
    for model_type in _MODEL_TYPES:
        module.TOKENIZER_MAPPING_NAMES.setdefault(model_type, "TokenizersBackend")


_AUTO = "transformers.models.auto."
_ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "transformers": _enter_top_level,
    # Executes `transformers/__init__.py` a second time and replaces the module.
    "transformers.processing_utils": _enter_top_level,
    _AUTO + "configuration_auto": _enter_configs,
    _AUTO + "modeling_auto": _enter_models,
    _AUTO + "image_processing_auto": _enter_image_processors,
    _AUTO + "processing_auto": _enter_processors,
    _AUTO + "tokenization_auto": _enter_tokenizers,
}


class _PostImportFinder(MetaPathFinder):
    """Finds nothing itself; lets the regular finder do it and enters our names after the module was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        enter_names = _ENTRIES.get(fullname)
        if enter_names is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_enter(module: ModuleType) -> None:
            execute(module)
            _enter_into(module, enter_names)

        # Set on this one loader object, which belongs to this one module.
        loader.exec_module = execute_and_enter  # type: ignore[method-assign]
        return spec
