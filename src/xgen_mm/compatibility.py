"""Which versions of transformers the package runs on, and which of their private names it needs."""

import logging
import sys
from functools import cache
from importlib import import_module, metadata

logger = logging.getLogger(__name__)

# Major and minor version of the oldest and of the newest transformers that the whole test suite passes on.
OLDEST_TESTED = (5, 19)
NEWEST_TESTED = (5, 24)

# Names of transformers that are no public interface, by the module that has them: the only places where a new version
# can break the package without a deprecation. What each is needed for stands where it is used.
PRIVATE_HOST_NAMES = {
    "transformers": ("_class_to_module",),
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING._mapping",),
    "transformers.models.auto.modeling_auto": (
        "MODEL_MAPPING._model_mapping",
        "MODEL_MAPPING._reverse_config_mapping",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING._model_mapping",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING._model_mapping",
    ),
    "transformers.models.auto.image_processing_auto": ("IMAGE_PROCESSOR_MAPPING._model_mapping", "_resolve_backend"),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING._model_mapping",),
    "transformers.models.auto.tokenization_auto": ("TOKENIZER_MAPPING_NAMES",),
    "transformers.generation": ("GenerationMixin._maybe_prepare_encoder_kwargs_for_generation",),
    "transformers.image_processing_backends": (
        "PilBackend._preprocess",
        "TorchvisionBackend._preprocess",
    ),
    "transformers.image_processing_utils": (
        "BaseImageProcessor._prepare_images_structure",
        "BaseImageProcessor._set_attributes",
        "BaseImageProcessor._standardize_kwargs",
        "BaseImageProcessor._validate_preprocess_kwargs",
    ),
    "transformers.modeling_utils": ("PreTrainedModel._init_weights",),
    "transformers.processing_utils": ("ProcessorMixin._merge_kwargs",),
    "transformers.tokenization_utils_tokenizers": ("TokenizersBackend._get_padding_truncation_strategies",),
    "transformers.trainer": ("Trainer._get_num_items_in_batch", "Trainer._prepare_inputs"),
}


def missing_host_names() -> list[str]:
    """Private names of transformers that the package needs and the installed version lacks; imports torch."""
    missing = []
    for module_name, names in PRIVATE_HOST_NAMES.items():
        try:
            module = import_module(module_name)
        except ImportError:
            missing.append(module_name)
            continue
        for name in names:
            value: object = module
            for part in name.split("."):
                value = getattr(value, part, None)
            if value is None:
                missing.append(f"{module_name}.{name}")
    return missing


def refuse_old_host() -> None:
    """Check the installed transformers before anything of it is used.

    Raises:
        ImportError: If it is older than the oldest version that works.
    """
    version = host_version()
    if _minor(version) < OLDEST_TESTED:
        raise ImportError(
            f"transformers {version} is installed, and xgen-mm needs {_text(OLDEST_TESTED)} or newer: "
            "`pip install --upgrade transformers`."
        )


@cache
def warn_about_new_host() -> None:
    """Say so once if the installed transformers is newer than the newest tested one.

    Raises:
        ImportError: If it lacks names that the package needs.
    """
    version = host_version()
    if _minor(version) <= NEWEST_TESTED:
        return
    missing = missing_host_names()
    remedy = f"`pip install 'transformers<{NEWEST_TESTED[0]}.{NEWEST_TESTED[1] + 1}'`"
    if missing:
        raise ImportError(
            f"transformers {version} lacks names that this version of xgen-mm needs: {', '.join(missing)}. {remedy} "
            "installs the newest one that works, or upgrade xgen-mm."
        )
    logger.warning(
        "transformers %s is newer than %s, the newest version that this version of xgen-mm was tested with. If "
        "something fails: %s.",
        version,
        _text(NEWEST_TESTED),
        remedy,
    )


def host_version() -> str:
    """Version of the installed transformers, without importing it."""
    host = sys.modules.get("transformers")
    return getattr(host, "__version__", None) or metadata.version("transformers")


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
