"""MLP connector: every patch becomes one image token, on its own."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .connector_config import XGenMMConnectorConfig, plain_errors


@plain_errors
@strict
class XGenMMMLPConfig(XGenMMConnectorConfig):
    """Shape of the MLP connector; the defaults are LLaVA-1.5's `mlp2x_gelu`, and one layer is its `linear`.

    Args:
        hidden_size: Width of the features; `None` takes the vision tower's.
        output_size: Width of the image tokens and of all hidden layers; `None` takes the language model's.
        num_hidden_layers: Number of linear layers, at least 1.
        hidden_act: Activation between two of them (the exact, erf-based GELU).
        initializer_range: Standard deviation of freshly initialised weights.
    """

    model_type = "xgenmm_mlp"

    num_hidden_layers: int = 2
    hidden_act: str = "gelu"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse an MLP without layers."""
        if self.num_hidden_layers < 1:
            raise ValueError(
                f"`resampler_config.num_hidden_layers` is {self.num_hidden_layers}; an MLP connector has at least 1."
            )
        super().__post_init__(**kwargs)

    def num_tokens(self, num_patches: int) -> int:
        """One image token per patch."""
        return num_patches


class XGenMMMLPConnector(PreTrainedModel):
    """Linear layers with an activation between them, applied to every patch.

    Weights are named `layers.0`, `layers.2`, ...: a LLaVA projector's `mm_projector.0`, `mm_projector.2`, ... under
    another prefix (its `linear` one has no number and is `layers.0`).

    Source: LLaVA-1.5 (arXiv:2310.03744), vision-language connector.
    """

    config: XGenMMMLPConfig
    main_input_name = "features"
    # There is no attention, so every implementation of it will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: XGenMMMLPConfig) -> None:
        """Build the layers; both sizes in `config` must be set (`XGenMMConfig` fills them)."""
        super().__init__(config)
        layers: list[nn.Module] = [nn.Linear(config.hidden_size, config.output_size)]
        for _ in range(config.num_hidden_layers - 1):
            layers += [ACT2FN[config.hidden_act], nn.Linear(config.output_size, config.output_size)]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self, features: torch.Tensor, patch_attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Project every patch.

        Args:
            features: Tower features, shape (groups, patches, hidden_size).
            patch_attention_mask: Part of the contract. No patch sees another one, so there is nothing to mask; patches
                of padding become tokens as well.
            **kwargs: Part of the contract.

        Returns:
            `last_hidden_state` holds the image tokens, shape (groups, patches, output_size).
        """
        return BaseModelOutput(last_hidden_state=self.layers(features))
