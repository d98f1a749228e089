"""Reads the processor files of the released checkpoints: image settings, tokens and prompt format.

The released directories hold a `preprocessor_config.json` of the original remote code and a Phi-3 tokenizer without
the picture tokens; the original adds those when it runs. Source: released code of xGen-MM.
"""

import logging
from typing import Any

from transformers.image_utils import PILImageResampling
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .chat_template import RELEASED_SYSTEM_PROMPT, build_chat_template

logger = logging.getLogger(__name__)

RELEASED_IMAGE_PROCESSOR = "Blip3ImageProcessor"
# Added behind the tokenizer's own tokens, in this order; the model's tables end with their rows.
ADDED_TOKENS = ("<image>", "<image placeholder>", "<|endofchunk|>")
PLACEHOLDER_TOKEN = ADDED_TOKENS[1]
# Parts of the names of checkpoints that were tuned on tiled pictures.
TILED_NAMES = ("instruct", "dpo")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


def translate_image_settings(settings: dict[str, Any], *, source: str) -> dict[str, Any]:
    """Translate the settings of the original image processor into ours.

    Whether pictures are tiled follows from the file. Grids are tiled as listed, and so are the five released shapes
    where the file has no such entry. A file that says `grids: null`, as that of the base model does, can only have
    been used without tiles; the exception is a source whose name says that it is an instruct checkpoint.

    Args:
        settings: Content of `preprocessor_config.json`; returned as it is unless the original processor wrote it.
        source: Directory or repository name it came from.

    Returns:
        Arguments of `XGenMMImageProcessor`.

    Raises:
        ValueError: If the file asks for a way of resizing that the released models do not use.
    """
    if settings.get("image_processor_type") != RELEASED_IMAGE_PROCESSOR:
        return settings
    resize_mode, filter_name = settings.get("resize_mode", "squash"), settings.get("interpolation_mode", "bicubic")
    if resize_mode != "squash" or filter_name.upper() not in PILImageResampling.__members__:
        raise ValueError(
            f"`preprocessor_config.json` of {source} has `resize_mode` {resize_mode!r} and `interpolation_mode` "
            f"{filter_name!r}; only squashing with one of Pillow's filters can be read."
        )
    height, width = _size_pair(settings.get("size", 384))
    ours = {name: settings[name] for name in ("do_resize", "image_mean", "image_std") if name in settings}
    ours |= {"size": {"height": height, "width": width}, "resample": PILImageResampling[filter_name.upper()].value}
    grids = settings.get("grids")
    if grids:
        # The released order is (width, height).
        ours["image_grid_pinpoints"] = [[grid_height, grid_width] for grid_width, grid_height in grids]
    else:
        ours["image_grid_pinpoints"] = [
            [rows * height, cols * width] for rows, cols in ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
        ]
    is_untiled = "grids" in settings and not grids and not any(part in source.lower() for part in TILED_NAMES)
    ours["image_aspect_ratio"] = "none" if is_untiled else "anyres"
    if is_untiled:
        logger.info(
            "%s lists no grids: pictures become one tile each, as the released base model reads them. "
            "Pass `image_aspect_ratio='anyres'` for tiles.",
            source,
        )
    return ours


def read_processor_settings(source: str, **kwargs: Any) -> dict[str, Any]:
    """Settings of the processor that the released files leave to the model's configuration.

    Args:
        source: Directory or repository name.
        **kwargs: Arguments of `from_pretrained`; those that say where files come from are used.

    Returns:
        `num_latents` and `tile_grouping`, or nothing if there is no xGen-MM configuration.
    """
    hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    try:
        config = AutoConfig.from_pretrained(source, **hub_arguments, trust_remote_code=False)
    except (OSError, ValueError):
        return {}
    if not hasattr(config, "resampler_config"):
        # A tokenizer or another kind of model lies there.
        return {}
    return {"num_latents": config.tokens_per_group, "tile_grouping": config.tile_grouping}


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the picture tokens behind the tokenizer's own, as the released code does when it starts.

    Args:
        tokenizer: Tokenizer of a released directory; changed in place.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": list(ADDED_TOKENS)}, replace_extra_special_tokens=False)


def released_chat_template(tokenizer: PreTrainedTokenizerBase, *, is_tiled: bool) -> str:
    """Prompt format of a released checkpoint; instruct ones, which tile, were trained with a system prompt."""
    return build_chat_template(
        tokenizer.get_added_vocab(), default_system_prompt=RELEASED_SYSTEM_PROMPT if is_tiled else ""
    )


def drop_placeholders(text: Any) -> Any:
    """Remove the `<image placeholder>` tokens that prompts of the released base model hold.

    There, `<image>` and 127 placeholders mark the slots of one picture; our processor makes the slots itself.

    Args:
        text: One text or a list of texts; anything else is returned as it is.
    """
    if isinstance(text, str):
        return text.replace(PLACEHOLDER_TOKEN, "")
    return [drop_placeholders(sample) for sample in text] if isinstance(text, list | tuple) else text


def _size_pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return size["height"], size["width"]
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
