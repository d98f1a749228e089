"""Configurations of the published models by name, for checkpoints that come without a `config.json`.

| name | model | status |
|---|---|---|
| `xgen-mm-phi3-mini-r-v1.5` | SigLIP-so400m, resampler, Phi-3-mini (4B) | released (base, instruct and DPO share it) |
| `xgen-mm-phi3-medium-r-v1.5` | the same tower and resampler with Phi-3-medium (14B) | in the report only |
| `xgen-mm-phi3-mini-r-v1` | open_clip ViT-H/14, text-aware resampler, Phi-3-mini | released |

Source: released configurations; xGen-MM technical report (arXiv:2408.08872) for the 14B model.
"""

from typing import Any

from ..modeling.configuration_xgen_mm import XGenMMConfig
from ..v1.configuration_xgen_mm_v1 import XGenMMV1Config

RELEASED_4B, RELEASED_14B, RELEASED_V1 = (
    "xgen-mm-phi3-mini-r-v1.5",
    "xgen-mm-phi3-medium-r-v1.5",
    "xgen-mm-phi3-mini-r-v1",
)
# In the released layout, in which defaults of Phi-3-mini are left out.
_PHI3_MINI: dict[str, Any] = {"model_type": "phi3", "initial_tokenizer_len": 32012, "sliding_window": 2047}
_PHI3_MEDIUM: dict[str, Any] = _PHI3_MINI | {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 10,
}
_FIELDS: dict[str, tuple[type[XGenMMConfig], dict[str, Any]]] = {
    RELEASED_4B: (XGenMMConfig, _PHI3_MINI),
    RELEASED_14B: (XGenMMConfig, _PHI3_MEDIUM),
    RELEASED_V1: (XGenMMV1Config, _PHI3_MINI),
}
PRESETS = tuple(_FIELDS)


def preset_config(name: str) -> XGenMMConfig:
    """Configuration of a published model.

    Args:
        name: One of `PRESETS`.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in _FIELDS:
        raise ValueError(f"There is no preset {name!r}; expected one of {', '.join(PRESETS)}.")
    config_class, text_config = _FIELDS[name]
    return config_class(vision_encoder_config={}, vision_tokenizer_config={}, text_config=dict(text_config))
