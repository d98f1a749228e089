"""xGen-MM (BLIP-3) models: vision tower, perceiver resampler and language model."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import AutoModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..errors import ConversionError, PlaceholderMismatchError
from ..weight_files import check_weight_files
from .configuration_xgen_mm import RELEASED_GRIDS, XGenMMConfig
from .picture_generation import PictureGenerationMixin
from .released_config import (
    RELEASED_HEAD,
    UNUSED_RELEASED_WEIGHTS,
    complete_generation_config,
    was_read_from_released_layout,
)
from .resampler import XGenMMPerceiverResampler
from .tile_layout import TileLayout, anyres_layout, single_tile_layout

logger = logging.getLogger(__name__)

# Feature values (tiles x cells x width) per tower call when the configuration leaves it open. Beyond a few 384-pixel
# tiles a CPU loses cache locality; an accelerator wants one large call, bounded so that hundreds of tiles do not
# exhaust it.
CPU_VALUES_PER_CALL = 4 * 729 * 1152
ACCELERATOR_VALUES_PER_CALL = 128 * 729 * 1152


@dataclass
class XGenMMModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `XGenMMModel`.

    Attributes:
        image_hidden_states: Image tokens of all pictures, shape (image_tokens, hidden_size), if there were pictures.
    """

    image_hidden_states: torch.Tensor | None = None


