"""A new, untrained xGen-MM from a pretrained vision tower and a pretrained language model: where pre-training starts.

`plan_assembly` reads configurations, tokenizer and image processor, decides everything and loads no weights;
`assemble` does what the plan says; `Assembly.save` writes a checkpoint directory that appears when it is complete.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import PILImageResampling
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..modeling.assembly import (
    IMAGE_TOKEN,
    AssemblySettings,
    add_image_tokens,
    build_config,
    count_token_rows,
    parse_dtype,
)
from ..modeling.configuration_xgen_mm import XGenMMConfig
from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from ..modeling.parts import PartSource, describe_source, read_text_config, read_vision_config
from ..output_directory import new_directory
from ..processing.image_processing_xgen_mm import XGenMMImageProcessor
from ..processing.processing_xgen_mm import XGenMMProcessor
from .chat_format import choose_chat_format

logger = logging.getLogger(__name__)

__all__ = ["Assembly", "AssemblyPlan", "AssemblySettings", "assemble", "build_from_plan", "plan_assembly"]

# Tokens that are made for padding, in tokenizers that do not say which one to use.
PADDING_TOKENS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
NEW_PADDING_TOKEN = "<pad>"
RESAMPLERS = (PILImageResampling.NEAREST, PILImageResampling.BILINEAR, PILImageResampling.BICUBIC)


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblyPlan:
    """Everything about a new model except its weights.

    Attributes:
        vision: Where the vision tower comes from.
        text: Where the language model comes from.
        config: Configuration of the new model.
        processor: Processor of the new model.
        settings: What is new in it.
        dtype: Precision of the result; `None` is decided by the weights.
        stop_token: Token that ends an answer besides those of the language model's generation settings.
        notes: Decisions a user may want to know of, one sentence each.
    """

    vision: PartSource
    text: PartSource
    config: XGenMMConfig
    processor: XGenMMProcessor
    settings: AssemblySettings
    dtype: torch.dtype | None
    stop_token: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """A new model and its processor.

    Attributes:
        model: Untrained model, in evaluation mode.
        processor: Processor that goes with it.
        plan: What they were built from.
    """

    model: XGenMMForConditionalGeneration
    processor: XGenMMProcessor
    plan: AssemblyPlan = field(repr=False)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a checkpoint that the Auto classes load.

        Args:
            directory: Must not exist yet, or be empty. It appears only when everything is written.

        Raises:
            FileExistsError: If there is something already.
            OSError: If it cannot be written.
        """
        with new_directory(directory) as partial:
            self.model.save_pretrained(partial)
            self.processor.save_pretrained(partial)


def assemble(
    vision: PartSource,
    text: PartSource,
    *,
    settings: AssemblySettings | None = None,
    dtype: str | torch.dtype = "auto",
    tokenizer: Any = None,
    image_processor: Any = None,
    chat_template: str | None = None,
    progress: Callable[[str], None] = logger.info,
) -> Assembly:
    """Build a new model with its processor.

    Args:
        vision: Hub id, directory or loaded model with a vision tower of fixed input size.
        text: Hub id, directory or loaded model, any decoder-only language model.
        settings: Shape of what is new; `None` takes the released shape, resampling tile by tile.
        dtype: Precision of the result; `"auto"` is the narrowest that holds both parts without rounding.
        tokenizer: Hub id, directory or tokenizer; `None` takes that of `text`. Image tokens are added to it.
        image_processor: Hub id, directory or image processor that says how the tower wants its pixels; `None` takes
            that of `vision`.
        chat_template: Template for plain text messages instead of the tokenizer's own; it is extended to pictures.
        progress: Called with one line of text before each slow step.

    Returns:
        Model and processor.

    Raises:
        ValueError: If a part is unsuitable, see the message.
        OSError: If a part cannot be read.
    """
    plan = plan_assembly(
        vision,
        text,
        settings=settings,
        dtype=dtype,
        tokenizer=tokenizer,
        image_processor=image_processor,
        chat_template=chat_template,
    )
    return build_from_plan(plan, progress=progress)


def plan_assembly(
    vision: PartSource,
    text: PartSource,
    *,
    settings: AssemblySettings | None = None,
    dtype: str | torch.dtype = "auto",
    tokenizer: Any = None,
    image_processor: Any = None,
    chat_template: str | None = None,
) -> AssemblyPlan:
    """Decide everything about a new model without loading a weight; see `assemble` for the arguments.

    Raises:
        ValueError: If a part is unsuitable.
        OSError: If a part cannot be read.
    """
    settings = settings or AssemblySettings()
    vision_config, text_config = read_vision_config(vision), read_text_config(text)
    notes: list[str] = []

    tokenizer = _load_tokenizer(text if tokenizer is None else tokenizer)
    image_token_id = add_image_tokens(tokenizer)
    _ensure_padding(tokenizer, notes)
    tokenizer.padding_side = "left"

    num_old_rows = text_config.vocab_size
    has_bias = _has_head_bias(text_config)
    config = build_config(
        vision_config,
        text_config,
        image_token_id=image_token_id,
        num_token_rows=count_token_rows(tokenizer),
        lm_head_bias=has_bias,
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
        settings=settings,
    )
    num_new_rows = config.text_config.vocab_size - num_old_rows
    if num_new_rows:
        notes.append(f"The token tables grow from {num_old_rows} to {num_old_rows + num_new_rows} rows.")
    else:
        notes.append(f"Image tokens take spare rows of the token tables ({IMAGE_TOKEN} is {image_token_id}).")

    chat_format = choose_chat_format(tokenizer, chat_template)
    notes.append(f"Chat template: {chat_format.origin}.")
    tokenizer.chat_template = chat_format.template
    processor = XGenMMProcessor(
        _build_image_processor(vision if image_processor is None else image_processor, config, notes),
        tokenizer,
        # A template per purpose is the host's business; its annotation knows one.
        chat_template=chat_format.template,  # type: ignore[arg-type]
        num_latents=config.tokens_per_group,
        tile_grouping=settings.tile_grouping,
    )
    _check_chat_template(processor, notes)
    return AssemblyPlan(
        vision=vision,
        text=text,
        config=config,
        processor=processor,
        settings=settings,
        dtype=parse_dtype(dtype),
        stop_token=chat_format.stop_token,
        notes=tuple(notes),
    )


