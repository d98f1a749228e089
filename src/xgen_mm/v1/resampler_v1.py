"""Perceiver resampler of v1: its latents read the prompt along with the features of a tile."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..connectors.perceiver import XGenMMPerceiverResampler, XGenMMResamplerConfig


class XGenMMV1TextProjection(nn.Module):
    """Maps prompt embeddings to the width of the latents."""

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the layer; the prompt is as wide as the image tokens, `output_size`."""
        super().__init__()
        self.linear_1 = nn.Linear(config.output_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """Map (tiles, prompt_tokens, output_size) to (tiles, prompt_tokens, hidden_size)."""
        return self.linear_2(self.act_fn(self.linear_1(prompt_embeds)))


class XGenMMV1PerceiverResampler(XGenMMPerceiverResampler):
    """Resampler whose image tokens depend on the question.

    The projected prompt stands behind the latents as further queries through all layers, attends and is attended to
    like them, and is cut off before the final normalisation. Padding cells of a tile are not masked.

    Source: released code of xGen-MM v1.
    """

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the resampler; every size in `config` must be set (`XGenMMV1Config` fills them)."""
        super().__init__(config)
        self.text_projection = XGenMMV1TextProjection(config)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        features: torch.Tensor,
        prompt_embeds: torch.Tensor,
        prompt_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Resample the features of every tile in the light of its prompt.

        Args:
            features: Tower features, shape (tiles, cells, hidden_size).
            prompt_embeds: Prompt embeddings for each tile, shape (tiles, prompt_tokens, output_size).
            prompt_attention_mask: Bool, shape (tiles, prompt_tokens); `False` hides prompt tokens from everything
                else. `None` hides none, as released.
            **kwargs: Passed on to the attention backend.

        Returns:
            `last_hidden_state` holds the image tokens, shape (tiles, num_latents, output_size).
        """
        num_tiles, num_cells = features.shape[:2]
        num_latents = self.config.num_latents
        prompt = self.text_projection(prompt_embeds.to(features.dtype))
        latents = self.latents.to(features.dtype).unsqueeze(0).expand(num_tiles, -1, -1)
        latents = torch.cat([latents, prompt], dim=1)
        attention_mask = None
        if prompt_attention_mask is not None:
            visible = prompt_attention_mask.new_ones(num_tiles, num_cells + num_latents)
            attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=latents,
                attention_mask=torch.cat([visible, prompt_attention_mask], dim=1),
                # Only the number of keys is read off this argument, so it has no width.
                encoder_hidden_states=features.new_empty(num_tiles, num_cells + latents.shape[1], 0),
            )
        for layer in self.layers:
            latents = layer(latents, features, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.projection(self.norm(latents[:, :num_latents])))