@dataclass
class XGenMMCausalLMOutputWithPast(ModelOutput):
    """Output of `XGenMMForConditionalGeneration`.

    Attributes:
        loss: Next-token loss, a scalar, if `labels` were given.
        logits: Scores, shape (batch, kept positions, vocab_size).
        past_key_values: Cache of the language model.
        hidden_states: Hidden states of the language model, if asked for.
        attentions: Attention weights of the language model, if asked for.
        image_hidden_states: Image tokens of all pictures, shape (image_tokens, hidden_size), if there were pictures.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class XGenMMPreTrainedModel(PreTrainedModel):
    """What both models tell the host about themselves."""

    config: XGenMMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["XGenMMResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
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
        if config.model_type != self.config_class.model_type:
            raise ValueError(
                f"`{type(self).__name__}` takes a configuration of type {self.config_class.model_type!r}, not "
                f"{config.model_type!r}. `AutoModelForImageTextToText` finds the class that belongs to a checkpoint."
            )
        super().__init__(config, *args, **kwargs)

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
        _check_directory(*args[:1], **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
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
        if with_code and is_main_process and not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            self.config.auto_map = self.code_writer(Path(save_directory), self)
        try:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        finally:
            vars(self.config).pop("auto_map", None)

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


class XGenMMModel(XGenMMPreTrainedModel):
    """Vision tower, resampler and language model without a language-modelling head.

    A picture arrives as a thumbnail and the tiles of its canvas; every tile becomes `num_latents` image tokens, which
    take the places of the `<image>` placeholders in the prompt. The sequence length never changes inside the model.

    Source: xGen-MM technical report (arXiv:2408.08872), model architecture.
    """

    def __init__(self, config: XGenMMConfig) -> None:
        """Build the three parts from their sub-configurations."""
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.resampler = XGenMMPerceiverResampler._from_config(config.resampler_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures into image tokens.

        Args:
            pixel_values: Tile pixels, shape (num_images, max_tiles, 3, S, S), thumbnail first, normalised; rows with
                fewer tiles end in filler, which is never encoded. Shape (tiles, 3, S, S) holds the real tiles of all
                pictures.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2); `None` means one tile each.
            **kwargs: Passed on to the vision tower and the resampler.

        Returns:
            `last_hidden_state`: tower features of all real tiles, shape (tiles, cells, vision width);
            `pooler_output`: a list with one (image_tokens, hidden_size) tensor per picture.

        Raises:
            ValueError: If tiles and sizes do not belong together.
        """
        layout = self._layout(pixel_values, image_sizes)
        tiles = _real_tiles(pixel_values, layout.num_tiles)
        kwargs.pop("return_dict", None)
        vision_outputs = self._encode_tiles(tiles, **kwargs)
        vision_outputs.pooler_output = self._image_tokens(vision_outputs.last_hidden_state, layout, **kwargs)
        return vision_outputs

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor,
    ) -> torch.BoolTensor:
        """Find the placeholders of image tokens and check that they are as many as the features.

        Args:
            input_ids: Token ids, shape (batch, sequence); `None` finds placeholders by their embedding.
            inputs_embeds: Embeddings, shape (batch, sequence, hidden_size).
            image_features: Image tokens, shape (image_tokens, hidden_size).

        Returns:
            `True` at placeholders, shape (batch, sequence, 1).

        Raises:
            PlaceholderMismatchError: If there are more or fewer placeholders than features.
        """
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = (input_ids == self.config.image_token_id).to(inputs_embeds.device)
        num_slots = mask.sum()
        torch_compilable_check(
            num_slots == image_features.shape[0],
            lambda: (
                f"Image features and image tokens do not match, tokens: {int(num_slots)}, "
                f"features: {image_features.shape[0]}. The prompt needs one image token per feature: build it with "
                "the processor of this checkpoint, and if it was truncated, raise `max_length` or set it to `None`."
            ),
            error_type=PlaceholderMismatchError,
        )
        return mask.unsqueeze(-1)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XGenMMModelOutputWithPast:
        """Run the language model over text and image tokens.

        Args:
            input_ids: Token ids, shape (batch, sequence), one `image_token_id` per image token.
            pixel_values: Tile pixels as in `get_image_features`; `None` for text alone.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2).
            attention_mask: Shape (batch, sequence), 1 on real tokens.
            position_ids: Shape (batch, sequence).
            past_key_values: Cache of earlier positions.
            inputs_embeds: Embeddings instead of `input_ids`, shape (batch, sequence, hidden_size).
            use_cache: Whether to return a cache.
            mm_encoder_outputs: `{"image": output of get_image_features}` instead of `pixel_values`. Without a
                `pooler_output`, its `last_hidden_state` goes through the resampler first, which needs `image_sizes`.
            **kwargs: Passed on to the language model.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds`, or both forms of images, are given.
            PlaceholderMismatchError: If image tokens and image features differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("Give `pixel_values` or `mm_encoder_outputs`, not both: one holds what the other yields.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_outputs = (mm_encoder_outputs or {}).get("image")
        if image_outputs is None and pixel_values is not None and pixel_values.shape[0] > 0:
            image_outputs = self.get_image_features(pixel_values, image_sizes, return_dict=True)
        image_features = None
        if image_outputs is not None:
            image_tokens = image_outputs.pooler_output
            if image_tokens is None:
                features = image_outputs.last_hidden_state
                # (tiles, cells, width) has one row per tile, as flat pixels have.
                image_tokens = self._image_tokens(features, self._layout(features.unsqueeze(-1), image_sizes))
            image_features = torch.cat(list(image_tokens)).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return XGenMMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )

    def _layout(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None) -> TileLayout:
        if pixel_values.dim() not in (4, 5):
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (num_images, max_tiles, 3, S, S) or "
                "(tiles, 3, S, S)."
            )
        if image_sizes is None:
            if pixel_values.dim() == 5 and pixel_values.shape[1] != 1:
                raise ValueError(
                    f"`pixel_values` holds up to {pixel_values.shape[1]} tiles per image but `image_sizes` is "
                    "missing; pass the `image_sizes` that the processor returned."
                )
            return single_tile_layout(pixel_values.shape[0])
        # Exporters write the sizes out as plain integers, so that they become constants of the traced graph.
        sizes = image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes
        layout = anyres_layout([(int(height), int(width)) for height, width in sizes], self.config)
        _check_tiles(pixel_values, layout.num_tiles)
        return layout

    def _encode_tiles(self, tiles: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Tower features of all tiles, in as few calls as memory allows."""
        tiles = tiles.to(self.vision_tower.dtype)
        chunks = tiles.split(self._call_size(tiles))
        with self._tower_graph(tiles):
            outputs = [self.vision_tower(chunk, return_dict=True, **kwargs) for chunk in chunks]
        cells = self.config.cells_per_tile**2
        return BaseModelOutputWithPooling(
            # Towers with a class token put it first; only the cells of the tile are wanted.
            last_hidden_state=torch.cat([output.last_hidden_state[:, -cells:] for output in outputs]),
            hidden_states=_cat_layers([output.hidden_states for output in outputs]),
            attentions=_cat_layers([output.attentions for output in outputs]),
        )

    def _tower_graph(self, tiles: torch.Tensor) -> AbstractContextManager[None]:
        """Leave the tower out of the autograd graph where nothing in it is trained.

        The host's activation checkpointing marks the tower's patch embeddings as differentiable, which alone would
        keep the graph of a frozen tower and send a backward pass through it.
        """
        is_needed = tiles.requires_grad or any(weight.requires_grad for weight in self.vision_tower.parameters())
        return nullcontext() if is_needed or not torch.is_grad_enabled() else torch.no_grad()

    def _image_tokens(self, features: torch.Tensor, layout: TileLayout, **kwargs: Any) -> list[torch.Tensor]:
        """Tower features of all tiles to one (image_tokens, hidden_size) tensor per picture."""
        groups = self._resample(features, layout, **kwargs)
        return [tokens.flatten(0, 1) for tokens in torch.split(groups, layout.num_groups)]

    def _resample(
        self, features: torch.Tensor, layout: TileLayout, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        if layout.cell_order is not None:
            order = layout.cell_order.to(features.device)
            features = features.flatten(0, 1).index_select(0, order.view(-1)).unflatten(0, order.shape)
        mask = layout.patch_attention_mask
        size = self._call_size(features)
        masks = [None] * -(-features.shape[0] // size) if mask is None else mask.to(features.device).split(size)
        chunks = [
            self.resampler(chunk, chunk_mask, return_dict=True, **kwargs).last_hidden_state
            for chunk, chunk_mask in zip(features.split(size), masks, strict=True)
        ]
        return torch.cat(chunks)

    def _call_size(self, tiles: torch.Tensor) -> int:
        if self.config.max_tiles_per_call is not None:
            return self.config.max_tiles_per_call
        values = CPU_VALUES_PER_CALL if tiles.device.type == "cpu" else ACCELERATOR_VALUES_PER_CALL
        return max(1, values // (self.config.cells_per_tile**2 * self.config.resampler_config.hidden_size))


class XGenMMForConditionalGeneration(XGenMMPreTrainedModel, PictureGenerationMixin):
    """xGen-MM with a language-modelling head: `generate` answers questions about interleaved pictures and text."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: XGenMMConfig) -> None:
        """Build the model and its output layer (`lm_head_bias` says whether that has a bias)."""
        super().__init__(config)
        self.model = XGenMMModel(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: Any = None,
        num_latents: int = 128,
        resampler_layers: int = 6,
        grids: Sequence[tuple[int, int]] = RELEASED_GRIDS,
        tile_grouping: str = "tile",
        dtype: str | torch.dtype = "auto",
        seed: int = 0,
    ) -> "XGenMMForConditionalGeneration":
        """Build an untrained model from a pretrained vision tower and a pretrained language model.

        Weights of both are taken over exactly; the resampler is new, and so are rows of the token tables for image
        tokens, where the language model has no spare ones. `xgen_mm.conversion.assemble.assemble` builds the processor
        as well.

        Args:
            vision: Hub id, directory or loaded model with a vision tower of fixed input size (SigLIP, CLIP ...).
            text: Hub id, directory or loaded model, any decoder-only language model.
            tokenizer: Tokenizer that goes with the model: the image tokens are added to it. `None` loads the one of
                `text`; if that is a loaded model, image tokens are the ids after its last one.
            num_latents: Image tokens per tile.
            resampler_layers: Layers of the resampler.
            grids: Permitted canvases as (rows, cols) of tiles; order breaks ties.
            tile_grouping: As in `XGenMMConfig`.
            dtype: Precision of the result; `"auto"` is the narrowest that holds both parts without rounding.
            seed: Seed of the resampler's weights.

        Returns:
            The model in evaluation mode. It shares no memory with loaded models that were passed in.

        Raises:
            ValueError: If a part is unsuitable, see the message.
            OSError: If a part cannot be read.
        """
        # Only building needs this module, which an exported model does without.
        from .assembly import AssemblySettings, model_from_parts

        settings = AssemblySettings(
            num_latents=num_latents,
            resampler_layers=resampler_layers,
            grids=grids,
            tile_grouping=tile_grouping,
            seed=seed,
        )
        return model_from_parts(cls, vision, text, tokenizer=tokenizer, dtype=dtype, settings=settings)

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.lm_head

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures into image tokens; see `XGenMMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes, return_dict=True, **kwargs)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XGenMMCausalLMOutputWithPast:
        """Score the next token at every kept position.

        Args:
            input_ids: Token ids, shape (batch, sequence), one `image_token_id` per image token.
            pixel_values: Tile pixels, shape (num_images, max_tiles, 3, S, S), thumbnail first, zeros as filler.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2); `None` means one tile each.
            attention_mask: Shape (batch, sequence), 1 on real tokens.
            position_ids: Shape (batch, sequence).
            past_key_values: Cache of earlier positions.
            inputs_embeds: Embeddings instead of `input_ids`, shape (batch, sequence, hidden_size).
            labels: Target ids, shape (batch, sequence), -100 where there is no loss.
            use_cache: Whether to return a cache.
            logits_to_keep: How many last positions get logits (0 means all), or their indices.
            mm_encoder_outputs: `{"image": output of get_image_features}` instead of `pixel_values`.
            **kwargs: Passed on to the language model and the loss function (`num_items_in_batch`).

        Raises:
            ValueError: If the inputs contradict one another.
            PlaceholderMismatchError: If image tokens and image features differ in number.
        """
        outputs = self.model(
            input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return XGenMMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _check_directory(
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


def _check_tiles(pixel_values: torch.Tensor, num_tiles: list[int]) -> None:
    if pixel_values.dim() == 4:
        found, expected, unit = pixel_values.shape[0], sum(num_tiles), "tiles"
        fits = found == expected
    else:
        found, expected, unit = tuple(pixel_values.shape[:2]), (len(num_tiles), max(num_tiles)), "(images, tiles)"
        fits = found[0] == expected[0] and found[1] >= expected[1]
    if not fits:
        raise ValueError(
            f"`pixel_values` holds {found} {unit} but `image_sizes` asks for {expected}; the image processor and the "
            "model must share `image_grid_pinpoints` and tile size."
        )


def _real_tiles(pixel_values: torch.Tensor, num_tiles: list[int]) -> torch.Tensor:
    """Drop filler: (num_images, max_tiles, 3, S, S) -> (tiles, 3, S, S)."""
    if pixel_values.dim() == 4:
        return pixel_values
    max_tiles = pixel_values.shape[1]
    tiles = pixel_values.flatten(0, 1)
    if all(count == max_tiles for count in num_tiles):
        return tiles
    kept = [image * max_tiles + tile for image, count in enumerate(num_tiles) for tile in range(count)]
    return tiles[torch.tensor(kept, device=tiles.device)]


def _cat_layers(calls: list[tuple[torch.Tensor, ...] | None]) -> tuple[torch.Tensor, ...] | None:
    """Join what several tower calls recorded per layer along the tiles."""
    recorded = [call for call in calls if call is not None]
    return tuple(torch.cat(layer) for layer in zip(*recorded, strict=True)) if recorded else None
