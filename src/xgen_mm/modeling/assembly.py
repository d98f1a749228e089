"""Puts a new, untrained model together from a pretrained vision tower and a pretrained language model.

Every weight of the parts is taken over as it is. What is new: the resampler, and rows of the token tables for tokens
that the language model did not have.
"""

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..anyres import Size
from ..connectors.connector_table import find_connector
from .configuration_xgen_mm import RELEASED_GRIDS, XGenMMConfig
from .part_weights import assemble_model, check_assembly
from .parts import (
    PartSource,
    is_tied,
    load_language_model,
    load_vision_tower,
    read_text_config,
    read_vision_config,
)

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
IMAGE_PLACEHOLDER_TOKEN = "<image placeholder>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"
# In the order in which the released code adds them to its tokenizer.
IMAGE_TOKENS = (IMAGE_TOKEN, IMAGE_PLACEHOLDER_TOKEN, END_OF_CHUNK_TOKEN)
DEFAULT_ATTENTION_HEADS = 16
TILE_GROUPINGS = ("tile", "raster_chunks", "image")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblySettings:
    """What a new model has besides its two pretrained parts.

    Attributes:
        connector: What stands between the parts: "perceiver", or "mlp" with one image token per patch.
        num_latents: Image tokens per tile of a perceiver; `None` is 128.
        resampler_layers: Layers of the connector; `None` is 6 for a perceiver and 2 for an MLP.
        grids: Permitted canvases as (rows, cols) of tiles; order breaks ties.
        tile_grouping: As in `XGenMMConfig`. New models read tile by tile; raster chunks, which mix the rows of
            neighbouring tiles, are what released checkpoints were trained with.
        seed: Seed of the resampler's weights.
    """

    connector: str = "perceiver"
    num_latents: int | None = None
    resampler_layers: int | None = None
    grids: Sequence[Size] = RELEASED_GRIDS
    tile_grouping: str = "tile"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no model can be built with."""
        for field in ("num_latents", "resampler_layers"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"`{field}` is {value}; give at least 1.")
        find_connector(self.connector)
        if self.connector != "perceiver" and self.num_latents is not None:
            raise ValueError(
                f"`num_latents` is {self.num_latents}, but only a perceiver has latents; leave it out for the "
                f"connector {self.connector!r}."
            )
        if not self.grids or any(len(grid) != 2 or min(grid) < 1 for grid in self.grids):
            raise ValueError(f"`grids` is {self.grids}; list (rows, cols) of at least 1 tile each.")
        if self.tile_grouping not in TILE_GROUPINGS:
            raise ValueError(
                f"`tile_grouping` is {self.tile_grouping!r}; expected one of {', '.join(TILE_GROUPINGS)}."
            )


def model_from_parts(
    model_class: Any,
    vision: PartSource,
    text: PartSource,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype = "auto",
    settings: AssemblySettings | None = None,
) -> Any:
    """Build a new model; see `XGenMMForConditionalGeneration.from_parts` for the arguments.

    Args:
        model_class: Class of the result.
        vision: Vision tower.
        text: Language model.
        tokenizer: Tokenizer of the language model, changed in place; `None` as described there.
        dtype: Precision of the result.
        settings: What is new; `None` takes the defaults.

    Raises:
        ValueError: If a part is unsuitable.
        OSError: If a part cannot be read.
    """
    settings = settings or AssemblySettings()
    new_dtype = parse_dtype(dtype)
    # Both configurations are checked before anything large is loaded.
    vision_config, text_config = read_vision_config(vision), read_text_config(text)
    if tokenizer is None and not isinstance(text, PreTrainedModel):
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
    language_model = load_language_model(text, dtype=new_dtype or "auto")
    vision_tower = load_vision_tower(vision, dtype=new_dtype or "auto")
    head = language_model.get_output_embeddings()
    num_rows = head.weight.shape[0]
    if tokenizer is None:
        image_token_id, num_token_rows = num_rows, num_rows + len(IMAGE_TOKENS)
    else:
        image_token_id = add_image_tokens(tokenizer)
        num_token_rows = max(num_rows, count_token_rows(tokenizer))
    config = build_config(
        vision_config,
        text_config,
        image_token_id=image_token_id,
        num_token_rows=num_token_rows,
        lm_head_bias=head.bias is not None,
        tie_word_embeddings=is_tied(language_model),
        settings=settings,
    )
    model = assemble_model(
        model_class,
        config,
        vision_tower=vision_tower,
        language_model=language_model,
        is_vision_copied=isinstance(vision, PreTrainedModel),
        is_text_copied=isinstance(text, PreTrainedModel),
        dtype=new_dtype,
        seed=settings.seed,
    )
    model.generation_config = build_generation_config(
        language_model.generation_config, suppressed=[config.image_token_id]
    )
    check_assembly(model, language_model=language_model)
    return model


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Torch's name for a precision; `"auto"` is `None`.

    Raises:
        ValueError: If it is no floating-point precision.
    """
    parsed = None if dtype == "auto" else getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if parsed is None or (isinstance(parsed, torch.dtype) and parsed.is_floating_point):
        return parsed
    raise ValueError(f"`dtype` is {dtype!r}; expected `auto`, `float32`, `bfloat16` or `float16`.")