def build_from_plan(plan: AssemblyPlan, *, progress: Callable[[str], None] = logger.info) -> Assembly:
    """Load the parts and build the model of a plan.

    Args:
        plan: From `plan_assembly`.
        progress: Called with one line of text before each slow step.

    Returns:
        Model and processor.

    Raises:
        ValueError: If a part is unsuitable.
        OSError: If a part cannot be read.
    """
    progress(f"Loading {describe_source(plan.vision)} and {describe_source(plan.text)} ...")
    settings = plan.settings
    tokenizer = plan.processor.tokenizer
    model = XGenMMForConditionalGeneration.from_parts(
        plan.vision,
        plan.text,
        tokenizer=tokenizer,
        connector=settings.connector,
        num_latents=settings.num_latents,
        resampler_layers=settings.resampler_layers,
        grids=settings.grids,
        tile_grouping=settings.tile_grouping,
        dtype=plan.dtype or "auto",
        seed=settings.seed,
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if plan.stop_token is not None:
        model.generation_config.eos_token_id = _with_stop_id(
            model.generation_config.eos_token_id, tokenizer.convert_tokens_to_ids(plan.stop_token)
        )
    return Assembly(model=model, processor=plan.processor, plan=plan)


def _load_tokenizer(source: Any) -> Any:
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    return AutoTokenizer.from_pretrained(_name_of(source, "tokenizer"), trust_remote_code=False)


def _name_of(source: Any, part: str) -> str:
    """Hub id or directory to look for files next to a model's weights."""
    if not isinstance(source, PreTrainedModel):
        return str(os.fspath(source))
    if not source.config._name_or_path:
        raise ValueError(
            f"The `{type(source).__name__}` that was passed does not say where it was loaded from; pass `{part}=` too."
        )
    return str(source.config._name_or_path)


def _ensure_padding(tokenizer: Any, notes: list[str]) -> None:
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    pad_token = next((token for token in PADDING_TOKENS if token in vocabulary), None)
    if pad_token is None:
        # Ends of answers would vanish from the loss if they were used as padding.
        pad_token = NEW_PADDING_TOKEN
        notes.append(f"The tokenizer has no padding token; {pad_token} was added.")
    else:
        notes.append(f"The tokenizer names no padding token; {pad_token} is used.")
    tokenizer.add_special_tokens({"pad_token": pad_token})


def _has_head_bias(text_config: PreTrainedConfig) -> bool:
    with torch.device("meta"):
        head = AutoModelForCausalLM.from_config(text_config, trust_remote_code=False).get_output_embeddings()
    return getattr(head, "bias", None) is not None


def _build_image_processor(source: Any, config: XGenMMConfig, notes: list[str]) -> XGenMMImageProcessor:
    """Our tiling with the pixel values that the tower was trained on."""
    if isinstance(source, str | os.PathLike | PreTrainedModel):
        name = _name_of(source, "image_processor")
        try:
            source = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        except OSError as error:
            raise ValueError(
                f"`{name}` does not say how its tower wants pixels (no `preprocessor_config.json`). Name a checkpoint "
                "of the same tower that does as `image_processor`."
            ) from error
    resample = PILImageResampling(getattr(source, "resample", None) or PILImageResampling.BICUBIC)
    if resample not in RESAMPLERS:
        notes.append(f"The tower's pictures were scaled with {resample.name}; BICUBIC is the closest filter here.")
        resample = PILImageResampling.BICUBIC
    tile_size = config.tile_size
    return XGenMMImageProcessor(
        size={"height": tile_size, "width": tile_size},
        image_grid_pinpoints=config.image_grid_pinpoints,
        resample=resample,
        do_rescale=source.do_rescale,
        rescale_factor=source.rescale_factor,
        do_normalize=source.do_normalize,
        image_mean=source.image_mean,
        image_std=source.image_std,
    )


def _check_chat_template(processor: XGenMMProcessor, notes: list[str]) -> None:
    """Render one question about a picture; `ValueError` if the picture or the question is lost."""
    content = [{"type": "image"}, {"type": "text", "text": "question"}]
    try:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except TemplateError as error:
        notes.append(f"The chat template refuses a single question ({error}), so it could not be tried out.")
        return
    if prompt.count(IMAGE_TOKEN) != 1 or "question" not in prompt:
        raise ValueError(
            f"The chat template turns a picture and a question into {prompt!r}; expected one {IMAGE_TOKEN} and the "
            "question. Pass a template for plain text messages as `chat_template`."
        )


def _with_stop_id(stop_ids: int | list[int] | None, new_id: int) -> int | list[int]:
    ids = [] if stop_ids is None else [stop_ids] if isinstance(stop_ids, int) else list(stop_ids)
    return ids if new_id in ids else [*ids, new_id]
