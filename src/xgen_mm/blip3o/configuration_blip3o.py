"""Configuration of BLIP3-o models."""

import copy
import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from ..modeling.configuration_xgen_mm import build_sub_config
from .released_config_blip3o import (
    QWEN2_5_VL_7B,
    RELEASED_LANGUAGE_MODELS,
    RELEASED_MODEL_TYPES,
    translate_released_config,
)

MAX_EMBEDDING_SIZE = 1024
# Id of one space in Qwen's tokenizer.
SPACE_ID = 220


@strict
class Blip3oDiffusionConfig(PreTrainedConfig):
    """Shape of the diffusion transformer; the defaults are those of the released models.

    Args:
        sample_size: Cells along one edge of the square feature map that is drawn.
        patch_size: Cells along one edge of a patch, the transformer's unit.
        num_channels: Width of one cell of the feature map.
        condition_size: Width of the condition: the language model's width.
        hidden_size: Width of the transformer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Attention heads per layer; `hidden_size / num_attention_heads` is a multiple of 4.
        num_key_value_heads: Heads of keys and values; each serves consecutive query heads. `None` is as many as query
            heads.
        intermediate_size: Width of the feed-forward layer; `None` is two thirds of four times `hidden_size`, rounded
            up to a multiple of 256.
        hidden_act: Activation of the feed-forward layer.
        use_qk_norm: Whether queries and keys are normalized, all heads of a cell together.
        norm_eps: Epsilon of the normalizations, that of the output excepted.
        rope_theta: Base of the rotary frequencies.
        frequency_size: Width of the sines and cosines that the time is given in.

    Source: `docs/blip3o.md`.
    """

    model_type = "blip3o_diffusion"
    base_config_key = "diffusion_config"

    sample_size: int = 8
    patch_size: int = 1
    num_channels: int = 1792
    condition_size: int = 3584
    hidden_size: int = 1792
    num_hidden_layers: int = 24
    num_attention_heads: int = 28
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "silu"
    # Read by the host's feed-forward layer.
    mlp_bias: bool = False
    use_qk_norm: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    frequency_size: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the sizes that follow from others."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = feed_forward_size(self.hidden_size)
        if self.hidden_size % (4 * self.num_attention_heads) or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size}, `num_attention_heads` {self.num_attention_heads} and "
                f"`num_key_value_heads` {self.num_key_value_heads} do not fit: heads need a width that is a multiple "
                "of 4, and key heads must divide the query heads."
            )
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"`sample_size` is {self.sample_size}; expected a multiple of `patch_size` {self.patch_size}."
            )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_size(self) -> int:
        """Width of the vector that time and condition are summed up in."""
        return min(self.hidden_size, MAX_EMBEDDING_SIZE)


@strict
class Blip3oFeatureTowerConfig(PreTrainedConfig):
    """Shape of the EVA-CLIP tower whose features are drawn; the defaults are those of the released models.

    Args:
        image_size: Edge of the square image in pixels.
        patch_size: Edge of a patch in pixels.
        num_channels: Color channels.
        hidden_size: Width of the features.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Number of layers.
        num_attention_heads: Attention heads per layer.
        hidden_act: Activation of the feed-forward layers (the exact, erf-based GELU as released).
        layer_norm_eps: Epsilon of the normalizations.
        pooling_size: Edge of the square of patches whose features are averaged into one cell of the feature map.
        initializer_range: Standard deviation of freshly initialized weights.

    Source: `docs/blip3o.md`.
    """

    model_type = "blip3o_feature_tower"
    base_config_key = "feature_config"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1792
    intermediate_size: int = 15360
    num_hidden_layers: int = 64
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    pooling_size: int = 4
    initializer_range: float = 0.02

    @property
    def map_size(self) -> int:
        """Cells along one edge of the pooled feature map."""
        return self.image_size // self.patch_size // self.pooling_size


