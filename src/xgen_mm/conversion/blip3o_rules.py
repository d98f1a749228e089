"""How tensors of the released BLIP3-o checkpoints are named and cut, in the terms of `key_rules.py`.

Files of training also hold the tower that gave the targets; files for drawing do not. Source: `docs/blip3o.md`.
"""

from .key_rules import KeyRules, Rename, Rule

RELEASED_TOWER = "model.gen_vision_tower.vision_tower.model."
TOWER = "feature_tower."
RELEASED_TRANSFORMER = "model.dit.model."
TRANSFORMER = "diffusion_transformer."
# A name that only this layout has.
BLIP3O_MARK = "model.latent_queries"

_RELEASED_BLOCK, _TOWER_LAYER = RELEASED_TOWER + "blocks.{i}.", TOWER + "layers.{i}."
_RELEASED_LAYER, _LAYER = RELEASED_TRANSFORMER + "layers.{i}.", TRANSFORMER + "layers.{i}."


def _attention_rules(released: str, ours: str) -> tuple[Rule, ...]:
    names = {"to_q.": "q_proj.", "to_k.": "k_proj.", "to_v.": "v_proj.", "norm_q.": "q_norm.", "norm_k.": "k_norm."}
    return tuple(Rename(_RELEASED_LAYER + released + old, _LAYER + ours + new) for old, new in names.items())


TOWER_RULES: tuple[Rule, ...] = (
    Rename(RELEASED_TOWER + "cls_token", TOWER + "class_embedding"),
    Rename(RELEASED_TOWER + "pos_embed", TOWER + "position_embedding"),
    Rename(RELEASED_TOWER + "patch_embed.proj.", TOWER + "patch_embedding."),
    Rename(_RELEASED_BLOCK, _TOWER_LAYER),
)
TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rename(RELEASED_TRANSFORMER + "patch_embedder.proj.", TRANSFORMER + "patch_embedding."),
    Rename(RELEASED_TRANSFORMER + "caption_projection.linear_1.", TRANSFORMER + "condition_linear_1."),
    Rename(RELEASED_TRANSFORMER + "caption_projection.linear_2.", TRANSFORMER + "condition_linear_2."),
    Rename(
        RELEASED_TRANSFORMER + "time_caption_embed.timestep_embedder.linear_1.",
        TRANSFORMER + "embedding.time_linear_1.",
    ),
    Rename(
        RELEASED_TRANSFORMER + "time_caption_embed.timestep_embedder.linear_2.",
        TRANSFORMER + "embedding.time_linear_2.",
    ),
    Rename(RELEASED_TRANSFORMER + "time_caption_embed.caption_embedder.0.", TRANSFORMER + "embedding.condition_norm."),
    Rename(
        RELEASED_TRANSFORMER + "time_caption_embed.caption_embedder.1.", TRANSFORMER + "embedding.condition_linear."
    ),
    Rename(RELEASED_TRANSFORMER + "norm_out.linear_1.", TRANSFORMER + "output_modulation."),
    Rename(RELEASED_TRANSFORMER + "norm_out.linear_2.", TRANSFORMER + "output_linear."),
    # One output projection for both attentions.
    Rename(_RELEASED_LAYER + "attn2.to_out.0.", _LAYER + "o_proj."),
    *_attention_rules("attn1.", "self_attn."),
    *_attention_rules("attn2.", "cross_attn."),
    Rename(_RELEASED_LAYER + "gate", _LAYER + "cross_gate"),
    Rename(_RELEASED_LAYER + "norm1.linear.", _LAYER + "modulation."),
    Rename(_RELEASED_LAYER + "norm1.norm.", _LAYER + "attention_norm."),
    Rename(_RELEASED_LAYER + "norm1_context.", _LAYER + "condition_norm."),
    Rename(_RELEASED_LAYER + "norm2.", _LAYER + "attention_output_norm."),
    Rename(_RELEASED_LAYER + "ffn_norm1.", _LAYER + "mlp_norm."),
    Rename(_RELEASED_LAYER + "ffn_norm2.", _LAYER + "mlp_output_norm."),
    Rename(_RELEASED_LAYER + "feed_forward.linear_1.", _LAYER + "mlp.gate_proj."),
    Rename(_RELEASED_LAYER + "feed_forward.linear_2.", _LAYER + "mlp.down_proj."),
    Rename(_RELEASED_LAYER + "feed_forward.linear_3.", _LAYER + "mlp.up_proj."),
)
# In the layout that transformers had before version 5.
LANGUAGE_MODEL_RULES: tuple[Rule, ...] = (
    Rename("visual.", "language_model.model.visual."),
    *(
        Rename(f"model.{part}.", f"language_model.model.language_model.{part}.")
        for part in ("embed_tokens", "layers", "norm")
    ),
    Rename("lm_head.", "language_model.lm_head."),
)
BLIP3O = KeyRules(
    (Rename(BLIP3O_MARK, "latent_queries"), *TRANSFORMER_RULES, *TOWER_RULES, *LANGUAGE_MODEL_RULES), prefix=""
)
