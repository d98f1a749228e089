"""What both models tell the host, and how checkpoints are read and written."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from ..errors import ConversionError
from ..weight_files import check_weight_files
from .configuration_xgen_mm import XGenMMConfig
from .host import CACHE_NAME
from .picture_generation import gather_weights_for_pictures
from .released_config import (
    RELEASED_HEAD,
    UNUSED_RELEASED_WEIGHTS,
    complete_generation_config,
    was_read_from_released_layout,
)

logger = logging.getLogger(__name__)


class XGenMMPreTrainedModel(PreTrainedModel):
    """What both models tell the host about themselves."""

    config: XGenMMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [UNUSED_RELEASED_WEIGHTS]
    # The host writes a model back as it was read; ours is always written in our own layout.
    _weight_conversions: list[Any] = []
    # Set by the package: writes the code that a checkpoint needs where the package is missing, and returns `auto_map`.
    code_writer: Callable[[Path, Any], dict[str, str]] | None = None
    # Entered while a checkpoint is read: `conversion.released_loading` makes the names of released files known there.
    _reading: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(self, config: XGenMMConfig, *args: Any, **kwargs: Any) -> None:
        """Refuse the configuration of another architecture; arguments as in the host's method."""
        architecture = self.config_class.architecture
        # Read from a file, a configuration may carry the type of the file.
        known_types = (self.config_class.model_type, type(config).model_type, architecture)
        if getattr(config, "architecture", None) != architecture or config.model_type not in known_types:
            raise ValueError(
                f"`{type(self).__name__}` takes a configuration of type {self.config_class.model_type!r}, not "
                f"{config.model_type!r}. `AutoModelForImageTextToText` finds the class that belongs to a checkpoint."
            )
        super().__init__(config, *args, **kwargs)
        # How many patches are left out differs from image to image, and so do shapes.
        self._can_compile_fullgraph = type(self)._can_compile_fullgraph and not config.drop_padded_patches

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint in our layout, or the unmodified files of a released one.

        Arguments are those of the host's method. A model read from released files is saved in our layout, and ends its
        answers at Phi-3's `<|end|>`.

        Raises:
            ConversionError: If released files lack weights of this architecture or hold others (for a checkpoint in
                our layout, the host only warns about either); if the files of a directory are damaged, or its index
                points outside it.
        """
        check_directory(*args[:1], **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        use_cache = kwargs.pop("use_cache", None)
        with cls._reading():
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if was_read_from_released_layout(model._weight_conversions or ()):
            model._check_released_weights(info)
            model._weight_conversions = []
            if model.can_generate() and kwargs.get("generation_config") is None:
                complete_generation_config(model.generation_config, tokenizer_length=model.config.image_token_id)
            logger.warning(
                "Read a checkpoint in the released layout; weights that match %s are never used and were left out. "
                "`xgen-mm convert` writes a checkpoint that loads as it is.",
                cls._keys_to_ignore_on_load_unexpected,
            )
        if use_cache is not None:
            model.config.use_cache = use_cache
        model._set_generation_cache()
        gather_weights_for_pictures(model)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        with_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save the model in our layout, with the code that loads it where this package is missing.

        Args:
            save_directory: Where to save.
            is_main_process: Whether this process writes what all processes share.
            *args: Further arguments of the host's method.
            with_code: Whether to write the code; a checkpoint without it loads where `xgen_mm` is imported.
            **kwargs: Further arguments of the host's method.
        """
        if self.code_writer is None:
            # This is a copy of the code itself; the host copies it again.
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
            return
        # It belongs to the files: with them it is written, without them it would point nowhere.
        vars(self.config).pop("auto_map", None)
        # Adapters are saved without a configuration, and without the model that the code is for.
        is_adapter = getattr(self, "_hf_peft_config_loaded", False)
        if with_code and is_main_process and not is_adapter and not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            auto_map = self.code_writer(Path(save_directory), self)
            if auto_map:
                self.config.auto_map = auto_map
        use_cache = self.config.use_cache
        if self.can_generate() and self.generation_config.use_cache != use_cache:
            # The host's Trainer turns the cache off for its own time; a saved model would be slow for good.
            self.config.use_cache = None
        try:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        finally:
            vars(self.config).pop("auto_map", None)
            self.config.use_cache = use_cache

    def _set_generation_cache(self) -> None:
        """Let `generate` keep a cache or none as the configuration says; the host does so for new models alone."""
        if not self.can_generate():
            return
        use_cache, generation_config = self.config.use_cache, self.generation_config
        is_open = generation_config.use_cache is None or generation_config._from_model_config
        if use_cache is None and is_open and getattr(self.config.text_config, "use_cache", None) is False:
            use_cache = False
        if use_cache is not None:
            generation_config.use_cache = use_cache

    def _check_released_weights(self, info: dict[str, Any]) -> None:
        missing, unknown = (sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys"))
        if not self.can_generate():
            unknown = [name for name in unknown if not name.startswith(RELEASED_HEAD)]
        problems = ((missing, "lacks weights for"), (unknown, "holds weights that have no place:"))
        found = [f"{what} {', '.join(names)}" for names, what in problems if names]
        if found:
            raise ConversionError(
                f"The checkpoint is in the released layout but does not fit `{type(self).__name__}`: it "
                f"{'; it '.join(found)}. Download it again; if it is complete, its architecture is another one."
            )


def check_directory(
    pretrained_model_name_or_path: Any = None,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    gguf_file: str | None = None,
    **_: Any,
) -> None:
    """Check the files that `from_pretrained` is about to read from a directory; the Hub's own are checked there."""
    is_directory = pretrained_model_name_or_path is not None and os.path.isdir(pretrained_model_name_or_path)
    if is_directory and use_safetensors is not False and gguf_file is None:
        check_weight_files(Path(pretrained_model_name_or_path, subfolder or ""), variant=variant)
