"""Configuration of the v1 models."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict

from ..connectors.connector_config import plain_errors
from ..connectors.connector_table import DEFAULT_MODEL_TYPE
from ..modeling.configuration_xgen_mm import XGenMMConfig, build_sub_config
from ..modeling.released_config import RELEASED_KEYS
from .released_config_v1 import CLIP_VIT_H, FIRST_MODEL_TYPE, is_v1_config, translate_released_v1_config


@plain_errors
@strict
class XGenMMV1Config(XGenMMConfig):
    """Configuration of `XGenMMV1Model` and `XGenMMV1ForConditionalGeneration`.

    The defaults describe the released v1 4B models. The released `config.json` is read as it is (see
    `released_config_v1.py`); what is written back is always the layout of this class. Fields that are not listed here
    are those of `XGenMMConfig`.

    Args:
        vision_config: A CLIP vision tower, as a config or a dict; `None` is ViT-H/14 at 378 pixels.
        max_prompt_tokens: How many tokens of the prompt the resampler reads; `<image>` counts as one token.
        prompt_pad_token_id: Id that fills prompts up to the longest one of a batch before the resampler reads them;
            the `<pad>` of the released tokenizer.
        mask_prompt_padding: Whether the resampler ignores that filler. The released code does not, so that an answer
            depends a little on what else is in the batch; `True` makes answers independent of the batch.
    """

    model_type = architecture = "xgenmm_v1"

    max_prompt_tokens: int = 256
    prompt_pad_token_id: int = 32011
    mask_prompt_padding: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Translate the released layout, then build the sub-configurations."""
        # Files of the release carry the model type of other classes.
        kwargs.pop("model_type", None)
        released = {key: kwargs.pop(key) for key in RELEASED_KEYS if key in kwargs}
        if released:
            kwargs.pop("auto_map", None)
            for name, value in translate_released_v1_config(released, text_config=self.text_config).items():
                setattr(self, name, value)
        self.vision_config = build_sub_config(self.vision_config, CLIP_VIT_H, name="vision_config")
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the file; arguments and result as in the host's method."""
        config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if is_v1_config(config_dict, source=str(pretrained_model_name_or_path)):
            # Otherwise the host warns that the file is one of another architecture.
            config_dict["model_type"] = cls.model_type
        return config_dict, unused

    @classmethod
    def reads_released(cls, config_dict: dict[str, Any], *, source: str | None) -> bool:
        """Whether a released `config.json` is one of v1; see `is_v1_config`."""
        return is_v1_config(config_dict, source=source)

    def _check_values(self) -> None:
        super()._check_values()
        if self.vision_config.model_type != CLIP_VIT_H["model_type"]:
            raise ValueError(
                f"`vision_config.model_type` is {self.vision_config.model_type!r}; the v1 architecture takes "
                f"{CLIP_VIT_H['model_type']!r}. Use `XGenMMConfig` for other towers."
            )
        if self.resampler_config.model_type != DEFAULT_MODEL_TYPE:
            raise ValueError(
                f"`resampler_config.model_type` is {self.resampler_config.model_type!r}; the v1 architecture knows "
                f"{DEFAULT_MODEL_TYPE!r} alone. Leave it out for that one."
            )
        if self.tile_grouping == "image":
            raise ValueError(
                "`tile_grouping` is 'image', which needs padding cells to be masked; the v1 resampler masks none. Use "
                "'raster_chunks' as released, or 'tile'."
            )
        if self.max_prompt_tokens < 1:
            raise ValueError(f"`max_prompt_tokens` is {self.max_prompt_tokens}; the resampler reads at least 1 token.")
        if not 0 <= self.prompt_pad_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`prompt_pad_token_id` is {self.prompt_pad_token_id}; expected an id below the vocabulary size "
                f"{self.text_config.vocab_size}."
            )


class XGenMMV1FirstReleaseConfig(XGenMMV1Config):
    """Reads the `config.json` of the first upload, which names its model type `blip_3`, as `XGenMMV1Config`."""

    model_type = FIRST_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build an `XGenMMV1Config`; arguments and result as in the host's method."""
        return XGenMMV1Config.from_dict(config_dict, **kwargs)
