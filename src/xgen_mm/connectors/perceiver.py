"""Perceiver resampler: turns the features of one tile into a fixed number of image tokens."""

from collections.abc import Callable

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .connector_config import XGenMMConnectorConfig, plain_errors


@plain_errors
@strict
class XGenMMResamplerConfig(XGenMMConnectorConfig):
    """Shape of the perceiver resampler; the defaults are those of the released 4B models.

    Args:
        hidden_size: Width of the latents; `None` takes the vision tower's width (1152 as released).
        output_size: Width of the image tokens; `None` takes the language model's width (3072 as released).
        num_latents: Learned queries, and so image tokens, per tile.
        num_hidden_layers: Number of cross-attention + feed-forward layers.
        num_attention_heads: Attention heads per layer.
        head_dim: Width of one head; `num_attention_heads * head_dim` may differ from `hidden_size`.
        intermediate_size: Width of the feed-forward layer; `None` is four times `hidden_size`.
        hidden_act: Activation of the feed-forward layer (the exact, erf-based GELU as released).
        layer_norm_eps: Epsilon of every LayerNorm.
        initializer_range: Standard deviation of freshly initialised weights.
    """

    model_type = "xgenmm_resampler"
    base_model_fsdp_plan = {"layers.*": "free_full_weight"}

    num_latents: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    head_dim: int = 96
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def num_tokens(self, num_patches: int) -> int:
        """As many as there are latents, whatever the number of patches."""
        return self.num_latents

    def fill_sizes(self, *, hidden_size: int, output_size: int) -> None:
        """Fill in sizes that are left open, that of the feed-forward layer among them."""
        super().fill_sizes(hidden_size=hidden_size, output_size=output_size)
        if self.intermediate_size is None and self.hidden_size is not None:
            self.intermediate_size = 4 * self.hidden_size


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, the reference for the fused kernels.

    Args:
        module: The attention layer (unused, part of the attention interface).
        query: Shape (tiles, heads, num_latents, head_dim).
        key: Shape (tiles, heads, cells + num_latents, head_dim).
        value: Like `key`.
        attention_mask: Additive mask, broadcastable to (tiles, heads, num_latents, cells + num_latents), or `None`.
        scaling: Factor on the scores.
        dropout: Part of the attention interface; the resampler has none.
        **kwargs: Further arguments of the attention interface, ignored.

    Returns:
        Output of shape (tiles, num_latents, heads, head_dim) and the attention weights.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # Half precision loses too much in the sum of exponentials.
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precise).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class XGenMMPerceiverAttention(nn.Module):
    """Latents attend to the tile's features and to themselves.

    Keys and values come from the normalised features followed by the normalised latents; padding cells are masked,
    latents never are. No projection has a bias, as released.
    """

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the layer; see `XGenMMResamplerConfig` for the sizes."""
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = 0.0
        self.is_causal = False
        inner_size = self.num_heads * self.head_dim
        self.norm_media = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_latents = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.o_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    def forward(
        self,
        latents: torch.Tensor,
        features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Update of the latents and the attention weights.

        Args:
            latents: Shape (tiles, num_latents, hidden_size).
            features: Shape (tiles, cells, hidden_size).
            attention_mask: As the attention backend wants it, over cells + num_latents keys; `None` masks nothing.
            **kwargs: Passed on to the attention backend.
        """
        latents = self.norm_latents(latents)
        media = torch.cat([self.norm_media(features), latents], dim=1)
        query = self._split_heads(self.q_proj(latents))
        key = self._split_heads(self.k_proj(media))
        value = self._split_heads(self.v_proj(media))

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, is_causal=False, **kwargs
        )
        # (tiles, num_latents, heads, head_dim) -> (tiles, num_latents, heads * head_dim)
        return self.o_proj(output.reshape(*output.shape[:2], -1)), weights

    def _split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # (tiles, tokens, heads * head_dim) -> (tiles, heads, tokens, head_dim)
        return hidden_states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class XGenMMResamplerMLP(nn.Module):
    """Feed-forward layer with its own normalisation; no biases besides the normalisation's, as released."""

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the layer; see `XGenMMResamplerConfig` for the sizes."""
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (tiles, num_latents, hidden_size) to the same shape."""
        return self.down_proj(self.act_fn(self.up_proj(self.norm(hidden_states))))


class XGenMMResamplerLayer(GradientCheckpointingLayer):
    """Cross-attention and feed-forward layer, both with residual connections."""

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the layer; see `XGenMMResamplerConfig` for the sizes."""
        super().__init__()
        self.attention = XGenMMPerceiverAttention(config)
        self.mlp = XGenMMResamplerMLP(config)

    def forward(
        self,
        latents: torch.Tensor,
        features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Updated latents, shape (tiles, num_latents, hidden_size); arguments as in `XGenMMPerceiverAttention`."""
        latents = latents + self.attention(latents, features, attention_mask, **kwargs)[0]
        return latents + self.mlp(latents)


class XGenMMPerceiverResampler(PreTrainedModel):
    """Learned latents read one tile's features through several layers and are projected to the language model's width.

    Each tile is independent: a batch of tiles may come from any number of images.

    Source: xGen-MM technical report (arXiv:2408.08872), token sampler; layer order as in the released code.
    """

    config: XGenMMResamplerConfig
    main_input_name = "features"
    supports_gradient_checkpointing = True
    _no_split_modules = ["XGenMMResamplerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": XGenMMResamplerLayer, "attentions": XGenMMPerceiverAttention}

    def __init__(self, config: XGenMMResamplerConfig) -> None:
        """Build the resampler; every size in `config` must be set (`XGenMMConfig` fills them)."""
        super().__init__(config)
        self.latents = nn.Parameter(torch.zeros(config.num_latents, config.hidden_size))
        self.layers = nn.ModuleList([XGenMMResamplerLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.output_size)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, XGenMMPerceiverResampler):
            # Unit variance as in the Flamingo perceiver: distinct queries from the first step on.
            init.normal_(module.latents, mean=0.0, std=1.0)

    @merge_with_config_defaults
    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        features: torch.Tensor,
        patch_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Resample the features of every tile.

        Args:
            features: Tower features, shape (tiles, cells, hidden_size).
            patch_attention_mask: Bool, shape (tiles, cells); `False` marks padding cells. `None` means that
                none are padding.
            **kwargs: Passed on to the attention backend.

        Returns:
            `last_hidden_state` holds the image tokens, shape (tiles, num_latents, output_size).
        """
        num_tiles = features.shape[0]
        latents = self.latents.to(features.dtype).unsqueeze(0).expand(num_tiles, -1, -1)
        attention_mask = None
        if patch_attention_mask is not None:
            visible = patch_attention_mask.new_ones(num_tiles, self.config.num_latents)
            attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=latents,
                attention_mask=torch.cat([patch_attention_mask, visible], dim=1),
                # Only the number of keys is read off this argument, so it has no width.
                encoder_hidden_states=features.new_empty(num_tiles, features.shape[1] + self.config.num_latents, 0),
            )
        for layer in self.layers:
            latents = layer(latents, features, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.projection(self.norm(latents)))
