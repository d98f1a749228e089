"""Converts checkpoints of the BLIP3-o releases into our layout; `restore_checkpoint.py` has the way back."""

import json
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig

from ..blip3o.configuration_blip3o import Blip3oConfig, Blip3oFeatureTowerConfig
from ..blip3o.modeling_blip3o import Blip3oForConditionalGeneration
from ..blip3o.processing_blip3o import Blip3oProcessor
from ..checkpoint_config import BLIP3O_MODEL_TYPES, CONFIG_NAME, check_model_type
from ..errors import ConversionError
from ..weight_files import INDEX_NAME, SINGLE_NAME
from .blip3o_rules import BLIP3O, BLIP3O_MARK, RELEASED_TOWER
from .convert_checkpoint import ConversionOptions, ConversionReport, write_converted
from .inventory import Inventory
from .source_checkpoint import SourceCheckpoint
from .staging import check_destination
from .tensor_files import list_directory

logger = logging.getLogger(__name__)

OUTPUT_LAYER = "language_model.lm_head.weight"
TOKENIZER_NAME, IMAGE_SETTINGS_NAME = "tokenizer_config.json", "preprocessor_config.json"
GENERATION_NAME = "generation_config.json"


def is_blip3o(source: Path) -> bool:
    """Whether a directory holds weights with the names of a BLIP3-o release."""
    has_weights = source.is_dir() and any((source / name).is_file() for name in (INDEX_NAME, SINGLE_NAME))
    return has_weights and BLIP3O_MARK in list_directory(source)


def convert_blip3o(source: Path, destination: Path, *, options: ConversionOptions | None = None) -> ConversionReport:
    """Convert a released BLIP3-o checkpoint into our layout, as `convert_checkpoint` does for xGen-MM.

    The feature tower comes along if the files hold it; tokenizer and processor are written if the directory has them.

    Args:
        source: Directory of the release.
        destination: Directory to create.
        options: See `ConversionOptions`; `vision_tower` has no meaning here. The sizes of the diffusion transformer
            and of the feature tower are not in a released `config.json`; where they are not the released ones,
            `config` names a file in our layout.

    Returns:
        What was written.

    Raises:
        ConversionError: If the source does not fit its layout or the destination is taken.
    """
    options = options or ConversionOptions()
    check_destination(destination)
    checkpoint = SourceCheckpoint(source, list_directory(source), prefix="", rules=BLIP3O)
    config = _read_config(source if options.config is None else options.config)
    if any(name.startswith(RELEASED_TOWER) for name in checkpoint.tensors):
        config.feature_config = config.feature_config or Blip3oFeatureTowerConfig()
    else:
        config.feature_config = None
    config = Blip3oConfig.from_dict(config.to_dict())
    inventory = build_blip3o_inventory(config, checkpoint.tensors)
    inventory.check(checkpoint.tensors, prefix="", hint="If its sizes are not the released ones, pass `--config`.")

    def write_rest(directory: Path) -> None:
        _write_processor(options.tokenizer or source, source, directory, config=config)
        if (source / GENERATION_NAME).is_file():
            GenerationConfig.from_pretrained(source, local_files_only=True).save_pretrained(directory)

    return write_converted(
        checkpoint,
        destination,
        config=config,
        inventory=inventory,
        options=replace(options, config=None),
        write_rest=write_rest,
    )


def build_blip3o_inventory(config: Blip3oConfig, stored: Collection[str]) -> Inventory:
    """Derive the inventory of a configuration; no memory is taken for weights.

    Args:
        config: Sizes of the model.
        stored: Names that the checkpoint holds, in either layout: where the output layer shares the token table, it
            may be stored or not.

    Raises:
        ConversionError: If a weight of the model has no rule.
    """
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(config)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if OUTPUT_LAYER in model.all_tied_weights_keys and not {OUTPUT_LAYER, "lm_head.weight"} & set(stored):
        del ours[OUTPUT_LAYER]
    copies = {name: BLIP3O.row_copies(name, num_rows=shape[0], first_added_row=0) for name, shape in ours.items()}
    missing = [name for name, found in copies.items() if found is None]
    if missing:
        raise ConversionError(f"No key rule leads to {', '.join(missing)}; the releases have no such part.")
    return Inventory(BLIP3O, ours, {name: found for name, found in copies.items() if found is not None}, {})


def _read_config(path: Path) -> Blip3oConfig:
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; name the model's configuration with `--config`.")
    check_model_type(path, known=BLIP3O_MODEL_TYPES)
    try:
        config: Blip3oConfig = Blip3oConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as a configuration: {error}") from error
    return config


def _write_processor(home: Path, source: Path, destination: Path, *, config: Blip3oConfig) -> None:
    if not (home / TOKENIZER_NAME).is_file():
        logger.warning("No %s found: the destination gets no processor. Pass `--tokenizer DIR`.", TOKENIZER_NAME)
        return
    tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False)
    image_processor = None
    if (source / IMAGE_SETTINGS_NAME).is_file():
        image_processor = AutoImageProcessor.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    settings = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8")) if source.is_dir() else {}
    processor = Blip3oProcessor(
        image_processor,
        tokenizer,
        num_queries=config.num_queries,
        max_prompt_length=settings.get("tokenizer_model_max_length") or 512,
    )
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (processor.image_start_token, processor.query_token)]
    if ids != [config.image_start_token_id, config.query_token_id]:
        raise ConversionError(
            f"The tokenizer gives `{processor.image_start_token}` and `{processor.query_token}` the ids {ids}, but "
            f"the model has them at {[config.image_start_token_id, config.query_token_id]}. It is not its tokenizer."
        )
    processor.save_pretrained(destination)
