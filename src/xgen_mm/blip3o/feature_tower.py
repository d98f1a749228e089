"""EVA-CLIP tower: the image features that BLIP3-o learns to draw."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_blip3o import Blip3oFeatureTowerConfig


class Blip3oFeatureTowerLayer(CLIPEncoderLayer):
    """The host's CLIP layer with the normalizations behind attention and feed-forward layer instead of before."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Run the layer over (batch, patches + 1, hidden_size)."""
        attended, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + self.layer_norm1(attended)
        return hidden_states + self.layer_norm2(self.mlp(hidden_states))


class Blip3oFeatureTower(PreTrainedModel):
    """EVA-CLIP without final normalization or projection.

    Source: EVA-CLIP (arXiv:2303.15389), with the features that BLIP3-o (arXiv:2505.09568) takes from it.
    """

    config: Blip3oFeatureTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Blip3oFeatureTowerLayer"]

    def __init__(self, config: Blip3oFeatureTowerConfig) -> None:
        """Build the tower."""
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        num_patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(1, num_patches + 1, config.hidden_size))
        self.layers = nn.ModuleList([Blip3oFeatureTowerLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.class_embedding, std=self.config.initializer_range)
            init.normal_(self.position_embedding, std=self.config.initializer_range)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: Normalized pixels, shape (batch, num_channels, image_size, image_size).
            **kwargs: Passed on to the attention backend.

        Returns:
            `last_hidden_state` has the features of the patches in raster order, without the class token, shape
            (batch, patches, hidden_size).
        """
        patches = self.patch_embedding(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)
        class_embedding = self.class_embedding.expand(len(patches), -1, -1)
        hidden_states = torch.cat([class_embedding, patches], dim=1) + self.position_embedding
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states[:, 1:])

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features averaged over squares of patches, as they are drawn: neither normalized nor scaled.

        Args:
            pixel_values: As in `forward`.

        Returns:
            Shape (batch, hidden_size, map_size, map_size).
        """
        features = self(pixel_values).last_hidden_state.transpose(1, 2)
        edge = self.config.image_size // self.config.patch_size
        return F.avg_pool2d(features.unflatten(2, (edge, edge)), self.config.pooling_size)