@strict
class Blip3oPixelDecoderConfig(PreTrainedConfig):
    """Shape of the small pixel decoder, which draws pixels from features by flow matching.

    Args:
        image_size: Edge of the square image in pixels, a multiple of 4.
        num_channels: Color channels.
        feature_channels: Width of one cell of the feature map.
        hidden_size: Channels at full resolution; twice and four times as many further down. A multiple of 8.
        num_inference_steps: Steps from noise to pixels, unless `generate` is told otherwise.
    """

    model_type = "blip3o_pixel_decoder"
    base_config_key = "pixel_decoder_config"

    image_size: int = 64
    num_channels: int = 3
    feature_channels: int = 1792
    hidden_size: int = 32
    num_inference_steps: int = 10

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes."""
        if self.image_size % 4 or self.hidden_size % 8:
            raise ValueError(
                f"`image_size` is {self.image_size} and `hidden_size` {self.hidden_size}; expected multiples of 4 "
                "and 8."
            )
        super().__post_init__(**kwargs)


@strict
class Blip3oConfig(PreTrainedConfig):
    """Configuration of `Blip3oForConditionalGeneration`.

    The defaults describe the released 8B model. A `config.json` of the model types `blip3o_qwen` and
    `blip3o_qwen_inference` is read as it is; what is written back is always the layout of this class.

    Args:
        text_config: Any language model transformers knows, with or without image input, as a config or a dict with
            `model_type`; `None` is Qwen2.5-VL-7B.
        diffusion_config: Shape of the diffusion transformer; its `condition_size` is filled in.
        feature_config: Shape of the tower that gives training targets; `None` builds none, which is enough to draw.
        pixel_decoder_config: Shape of the small pixel decoder; `None` builds none.
        num_queries: Learned query vectors behind a prompt.
        image_start_token_id: Id of `[IMG]`, which stands between prompt and queries.
        query_token_id: Id of the placeholder that stands where a query vector goes.
        negative_prompt_ids: Ids of the prompt that pixel decoders with guidance are steered away from, without its
            `[IMG]`; `None` is one space of Qwen's tokenizer as released, and an empty prompt with other language
            models.
        condition_dropout: Share of training samples whose condition is replaced by zeros.
        num_image_steps: Steps from noise to features, unless `generate` is told otherwise.
        image_guidance_scale: Weight of the condition against none when features are drawn, unless `generate` is told
            otherwise.
        decoder_guidance_scale: The same for the pixel decoder; 1 uses none.

    Source: `docs/blip3o.md`.
    """

    model_type = "blip3o"
    sub_configs = {
        "text_config": AutoConfig,
        "diffusion_config": Blip3oDiffusionConfig,
        "feature_config": Blip3oFeatureTowerConfig,
        "pixel_decoder_config": Blip3oPixelDecoderConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    diffusion_config: dict | PreTrainedConfig | None = None
    feature_config: dict | PreTrainedConfig | None = None
    pixel_decoder_config: dict | PreTrainedConfig | None = None
    num_queries: int = 64
    image_start_token_id: int = 151665
    query_token_id: int = 151667
    negative_prompt_ids: list | None = None
    condition_dropout: float = 0.1
    # `guidance_scale` would be taken for a setting of text generation.
    num_image_steps: int = 30
    image_guidance_scale: float = 3.0
    decoder_guidance_scale: float = 3.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Translate the released layout, then build the sub-configurations."""
        if kwargs.get("model_type") in RELEASED_MODEL_TYPES:
            kwargs = self._read_released(kwargs)
        self.text_config = build_sub_config(self.text_config, copy.deepcopy(QWEN2_5_VL_7B), name="text_config")
        condition_size = self.get_text_config().hidden_size
        if not isinstance(self.diffusion_config, PreTrainedConfig):
            self.diffusion_config = Blip3oDiffusionConfig(
                **{"condition_size": condition_size} | dict(self.diffusion_config or {})
            )
        if isinstance(self.feature_config, dict):
            self.feature_config = Blip3oFeatureTowerConfig(**self.feature_config)
        if isinstance(self.pixel_decoder_config, dict):
            self.pixel_decoder_config = Blip3oPixelDecoderConfig(**self.pixel_decoder_config)
        if self.negative_prompt_ids is None:
            self.negative_prompt_ids = [SPACE_ID] if self.text_config.model_type == "qwen2_5_vl" else []
        self._check_values()
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Configuration of the language model without its vision part; arguments as in the host's method."""
        return self.text_config.get_text_config(*args, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the file; arguments and result as in the host's method."""
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in RELEASED_MODEL_TYPES:
            # Otherwise the host warns that the file is one of another architecture.
            config_dict = translate_released_config(config_dict) | {"model_type": cls.model_type}
        return config_dict, unused

    def _read_released(self, fields: dict[str, Any]) -> dict[str, Any]:
        for name, value in translate_released_config(fields).items():
            setattr(self, name, value)
        return {}

    def _check_values(self) -> None:
        diffusion, condition_size = self.diffusion_config, self.get_text_config().hidden_size
        if diffusion.condition_size != condition_size:
            raise ValueError(
                f"`diffusion_config.condition_size` is {diffusion.condition_size} but the language model is "
                f"{condition_size} wide; leave it out to have it filled in."
            )
        features = self.feature_config
        if features is not None and (features.hidden_size, features.map_size) != (
            diffusion.num_channels,
            diffusion.sample_size,
        ):
            raise ValueError(
                f"`feature_config` gives maps of {features.map_size} x {features.map_size} cells of width "
                f"{features.hidden_size}, but `diffusion_config` draws {diffusion.sample_size} x "
                f"{diffusion.sample_size} of width {diffusion.num_channels}; make them equal."
            )
        decoder = self.pixel_decoder_config
        if decoder is not None and decoder.feature_channels != diffusion.num_channels:
            raise ValueError(
                f"`pixel_decoder_config.feature_channels` is {decoder.feature_channels}; expected the width of the "
                f"drawn features, {diffusion.num_channels}."
            )
        for name in ("num_queries", "num_image_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        vocab_size = self.get_text_config().vocab_size
        for name in ("image_start_token_id", "query_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; expected an id below the vocabulary size {vocab_size}."
                )
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"`condition_dropout` is {self.condition_dropout}; expected a share from 0 to below 1.")


def feed_forward_size(hidden_size: int, *, multiplier: float = 1.0, multiple_of: int = 256) -> int:
    """Width of a feed-forward layer of the diffusion transformer.

    >>> feed_forward_size(1792)
    4864
    """
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return -(-width // multiple_of) * multiple_of


def blip3o_preset(name: str) -> Blip3oConfig:
    """Configuration of a released model, for looking at it, or training it anew.

    Args:
        name: `"4B"` or `"8B"`.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in RELEASED_LANGUAGE_MODELS:
        raise ValueError(f"There is no preset {name!r}; expected one of {', '.join(RELEASED_LANGUAGE_MODELS)}.")
    return Blip3oConfig(text_config=copy.deepcopy(RELEASED_LANGUAGE_MODELS[name]))
