"""EVA-CLIP tower: the image features that BLIP3-o learns to draw."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPMLP

from .configuration_blip3o import Blip3oFeatureTowerConfig

# The released file of the tower alone, by patterns of its names.
RELEASED_NAMES = {
    r"^cls_token$": "class_embedding",
    r"^pos_embed$": "position_embedding",
    r"^patch_embed\.proj\.": "patch_embedding.",
    r"^blocks\.": "layers.",
}


class Blip3oFeatureTowerAttention(nn.Module):
    """Self-attention whose queries, keys and values are one projection."""

    def __init__(self, config: Blip3oFeatureTowerConfig) -> None:
        """Build the projections."""
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attend over (batch, patches + 1, hidden_size)."""
        # (batch, length, 3 * heads * head_dim) -> 3 x (batch, heads, length, head_dim)
        queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class Blip3oFeatureTowerLayer(GradientCheckpointingLayer):
    """Normalizes behind attention and feed-forward layer instead of before."""

    def __init__(self, config: Blip3oFeatureTowerConfig) -> None:
        """Build the parts."""
        super().__init__()
        self.attn = Blip3oFeatureTowerAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run the layer over (batch, patches + 1, hidden_size)."""
        hidden_states = hidden_states + self.norm1(self.attn(hidden_states))
        return hidden_states + self.norm2(self.mlp(hidden_states))


class Blip3oFeatureTower(PreTrainedModel):
    """EVA-CLIP without final normalization or projection.

    Source: EVA-CLIP (arXiv:2303.15389), with the features that BLIP3-o (arXiv:2505.09568) takes from it.
    """

    config: Blip3oFeatureTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
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

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a tower in our layout, or the released file of the tower alone; arguments are the host's."""
        result = super().from_pretrained(*args, **{"key_mapping": RELEASED_NAMES} | kwargs)
        # The host writes a model back as it was read; ours is always written in our own layout.
        (result[0] if isinstance(result, tuple) else result)._weight_conversions = []
        return result

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: Normalized pixels, shape (batch, num_channels, image_size, image_size).

        Returns:
            `last_hidden_state` has the features of the patches in raster order, without the class token, shape
            (batch, patches, hidden_size).
        """
        patches = self.patch_embedding(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)
        class_embedding = self.class_embedding.expand(len(patches), -1, -1)
        hidden_states = torch.cat([class_embedding, patches], dim=1) + self.position_embedding
        for layer in self.layers:
            hidden_states = layer(hidden_states)
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
