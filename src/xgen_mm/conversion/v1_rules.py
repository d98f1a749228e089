"""How tensors of the released v1 checkpoints are named and cut, in the terms of `key_rules.py`.

Resampler layers and language model are named as in v1.5. Source: released code of xGen-MM v1 and of open_clip, whose
vision transformer is its tower.
"""

from ..modeling.released_config import RELEASED_PREFIX
from .key_rules import V1_5_RULES, Drop, KeyRules, Rename, Rule, Split

_TOWER = "model.vision_tower."
_BLOCK = "vision_encoder.transformer.resblocks.{i}."
_LAYER = _TOWER + "encoder.layers.{i}."

TOWER_RULES: tuple[Rule, ...] = (
    Drop("vision_encoder.proj", reason="projection of open_clip's image embedding, never applied by this model"),
    Rename("vision_encoder.class_embedding", _TOWER + "embeddings.class_embedding"),
    Rename("vision_encoder.positional_embedding", _TOWER + "embeddings.position_embedding.weight"),
    Rename("vision_encoder.conv1.", _TOWER + "embeddings.patch_embedding."),
    # The host's spelling of the first normalisation lacks a letter.
    Rename("vision_encoder.ln_pre.", _TOWER + "pre_layrnorm."),
    Rename("vision_encoder.ln_post.", _TOWER + "post_layernorm."),
    Rename(_BLOCK + "ln_1.", _LAYER + "layer_norm1."),
    Split(
        _BLOCK + "attn.in_proj_weight",
        into=tuple(f"{_LAYER}self_attn.{part}_proj.weight" for part in ("q", "k", "v")),
    ),
    Split(
        _BLOCK + "attn.in_proj_bias",
        into=tuple(f"{_LAYER}self_attn.{part}_proj.bias" for part in ("q", "k", "v")),
    ),
    Rename(_BLOCK + "attn.out_proj.", _LAYER + "self_attn.out_proj."),
    Rename(_BLOCK + "ln_2.", _LAYER + "layer_norm2."),
    Rename(_BLOCK + "mlp.c_fc.", _LAYER + "mlp.fc1."),
    Rename(_BLOCK + "mlp.c_proj.", _LAYER + "mlp.fc2."),
)
PROMPT_RULES: tuple[Rule, ...] = (
    Rename("vision_tokenizer.text_projection.0.", "model.resampler.text_projection.linear_1."),
    Rename("vision_tokenizer.text_projection.2.", "model.resampler.text_projection.linear_2."),
)


def _is_of_tower(rule: Rule) -> bool:
    return isinstance(rule, (Rename, Drop)) and rule.released.startswith("vision_encoder.")


V1_RULES: tuple[Rule, ...] = (
    *TOWER_RULES,
    *PROMPT_RULES,
    *(rule for rule in V1_5_RULES if not _is_of_tower(rule)),
)
V1 = KeyRules(V1_RULES, prefix=RELEASED_PREFIX)
