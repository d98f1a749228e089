"""Configurations of the published models by name, for looking at them, training them anew, and bare weight files.

| name | model | weights |
|---|---|---|
| `xgen-mm-phi3-mini-base-r-v1.5` | SigLIP-so400m, resampler, Phi-3-mini (4B), pre-trained | released |
| `xgen-mm-phi3-mini-instruct-singleimg-r-v1.5` | the same, tuned on single pictures | released |
| `xgen-mm-phi3-mini-instruct-interleave-r-v1.5` | the same, tuned on several pictures | released |
| `xgen-mm-phi3-mini-instruct-dpo-r-v1.5` | the same, aligned with DPO | released |
| `xgen-mm-phi3-mini-instruct-r-v1` | open_clip ViT-H/14, text-aware resampler, Phi-3-mini | released |
| `xgen-mm-phi3-medium-r-v1.5` | v1.5 with Phi-3-medium (14B) | never released |
| `xgen-mm-phi3-mini-dfn-r-v1.5` | v1.5 with the DFN ViT-H/14 tower at 378 pixels | never released |

The pre-trained v1 model (`xgen-mm-phi3-mini-base-r-v1`) is missing: its configuration was not at hand.

Source: released configurations; xGen-MM technical report (arXiv:2408.08872) for the models that were not released. The
names of those are this package's own.
"""

from collections.abc import Callable
from typing import Any

from ..modeling.configuration_xgen_mm import RELEASED_GRIDS, XGenMMConfig
from ..v1.configuration_xgen_mm_v1 import XGenMMV1Config
from ..v1.released_config_v1 import CLIP_VIT_H

RELEASED_4B, RELEASED_14B, RELEASED_V1, DFN_4B = (
    "xgen-mm-phi3-mini-instruct-interleave-r-v1.5",
    "xgen-mm-phi3-medium-r-v1.5",
    "xgen-mm-phi3-mini-instruct-r-v1",
    "xgen-mm-phi3-mini-dfn-r-v1.5",
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


def _v1_5(text_config: dict[str, Any]) -> XGenMMConfig:
    return XGenMMConfig(vision_encoder_config={}, vision_tokenizer_config={}, text_config=dict(text_config))


def _v1_5_dfn() -> XGenMMConfig:
    text_config: Any = _v1_5(_PHI3_MINI).text_config
    tile: Any = CLIP_VIT_H["image_size"]
    return XGenMMConfig(
        vision_config=dict(CLIP_VIT_H),
        text_config=text_config,
        image_grid_pinpoints=[[rows * tile, cols * tile] for rows, cols in RELEASED_GRIDS],
    )


def _v1() -> XGenMMConfig:
    return XGenMMV1Config(vision_encoder_config={}, vision_tokenizer_config={}, text_config=dict(_PHI3_MINI))


_BUILDERS: dict[str, Callable[[], XGenMMConfig]] = {
    "xgen-mm-phi3-mini-base-r-v1.5": lambda: _v1_5(_PHI3_MINI),
    "xgen-mm-phi3-mini-instruct-singleimg-r-v1.5": lambda: _v1_5(_PHI3_MINI),
    RELEASED_4B: lambda: _v1_5(_PHI3_MINI),
    "xgen-mm-phi3-mini-instruct-dpo-r-v1.5": lambda: _v1_5(_PHI3_MINI),
    RELEASED_V1: _v1,
    RELEASED_14B: lambda: _v1_5(_PHI3_MEDIUM),
    DFN_4B: _v1_5_dfn,
}
PRESETS = tuple(_BUILDERS)


def preset_config(name: str) -> XGenMMConfig:
    """Configuration of a published model.

    Args:
        name: One of `PRESETS`.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"There is no preset {name!r}; expected one of {', '.join(PRESETS)}.")
    return _BUILDERS[name]()
