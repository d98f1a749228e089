"""The transformer that turns noise into image features step by step, in the light of a condition.

Source: `docs/blip3o.md` has the equations.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from .configuration_blip3o import Blip3oDiffusionConfig

MAX_PERIOD = 10000


@dataclass(frozen=True, slots=True)
class DiffusionCondition:
    """What a condition contributes to every step; it does not change from one step to the next.

    Attributes:
        embedding: Pooled condition, shape (batch, embedding_size).
        keys: Keys of the cross-attention by layer, each of shape (batch, key_heads, length, head_dim).
        values: Values, likewise.
        mask: Bool, shape (batch, 1, 1, length), `False` on what is hidden; `None` hides nothing.
    """

    embedding: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None

    def select_rows(self, rows: torch.Tensor) -> "DiffusionCondition":
        """What the conditions of these rows, shape (rows,), contribute."""
        return DiffusionCondition(
            self.embedding[rows],
            tuple(keys[rows] for keys in self.keys),
            tuple(values[rows] for values in self.values),
            None if self.mask is None else self.mask[rows],
        )


class Blip3oTimeConditionEmbedding(nn.Module):
    """Sums up time and pooled condition in one vector."""

    def __init__(self, config: Blip3oDiffusionConfig) -> None:
        """Build the layers."""
        super().__init__()
        self.frequency_size = config.frequency_size
        self.time_linear_1 = nn.Linear(config.frequency_size, config.embedding_size)
        self.time_linear_2 = nn.Linear(config.embedding_size, config.embedding_size)
        self.condition_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.condition_linear = nn.Linear(config.hidden_size, config.embedding_size)

    def embed_condition(self, condition: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool (batch, length, hidden_size) over what the (batch, length) mask shows."""
        if mask is None:
            pooled = condition.mean(1)
        else:
            weights = mask.to(condition.dtype).unsqueeze(-1)
            pooled = (condition * weights).sum(1) / weights.sum(1)
        return self.condition_linear(self.condition_norm(pooled))

    def forward(self, timestep: torch.Tensor, condition_embedding: torch.Tensor) -> torch.Tensor:
        """Add the embedding of times (batch,), from 0 to 1000, to that of the condition."""
        half = self.frequency_size // 2
        exponents = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angles = timestep.float().unsqueeze(-1) * torch.exp(-math.log(MAX_PERIOD) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(condition_embedding.dtype)
        return self.time_linear_2(F.silu(self.time_linear_1(waves))) + condition_embedding


class Blip3oDiffusionAttention(nn.Module):
    """Attention without an output projection; a layer adds up two of these before it projects."""

    def __init__(self, config: Blip3oDiffusionConfig) -> None:
        """Build the projections."""
        super().__init__()
        self.head_dim = config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.is_grouped = config.num_key_value_heads != config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        # Over all heads together, before they are split.
        self.q_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(key_size, eps=config.norm_eps) if config.use_qk_norm else nn.Identity()

    def queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Queries, shape (batch, heads, cells, head_dim)."""
        return self._split(self.q_norm(self.q_proj(hidden_states)))

    def keys_and_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each of shape (batch, key_heads, length, head_dim)."""
        return self._split(self.k_norm(self.k_proj(hidden_states))), self._split(self.v_proj(hidden_states))

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend; the result has the shape of the queries."""
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=self.is_grouped)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Blip3oDiffusionLayer(GradientCheckpointingLayer):
    """Self- and cross-attention over the same normalized input, then a feed-forward layer.

    Time and condition scale the inputs and gate the outputs of both parts; nothing is shifted.
    """

    def __init__(self, config: Blip3oDiffusionConfig) -> None:
        """Build the parts."""
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.modulation = nn.Linear(config.embedding_size, 4 * size)
        self.attention_norm = nn.RMSNorm(size, eps=eps)
        self.condition_norm = nn.RMSNorm(size, eps=eps)
        self.self_attn = Blip3oDiffusionAttention(config)
        self.cross_attn = Blip3oDiffusionAttention(config)
        self.cross_gate = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.o_proj = nn.Linear(size, size, bias=False)
        self.attention_output_norm = nn.RMSNorm(size, eps=eps)
        self.mlp_norm = nn.RMSNorm(size, eps=eps)
        # Its SiLU rounds once, from float32, whatever the type.
        self.mlp = LlamaMLP(config)
        self.mlp_output_norm = nn.RMSNorm(size, eps=eps)

    def condition_keys_and_values(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the cross-attention, from the projected condition (batch, length, hidden_size)."""
        return self.cross_attn.keys_and_values(self.condition_norm(condition))

    def forward(
        self,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        rotation: torch.Tensor,
        condition_keys: torch.Tensor,
        condition_values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            hidden_states: Cells, shape (batch, cells, hidden_size).
            embedding: Time and pooled condition, activated, shape (batch, embedding_size).
            rotation: See `rotary_table`.
            condition_keys: Keys of the condition, shape (batch, key_heads, length, head_dim).
            condition_values: Values, likewise.
            mask: As in `DiffusionCondition`.
        """
        scale_attention, gate_attention, scale_mlp, gate_mlp = self.modulation(embedding).unsqueeze(1).chunk(4, dim=-1)
        normed = self.attention_norm(hidden_states) * (1 + scale_attention)
        keys, values = self.self_attn.keys_and_values(normed)
        attended = self.self_attn(rotate(self.self_attn.queries(normed), rotation), rotate(keys, rotation), values)
        # Queries are rotated here too, keys are not: the condition has no places.
        crossed = self.cross_attn(
            rotate(self.cross_attn.queries(normed), rotation), condition_keys, condition_values, mask=mask
        )
        attended = attended + self.cross_gate.tanh().view(1, -1, 1, 1) * crossed
        projected = self.o_proj(attended.transpose(1, 2).flatten(2))
        hidden_states = hidden_states + gate_attention.tanh() * self.attention_output_norm(projected)
        normed = self.mlp_norm(hidden_states) * (1 + scale_mlp)
        return hidden_states + gate_mlp.tanh() * self.mlp_output_norm(self.mlp(normed))


class Blip3oDiffusionTransformer(PreTrainedModel):
    """Predicts the velocity from image features to noise at a point between the two.

    Source: BLIP3-o (arXiv:2505.09568), whose transformer is Lumina-Next's (arXiv:2406.18583).
    """

    config: Blip3oDiffusionConfig
    main_input_name = "hidden_states"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Blip3oDiffusionLayer"]

    def __init__(self, config: Blip3oDiffusionConfig) -> None:
        """Build the transformer."""
        super().__init__(config)
        size, patch_area = config.hidden_size, config.patch_size**2
        self.patch_embedding = nn.Linear(patch_area * config.num_channels, size)
        self.condition_linear_1 = nn.Linear(config.condition_size, size)
        self.condition_linear_2 = nn.Linear(size, size)
        self.embedding = Blip3oTimeConditionEmbedding(config)
        self.layers = nn.ModuleList([Blip3oDiffusionLayer(config) for _ in range(config.num_hidden_layers)])
        self.output_modulation = nn.Linear(config.embedding_size, size)
        self.output_norm = nn.LayerNorm(size, eps=1e-6, elementwise_affine=False)
        self.output_linear = nn.Linear(size, patch_area * config.num_channels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # As PyTorch has it, adaptive layers and outputs included: nothing starts at zero but the gates.
        if isinstance(module, Blip3oDiffusionLayer):
            init.zeros_(module.cross_gate)
        elif isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)):
            module.reset_parameters()

    def prepare_condition(
        self, condition: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> DiffusionCondition:
        """Compute what the condition contributes to every step.

        Args:
            condition: Query states of the language model, shape (batch, length, condition_size).
            attention_mask: Shape (batch, length), 0 on what is hidden; `None` hides nothing.
        """
        condition = self.condition_linear_2(F.gelu(self.condition_linear_1(condition), approximate="tanh"))
        pairs = [layer.condition_keys_and_values(condition) for layer in self.layers]
        keys, values = zip(*pairs, strict=True)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        return DiffusionCondition(self.embedding.embed_condition(condition, attention_mask), keys, values, mask)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor | DiffusionCondition,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Predict the velocity.

        Args:
            hidden_states: Noisy feature map, shape (batch, num_channels, height, width).
            timestep: Share of noise times 1000, shape (batch,).
            condition: Query states, shape (batch, length, condition_size), or what `prepare_condition` made of them.
            attention_mask: Shape (batch, length), 0 on states that are hidden; only with states.

        Returns:
            Noise minus features, shape of `hidden_states`.

        Raises:
            ValueError: If there is a mask for what is prepared already.
        """
        if not isinstance(condition, DiffusionCondition):
            condition = self.prepare_condition(condition, attention_mask)
        elif attention_mask is not None:
            raise ValueError("`attention_mask` is given with a prepared condition; give it to `prepare_condition`.")
        patch_size = self.config.patch_size
        height, width = (side // patch_size for side in hidden_states.shape[-2:])
        # (batch, channels, height, p, width, p) -> (batch, height * width, channels * p * p)
        patches = hidden_states.unflatten(3, (width, patch_size)).unflatten(2, (height, patch_size))
        cells = self.patch_embedding(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        embedding = F.silu(self.embedding(timestep, condition.embedding))
        rotation = rotary_table(
            height, width, head_dim=self.config.head_dim, theta=self.config.rope_theta, device=cells.device
        )
        for layer, keys, values in zip(self.layers, condition.keys, condition.values, strict=True):
            cells = layer(cells, embedding, rotation, keys, values, condition.mask)
        cells = self.output_norm(cells) * (1 + self.output_modulation(embedding).unsqueeze(1))
        # The channel is the fastest axis of the output, the slowest of the input.
        outputs = self.output_linear(cells).view(len(cells), height, width, patch_size, patch_size, -1)
        return outputs.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def rotary_table(height: int, width: int, *, head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """Rotations of a grid's cells, those of row and column taking turns along the channels.

    Returns:
        Complex numbers of length 1, shape (height * width, head_dim / 2).
    """
    num_frequencies = head_dim // 4
    exponents = torch.arange(num_frequencies, device=device, dtype=torch.float32) / num_frequencies
    frequencies = theta**-exponents
    rows = torch.arange(height, device=device)[:, None, None] * frequencies
    cols = torch.arange(width, device=device)[None, :, None] * frequencies
    angles = torch.stack(torch.broadcast_tensors(rows, cols), dim=-1).flatten(2).flatten(0, 1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn neighboring pairs of channels of states (batch, heads, cells, head_dim)."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(states.dtype)
