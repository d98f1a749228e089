"""xGen-MM (BLIP-3) models: vision tower, connector and language model."""

import os
from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import AutoModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..errors import PlaceholderMismatchError
from .compiled_layout import compiled_layout
from .configuration_xgen_mm import RELEASED_GRIDS, XGenMMConfig
from .next_token_loss import next_token_loss
from .output_layer import IGNORED_LABEL, XGenMMOutputLayer
from .picture_generation import PictureGenerationMixin
from .placeholder_labels import AcceptsLossArguments, mask_placeholders
from .pretrained_xgen_mm import XGenMMPreTrainedModel
from .released_calls import join_tiles, refuse_released_arguments
from .tile_encoding import (
    check_tiles,
    encode_content,
    encode_tiles,
    join,
    join_pictures,
    mismatch_message,
    real_tiles,
    write_image_tokens,
)
from .tile_layout import TileLayout, anyres_layout, single_tile_layout

# Feature values (tiles x cells x width) per tower call when the configuration leaves it open. Beyond a few 384-pixel
# tiles a CPU loses cache locality; an accelerator wants one large call, bounded so that hundreds of tiles do not
# exhaust it.
CPU_VALUES_PER_CALL = 4 * 729 * 1152
ACCELERATOR_VALUES_PER_CALL = 128 * 729 * 1152


@dataclass
class XGenMMModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `XGenMMModel`: fields of the host's class, and those below.

    Attributes:
        image_hidden_states: Image tokens of all images, shape (image_tokens, hidden_size), if there were images. In a
            compiled graph those of filler tiles follow, and `image_outputs` is `None`.
        image_outputs: As outputs of the host's models have it since transformers 5.24: `pooler_output` with one
            (image_tokens, hidden_size) tensor per image, and what was asked for of the vision tower's layers. It is no
            field, so that whatever walks over the fields meets the same tokens once.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs = None


@dataclass
class XGenMMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of `XGenMMForConditionalGeneration`: fields of the host's class, and those below.

    Attributes:
        image_hidden_states: Image tokens of all images, shape (image_tokens, hidden_size), if there were images. In a
            compiled graph those of filler tiles follow, and `image_outputs` is `None`.
        image_outputs: As outputs of the host's models have it since transformers 5.24: `pooler_output` with one
            (image_tokens, hidden_size) tensor per image, and what was asked for of the vision tower's layers. It is no
            field, so that whatever walks over the fields meets the same tokens once.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs = None


