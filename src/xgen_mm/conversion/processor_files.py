"""Writes tokenizer, processor and chat template of a converted checkpoint."""

import logging
from pathlib import Path

from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from ..errors import ConversionError
from ..modeling.configuration_xgen_mm import XGenMMConfig
from ..processing.processing_xgen_mm import XGenMMProcessor
from ..processing.released_processor import ADDED_TOKENS, complete_tokenizer, released_chat_template

logger = logging.getLogger(__name__)

TOKENIZER_NAME = "tokenizer.json"
IMAGE_SETTINGS_NAME = "preprocessor_config.json"


def write_processor(source: Path | None, destination: Path, *, config: XGenMMConfig, tokenizer: Path | None) -> bool:
    """Write the processor of a checkpoint, completed as the released code does at run time.

    Args:
        source: Released directory, if the checkpoint is one.
        destination: Where to write.
        config: Configuration of the model.
        tokenizer: Directory of the tokenizer; `None` takes the one in `source`.

    Returns:
        Whether there was a tokenizer; without one nothing is written, and that is logged.

    Raises:
        ConversionError: If the tokenizer does not fit the model.
    """
    home = tokenizer or source
    if home is None or not (home / TOKENIZER_NAME).is_file():
        if tokenizer is not None:
            raise ConversionError(f"{tokenizer} has no {TOKENIZER_NAME}; give a directory with a fast tokenizer.")
        logger.warning("No %s found: the destination gets weights only. Pass `--tokenizer DIR`.", TOKENIZER_NAME)
        return False
    # `tokenizer.json` is read as it is; the class that Phi-3 directories name would normalise texts differently.
    text_tokenizer = PreTrainedTokenizerFast.from_pretrained(home, local_files_only=True, trust_remote_code=False)
    complete_tokenizer(text_tokenizer)
    _check_ids(text_tokenizer, config)

    image_processor = _image_processor(source, config)
    template = released_chat_template(text_tokenizer, is_tiled=image_processor.image_aspect_ratio == "anyres")
    text_tokenizer.chat_template = template
    processor = XGenMMProcessor(
        image_processor,
        text_tokenizer,
        chat_template=template,
        num_latents=config.tokens_per_group,
        tile_grouping=config.tile_grouping,
    )
    processor.save_pretrained(destination, with_code=False)
    return True


def _image_processor(source: Path | None, config: XGenMMConfig) -> BaseImageProcessor:
    if source is not None and (source / IMAGE_SETTINGS_NAME).is_file():
        return AutoImageProcessor.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    return IMAGE_PROCESSOR_MAPPING[type(config)]["pil"](
        size={"height": config.tile_size, "width": config.tile_size},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )


def _check_ids(tokenizer: PreTrainedTokenizerFast, config: XGenMMConfig) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    expected = list(range(config.image_token_id, config.image_token_id + len(ADDED_TOKENS)))
    if ids != expected:
        raise ConversionError(
            f"The tokenizer gives {', '.join(ADDED_TOKENS)} the ids {ids}, but the model has them at {expected}. "
            "It is not the tokenizer this checkpoint was made with."
        )