def add_image_tokens(tokenizer: Any) -> int:
    """Give a tokenizer the tokens of a new model, where it does not have them yet.

    Args:
        tokenizer: Any tokenizer of the host; changed in place.

    Returns:
        Id of `<image>`.

    Raises:
        ValueError: If the tokenizer does not keep `<image>` in one piece.
    """
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in IMAGE_TOKENS], special_tokens=True
    )
    image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    found = tokenizer(f"a{IMAGE_TOKEN}b", add_special_tokens=False)["input_ids"].count(image_token_id)
    if found != 1:
        raise ValueError(
            f"The tokenizer reads `{IMAGE_TOKEN}` inside a text as {found} image tokens instead of one. A tokenizer "
            "that cannot keep an added token in one piece is of no use here; take another language model."
        )
    return image_token_id


def count_token_rows(tokenizer: Any) -> int:
    """Rows that the token tables need: one more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def build_config(
    vision_config: PreTrainedConfig,
    text_config: PreTrainedConfig,
    *,
    image_token_id: int,
    num_token_rows: int,
    lm_head_bias: bool,
    tie_word_embeddings: bool,
    settings: AssemblySettings,
) -> XGenMMConfig:
    """Configuration of a new model.

    Args:
        vision_config: Configuration of the tower, from `read_vision_config`.
        text_config: Configuration of the language model, from `read_text_config`; changed in place.
        image_token_id: Id of `<image>`.
        num_token_rows: Rows that the tokenizer needs; spare rows of the language model are kept.
        lm_head_bias: Whether the language model's output layer has a bias.
        tie_word_embeddings: Whether that layer is the embedding table.
        settings: What is new.

    Returns:
        A configuration whose perceiver has the tower's width and number of heads, and otherwise the released shape.
    """
    text_config.vocab_size = max(text_config.vocab_size, num_token_rows)
    text_config.tie_word_embeddings = tie_word_embeddings
    tile_size = vision_config.image_size
    return XGenMMConfig(
        vision_config=vision_config,
        text_config=text_config,
        resampler_config=_connector_fields(vision_config, settings),
        image_token_id=image_token_id,
        image_grid_pinpoints=[[rows * tile_size, cols * tile_size] for rows, cols in settings.grids],
        tile_grouping=settings.tile_grouping,
        lm_head_bias=lm_head_bias,
        tie_word_embeddings=tie_word_embeddings,
    )


def _connector_fields(vision_config: PreTrainedConfig, settings: AssemblySettings) -> dict[str, Any]:
    fields: dict[str, Any] = {"num_latents": settings.num_latents, "num_hidden_layers": settings.resampler_layers}
    if settings.connector == "perceiver":
        num_heads = getattr(vision_config, "num_attention_heads", None)
        # Sixteen of 96 for SigLIP so400m, as released.
        fields["num_attention_heads"] = num_heads if isinstance(num_heads, int) else DEFAULT_ATTENTION_HEADS
    given = {name: value for name, value in fields.items() if value is not None}
    return {"model_type": find_connector(settings.connector).model_type, **given}


def build_generation_config(source: GenerationConfig | None, *, suppressed: Iterable[int]) -> GenerationConfig:
    """Generation settings of the language model, with image tokens kept out of answers.

    Args:
        source: The language model's settings; they are not changed.
        suppressed: Ids that are never generated.

    Returns:
        Settings that can be saved; those that contradict one another are left out with a warning.
    """
    generation_config = copy.deepcopy(source or GenerationConfig())
    generation_config._from_model_config = False
    generation_config.suppress_tokens = sorted({*(generation_config.suppress_tokens or ()), *suppressed})
    stop_ids = generation_config.eos_token_id
    if generation_config.pad_token_id is None and stop_ids is not None:
        generation_config.pad_token_id = stop_ids[0] if isinstance(stop_ids, (list, tuple)) else stop_ids
    try:
        generation_config.validate(strict=True)
    except ValueError as error:
        logger.warning("The language model's generation settings contradict one another and are not kept: %s", error)
        kept = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens")
        generation_config = GenerationConfig(**{name: getattr(generation_config, name) for name in kept})
    return generation_config