class XGenMMModel(XGenMMPreTrainedModel):
    """Vision tower, resampler and language model without a language-modelling head.

    A picture arrives as a thumbnail and the tiles of its canvas; every tile becomes image tokens, which
    take the places of the `<image>` placeholders in the prompt. The sequence length never changes inside the model.

    Source: xGen-MM technical report (arXiv:2408.08872), model architecture.
    """

    def __init__(self, config: XGenMMConfig) -> None:
        """Build the three parts from their sub-configurations."""
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.resampler = AutoModel.from_config(config.resampler_config, trust_remote_code=False)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table; the host's method would search every part for it, at each forward pass."""
        return self.language_model.get_input_embeddings()

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
                pictures; so do nested lists of tensors, one list per sample, as the released image processor makes.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2); `None` means one tile each.
            **kwargs: Passed on to the vision tower and the resampler.

        Returns:
            `last_hidden_state`: tower features of all real tiles, shape (tiles, cells, vision width);
            `pooler_output`: a list with one (image_tokens, hidden_size) tensor per picture.

        Raises:
            ValueError: If tiles and sizes do not belong together.
        """
        refuse_released_arguments(kwargs)
        pixel_values = join_tiles(pixel_values)
        layout = self._layout(pixel_values, image_sizes)
        tiles = real_tiles(pixel_values, layout.num_tiles)
        vision_outputs = self._encode_tiles(tiles, layout, **kwargs)
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
        mask = self._is_placeholder(input_ids, inputs_embeds)
        num_slots = mask.sum()
        torch_compilable_check(
            num_slots == image_features.shape[0],
            lambda: mismatch_message(int(num_slots), image_features.shape[0]),
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
            inputs_embeds: Embeddings instead of `input_ids`, shape (batch, sequence, hidden_size).
            use_cache: Whether to return a cache.
            mm_encoder_outputs: `{"image": output of get_image_features}` instead of `pixel_values`. Without a
                `pooler_output`, its `last_hidden_state` goes through the resampler first, which needs `image_sizes`.
            **kwargs: Passed on to the language model, the cache of earlier positions among them under the name
                that the installed transformers gives it (`cache`; `past_key_values` before 5.24).

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds`, or both forms of images, are given.
            PlaceholderMismatchError: If image tokens and image features differ in number.
        """
        refuse_released_arguments(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("Give `pixel_values` or `mm_encoder_outputs`, not both: one holds what the other yields.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_outputs = (mm_encoder_outputs or {}).get("image")
        image_features = None
        if image_outputs is None and pixel_values is not None and len(pixel_values) > 0:
            if self._compiles_layout(image_sizes):
                image_features, num_tokens = self._compiled_image_tokens(pixel_values, image_sizes)
                image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
                mask = self._is_placeholder(input_ids, inputs_embeds).unsqueeze(-1)
                torch._assert_async(mask.sum() == num_tokens, "Image features and image tokens do not match.")
                inputs_embeds = write_image_tokens(inputs_embeds, image_features, is_placeholder=mask)
            else:
                image_outputs = self.get_image_features(pixel_values, image_sizes, return_dict=True)
        if image_outputs is not None:
            image_tokens = image_outputs.pooler_output
            if image_tokens is None:
                features = image_outputs.last_hidden_state
                # (tiles, cells, width) has one row per tile, as flat pixels have.
                image_tokens = self._image_tokens(features, self._layout(features.unsqueeze(-1), image_sizes))
            image_features = join_pictures(image_tokens).to(inputs_embeds.device, inputs_embeds.dtype)
            # The tower's features are no longer needed; they would stay in memory while the language model runs.
            image_outputs = BaseModelOutputWithPooling(
                pooler_output=image_tokens,
                hidden_states=image_outputs.hidden_states,
                attentions=image_outputs.attentions,
            )
            if torch.compiler.is_compiling():
                mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            else:
                # Whoever lists the places also knows how many there are, without a second pass over the prompt.
                mask = self._is_placeholder(input_ids, inputs_embeds)
            inputs_embeds = write_image_tokens(
                inputs_embeds, image_features, is_placeholder=mask, is_own=input_ids is not None
            )

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        found = XGenMMModelOutputWithPast(**outputs, image_hidden_states=image_features)
        found.image_outputs = image_outputs
        return found

    def _compiles_layout(self, image_sizes: Any) -> bool:
        """Whether a graph is being compiled that is to serve images of all sizes.

        Exporters write sizes out as constants, and patches that are left out change shapes.
        """
        is_compiling = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
        return is_compiling and isinstance(image_sizes, torch.Tensor) and not self.config.drop_padded_patches

    def _compiled_image_tokens(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image tokens of all images, those of filler at the end, and how many are no filler."""
        num_tiles = tuple(pixel_values.shape[:-3])
        layout = compiled_layout(image_sizes, num_tiles, self.config)
        torch._assert_async(layout.fits, "`pixel_values` holds other tiles than `image_sizes` asks for.")
        features = self._encode_tiles(pixel_values.flatten(0, -4), layout.tiles).last_hidden_state
        # (groups, num_latents, hidden_size)
        tokens = self._resample(features, layout.tiles)
        order = (~layout.is_real).long().argsort(stable=True)
        return tokens.index_select(0, order.to(tokens.device)).flatten(0, 1), layout.is_real.sum() * tokens.shape[1]

    def _is_placeholder(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Bool, shape (batch, sequence)."""
        token_id = self.config.image_token_id
        if input_ids is not None:
            return (input_ids == token_id).to(inputs_embeds.device)
        token = torch.tensor(token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def _read_feature_size(self) -> tuple[int, int]:
        """Cells per tile, and values per cell."""
        return self.config.cells_per_tile**2, self.config.resampler_config.hidden_size

    @cached_property
    def _feature_size(self) -> tuple[int, int]:
        """What the tower's weights fix: read from the configuration once."""
        return self._read_feature_size()

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
        if any(not isinstance(size, Sized) or len(size) != 2 for size in sizes):
            raise ValueError(f"`image_sizes` is {sizes}; expected one (height, width) per image, in one list for all.")
        layout = anyres_layout([(int(height), int(width)) for height, width in sizes], self.config)
        check_tiles(pixel_values, layout.num_tiles)
        return layout

    def _encode_tiles(
        self, tiles: torch.Tensor, layout: TileLayout, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Tower features of all tiles, in as few calls as memory allows."""
        tiles = tiles.to(self.vision_tower.dtype)
        # A compiler cannot enter the lock of a cached property, and reads the configuration when it compiles alone.
        num_cells, width = self._read_feature_size() if torch.compiler.is_compiling() else self._feature_size
        size = self._call_size(tiles.device, num_values=num_cells * width)
        with self._tower_graph(tiles):
            if self.config.drop_padded_patches and layout.patch_attention_mask is not None:
                is_content = layout.patch_attention_mask
                return encode_content(self.vision_tower, tiles, is_content=is_content, call_size=size, **kwargs)
            return encode_tiles(self.vision_tower, tiles, num_cells=num_cells, call_size=size, **kwargs)

    def _tower_graph(self, tiles: torch.Tensor) -> AbstractContextManager[None]:
        """Leave the tower out of the autograd graph where nothing in it is trained.

        The host's activation checkpointing marks the tower's patch embeddings as differentiable, which alone would
        keep the graph of a frozen tower and send a backward pass through it.
        """
        if not torch.is_grad_enabled() or tiles.requires_grad:
            return nullcontext()
        is_trained = any(weight.requires_grad for weight in self.vision_tower.parameters())
        return nullcontext() if is_trained else torch.no_grad()

    def _image_tokens(self, features: torch.Tensor, layout: TileLayout, **kwargs: Any) -> list[torch.Tensor]:
        """Tower features of all tiles to one (image_tokens, hidden_size) tensor per picture."""
        tokens = self._resample(features, layout, **kwargs)
        # (groups, tokens, hidden_size) -> (image_tokens, hidden_size) per picture
        num_tokens = tokens.shape[1]
        return list(tokens.flatten(0, 1).split_with_sizes([count * num_tokens for count in layout.num_groups]))

    def _resample(
        self, features: torch.Tensor, layout: TileLayout, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        cells, order = features.flatten(0, 1), layout.cell_order
        num_groups = sum(layout.num_groups)
        mask = None if layout.patch_attention_mask is None else layout.patch_attention_mask.to(features.device)
        order = None if order is None else order.to(features.device)
        num_cells = features.shape[1] if order is None else order.shape[1]
        size = self._call_size(features.device, num_values=num_cells * features.shape[-1])
        found = []
        for start in range(0, num_groups, size):
            chosen = slice(start, start + size)
            chunk_mask = None if mask is None else mask[chosen]
            # Regrouped call by call, so that no second copy of all features lies in memory.
            chunk = features[chosen] if order is None else _take_rows(cells, order[chosen])
            # The parts may differ in precision.
            chunk = chunk.to(getattr(self.resampler, "dtype", chunk.dtype))
            found.append(self.resampler(chunk, chunk_mask, return_dict=True, **kwargs).last_hidden_state)
        return join(found)

    def _call_size(self, device: torch.device, *, num_values: int) -> int:
        """Most tiles (or groups of cells) of `num_values` feature values each in one call."""
        limit = self.config.max_tiles_per_call
        if limit is not None:
            return limit
        return max(1, (CPU_VALUES_PER_CALL if device.type == "cpu" else ACCELERATOR_VALUES_PER_CALL) // num_values)


class XGenMMForConditionalGeneration(XGenMMPreTrainedModel, PictureGenerationMixin):
    """xGen-MM with a language-modelling head: `generate` answers questions about interleaved pictures and text."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    accepts_loss_kwargs = AcceptsLossArguments()

    def __init__(self, config: XGenMMConfig) -> None:
        """Build the model and its output layer (`lm_head_bias` says whether that has a bias)."""
        super().__init__(config)
        self.model = XGenMMModel(config)
        text_config = config.text_config
        self.lm_head = XGenMMOutputLayer(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: Any = None,
        connector: str = "perceiver",
        num_latents: int | None = None,
        resampler_layers: int | None = None,
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
            connector: What stands between the parts: "perceiver", or "mlp" with one image token per patch.
            num_latents: Image tokens per tile of a perceiver; `None` is 128.
            resampler_layers: Layers of the connector; `None` is 6 for a perceiver and 2 for an MLP.
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
            connector=connector,
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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the size of the vocabulary; arguments and result as in the host's method."""
        table: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        head = self.lm_head
        if type(head) is nn.Linear:
            # The host makes a plain layer of the new size. It stays the layer that the host knows: which weights are
            # initialised, and whatever else hangs on it.
            head.__class__ = XGenMMOutputLayer
        return table

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures into image tokens; see `XGenMMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes, return_dict=True, **kwargs)

    # Defaults of the configuration are filled in by the model below, which shares it.
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XGenMMCausalLMOutputWithPast:
        """Score the next token at every kept position, or compute the loss alone.

        Args:
            input_ids: Token ids, shape (batch, sequence), one `image_token_id` per image token.
            pixel_values: Tile pixels, shape (num_images, max_tiles, 3, S, S), thumbnail first, zeros as filler.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2); `None` means one tile each.
            attention_mask: Shape (batch, sequence), 1 on real tokens.
            position_ids: Shape (batch, sequence).
            inputs_embeds: Embeddings instead of `input_ids`, shape (batch, sequence, hidden_size).
            labels: Target ids, shape (batch, sequence), -100 where there is no loss; placeholders are never targets.
            use_cache: Whether to return a cache.
            logits_to_keep: How many last positions get logits (0 means all), or their indices.
            skip_logits: Whether to compute the loss from positions with a label alone and to return no logits, so that
                vocabulary times sequence never lies in memory; loss and gradients are the same. `None` does so in
                training mode if there are labels and `logits_to_keep` is 0. `False` always returns logits.
            mm_encoder_outputs: `{"image": output of get_image_features}` instead of `pixel_values`.
            **kwargs: Passed on to the language model, the cache among them as in `XGenMMModel.forward`, and to the
                loss function (`shift_labels`; `num_items_in_batch`, counted without placeholders).

        Raises:
            ValueError: If the inputs contradict one another, or logits are to be left out without `labels`.
            PlaceholderMismatchError: If image tokens and image features differ in number.
        """
        outputs = self.model(
            input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        if labels is not None:
            labels, kwargs = self._mask_placeholders(labels, kwargs)
        if self._skips_logits(skip_logits, labels=labels, logits_to_keep=logits_to_keep):
            logits, loss = None, self._loss_alone(outputs.last_hidden_state, labels, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits, loss = self.lm_head(outputs.last_hidden_state[:, kept, :]), None
            if labels is not None:
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
                )
        # What is left is named alike in both outputs, the cache as the installed host names it.
        kept_outputs = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        scored = XGenMMCausalLMOutputWithPast(loss=loss, logits=logits, **kept_outputs)
        scored.image_outputs = outputs.image_outputs
        return scored

    def _mask_placeholders(
        self, labels: torch.Tensor, loss_arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Labels and what else the loss is given, with placeholders as targets nowhere."""
        settings = {
            "image_token_id": self.config.image_token_id,
            "ignore_index": loss_arguments.get("ignore_index", IGNORED_LABEL),
        }
        shifted = loss_arguments.get("shift_labels")
        if shifted is not None:
            loss_arguments = loss_arguments | {"shift_labels": mask_placeholders(shifted, **settings)}
        return mask_placeholders(labels, **settings), loss_arguments

    def _skips_logits(
        self, skip_logits: bool | None, *, labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor
    ) -> bool:
        if skip_logits and labels is None:
            raise ValueError("`skip_logits` is True but there are no `labels`; without logits only a loss is left.")
        if skip_logits is not None:
            return skip_logits
        if not self.training or labels is None:
            return False
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        # A loss function that was set by hand wants logits.
        return keeps_all and self.loss_function is ForCausalLMLoss

    def _loss_alone(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        *,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = IGNORED_LABEL,
        **_: Any,
    ) -> torch.Tensor:
        # Tensor parallelism gives each process a part of the vocabulary and joins the scores behind the layer.
        is_whole = (self.tp_size or 1) == 1
        return next_token_loss(
            self.lm_head,
            hidden_states,
            labels,
            is_chunked=is_whole and isinstance(self.lm_head, XGenMMOutputLayer),
            shift_labels=shift_labels,
            num_items_in_batch=num_items_in_batch,
            ignore_index=ignore_index,
        )


def _take_rows(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows (n, width) in an order (groups, cells): shape (groups, cells, width)."""
    return rows.index_select(0, order.reshape(-1)).view(*order.shape, -1)
