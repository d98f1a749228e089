"""v1 models: the parts of v1.5 around a CLIP tower and a resampler that reads the prompt."""

import logging
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import AutoModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..modeling.modeling_xgen_mm import (
    XGenMMForConditionalGeneration,
    XGenMMModel,
    XGenMMModelOutputWithPast,
)
from ..modeling.output_layer import XGenMMOutputLayer
from ..modeling.pretrained_xgen_mm import XGenMMPreTrainedModel
from ..modeling.released_calls import join_tiles, refuse_released_arguments
from ..modeling.tile_layout import TileLayout
from .configuration_xgen_mm_v1 import XGenMMV1Config
from .resampler_v1 import XGenMMV1PerceiverResampler
from .written_prompt import WrittenPrompts, written_prompts

logger = logging.getLogger(__name__)

# Released weights that our model does not have: the projection of open_clip's image embedding, which is never applied.
UNUSED_RELEASED_WEIGHTS = r"^vlm\.vision_encoder\.proj$"


class XGenMMV1Model(XGenMMModel):
    """CLIP tower, prompt-reading resampler and language model without a language-modelling head.

    Inputs and outputs are those of `XGenMMModel`, except that pictures can only be encoded together with their prompt.

    Source: released code of xGen-MM v1.
    """

    config: XGenMMV1Config
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [UNUSED_RELEASED_WEIGHTS]
    # Decoding is one graph; the prompt as it was written, which the resampler reads, has another length for each one.
    _can_compile_fullgraph = False

    def __init__(self, config: XGenMMV1Config) -> None:
        """Build the three parts from their sub-configurations."""
        # Past `XGenMMModel`, which builds another resampler.
        XGenMMPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.resampler = XGenMMV1PerceiverResampler._from_config(config.resampler_config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures into image tokens in the light of their prompts.

        Args:
            pixel_values: Tile pixels as in `XGenMMModel.get_image_features`.
            image_sizes: Original (height, width) of each picture, shape (num_images, 2); `None` means one tile each.
            input_ids: Token ids of the prompts, shape (batch, sequence), one `image_token_id` per image token.
            attention_mask: Shape (batch, sequence), 1 on real tokens; `None` if there is no padding.
            inputs_embeds: Embeddings instead of `input_ids`, shape (batch, sequence, hidden_size).
            **kwargs: Passed on to the vision tower and the resampler.

        Returns:
            As in `XGenMMModel.get_image_features`; tower features are those after the final normalisation.

        Raises:
            ValueError: If there is no prompt, or tiles and sizes do not belong together.
            PlaceholderMismatchError: If the prompt holds another number of image tokens than the pictures yield.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "The image tokens of a v1 model depend on the prompt: give exactly one of `input_ids` and "
                "`inputs_embeds` along with `pixel_values`."
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        pixel_values = join_tiles(pixel_values)
        layout = self._layout(pixel_values, image_sizes)
        prompts = self._written_prompts(layout, input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        kwargs["return_dict"] = True
        return super().get_image_features(pixel_values, image_sizes, prompts=prompts, **kwargs)

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
        """Run the language model over text and image tokens; arguments and errors as in `XGenMMModel.forward`.

        The resampler reads the whole `input_ids`. In training that includes the answers, as in the released code; pass
        `mm_encoder_outputs={"image": get_image_features(..., input_ids=questions)}` to show it the questions alone.
        """
        refuse_released_arguments(kwargs)
        if pixel_values is not None and len(pixel_values) > 0 and mm_encoder_outputs is None:
            image_outputs = self.get_image_features(
                pixel_values,
                image_sizes,
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                return_dict=True,
            )
            pixel_values, mm_encoder_outputs = None, {"image": image_outputs}
        return super().forward(
            input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def _layout(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None) -> TileLayout:
        # The released code works out which cells are padding but never hands that to the resampler.
        return replace(super()._layout(pixel_values, image_sizes), patch_attention_mask=None)

    def _written_prompts(
        self,
        layout: TileLayout,
        input_ids: torch.LongTensor | None,
        *,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> WrittenPrompts:
        tokens_per_group = self.config.tokens_per_group
        tokens_per_image = [tokens_per_group * count for count in layout.num_groups]
        # Only the number of features is read off this argument, so they have no width.
        features = inputs_embeds.new_empty(sum(tokens_per_image), 0)
        is_image_token = self.get_placeholder_mask(input_ids, inputs_embeds, features).squeeze(-1)
        pad_id = torch.tensor(self.config.prompt_pad_token_id, device=inputs_embeds.device)
        prompts = written_prompts(
            inputs_embeds,
            is_image_token=is_image_token,
            attention_mask=attention_mask,
            tokens_per_image=tokens_per_image,
            filler=self.get_input_embeddings()(pad_id),
            max_tokens=self.config.max_prompt_tokens,
        )
        if len(prompts.row_of_image.unique()) < len(tokens_per_image):
            logger.warning_once(
                "A prompt holds several pictures. The released v1 models were trained on one picture per prompt, and "
                "their own code leaves every `<image>` but the first one as it is."
            )
        return prompts

    def _encode_tiles(
        self,
        tiles: torch.Tensor,
        layout: TileLayout,
        *,
        prompts: WrittenPrompts,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        outputs = super()._encode_tiles(tiles, layout, **kwargs)
        # The host's CLIP tower normalises its pooled output only; the resampler reads every cell normalised.
        outputs.last_hidden_state = self.vision_tower.post_layernorm(outputs.last_hidden_state)
        return outputs

    def _resample(
        self,
        features: torch.Tensor,
        layout: TileLayout,
        *,
        prompts: WrittenPrompts,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        if layout.cell_order is not None:
            order = layout.cell_order.to(features.device)
            features = features.flatten(0, 1).index_select(0, order.view(-1)).unflatten(0, order.shape)
        num_groups = torch.tensor(layout.num_groups, device=prompts.row_of_image.device)
        rows = prompts.row_of_image.repeat_interleave(num_groups)
        size = self._call_size(features.device, num_values=features.shape[1] * features.shape[2])
        chunks = []
        for chunk, chunk_rows in zip(features.split(size), rows.split(size), strict=True):
            mask = prompts.mask[chunk_rows].to(chunk.device) if self.config.mask_prompt_padding else None
            embeds = prompts.embeds[chunk_rows].to(chunk.device)
            # The parts may differ in precision; the prompt follows the features.
            chunk = chunk.to(getattr(self.resampler, "dtype", chunk.dtype))
            chunks.append(self.resampler(chunk, embeds, mask, return_dict=True, **kwargs).last_hidden_state)
        return torch.cat(chunks)


class XGenMMV1ForConditionalGeneration(XGenMMForConditionalGeneration):
    """xGen-MM v1 with a language-modelling head; used like `XGenMMForConditionalGeneration`."""

    config: XGenMMV1Config
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [UNUSED_RELEASED_WEIGHTS]
    _can_compile_fullgraph = False

    def __init__(self, config: XGenMMV1Config) -> None:
        """Build the model and its output layer (`lm_head_bias` says whether that has a bias)."""
        # Past `XGenMMForConditionalGeneration`, which builds another model.
        XGenMMPreTrainedModel.__init__(self, config)
        self.model = XGenMMV1Model(config)
        text_config = config.text_config
        self.lm_head = XGenMMOutputLayer(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Encode the pictures for `generate`, with the prompt as it is before beams and new tokens are added.

        The host's method hands the pictures alone to `get_image_features`. Pictures in the cache of earlier turns stay
        as they were encoded for the prompt of their turn.
        """
        self._suppress_placeholders(generation_config)
        if model_kwargs.get("pixel_values") is None or model_kwargs.get("mm_encoder_outputs") is not None:
            return model_kwargs
        input_name = model_input_name or self.main_input_name
        kept = self._pictures_not_cached(inputs_tensor, model_kwargs) if input_name == "input_ids" else None
        outputs = self.get_image_features(
            model_kwargs.pop("pixel_values"),
            model_kwargs.pop("image_sizes", None),
            attention_mask=model_kwargs.get("attention_mask"),
            **{input_name: inputs_tensor},
        )
        if kept is not None:
            # The prompt is read as a whole, so the others were encoded too.
            outputs.pooler_output = [outputs.pooler_output[picture] for picture in kept]
        if kept is None or kept:
            model_kwargs["mm_encoder_outputs"] = {"image": outputs}
        return model_kwargs
