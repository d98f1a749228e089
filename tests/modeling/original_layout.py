"""Test helper: loads a state dict in the layout of the released v1.5 checkpoints into our model."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from xgen_mm.modeling.configuration_xgen_mm import XGenMMConfig
from xgen_mm.modeling.modeling_xgen_mm import XGenMMForConditionalGeneration

RENAMES = (
    (r"^vlm\.vision_encoder\.head\..*", ""),
    (r"^vlm\.vision_encoder\.", "model.vision_tower."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.0\.to_q\.", r"model.resampler.layers.\1.attention.q_proj."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.0\.to_out\.", r"model.resampler.layers.\1.attention.o_proj."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.0\.", r"model.resampler.layers.\1.attention."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.1\.0\.", r"model.resampler.layers.\1.mlp.norm."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.1\.1\.", r"model.resampler.layers.\1.mlp.up_proj."),
    (r"^vlm\.vision_tokenizer\.layers\.(\d+)\.1\.3\.", r"model.resampler.layers.\1.mlp.down_proj."),
    (r"^vlm\.vision_tokenizer\.", "model.resampler."),
    (r"^vlm\.lang_model\.lm_head\.", "lm_head."),
    (r"^vlm\.lang_model\.model\.", "model.language_model."),
)
EMBED = "model.language_model.embed_tokens"


def rename(key: str) -> str:
    """Our name of one original key; empty for weights that are never used."""
    for pattern, replacement in RENAMES:
        new_key, count = re.subn(pattern, replacement, key)
        if count:
            return new_key
    raise KeyError(key)


def translate_state_dict(original: dict[str, torch.Tensor], tokenizer_length: int) -> dict[str, torch.Tensor]:
    """Original tensors under our names, decoupled tables joined and K/V split."""
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in original.items():
        name = rename(key)
        if name.endswith("attention.to_kv.weight"):
            stem = name.removesuffix("to_kv.weight")
            tensors[stem + "k_proj.weight"], tensors[stem + "v_proj.weight"] = (
                half.clone() for half in tensor.chunk(2)
            )
        elif name:
            tensors[name] = tensor
    joins = (
        (f"{EMBED}.weight", f"{EMBED}.additional_embedding.weight"),
        ("lm_head.weight", "lm_head.additional_fc.weight"),
        ("lm_head.bias", "lm_head.additional_fc.bias"),
    )
    for table, rows in joins:
        tensors[table] = torch.cat([tensors[table][:tokenizer_length], tensors.pop(rows)])
    return tensors


def load_original(directory: Path, **config_changes: object) -> XGenMMForConditionalGeneration:
    """Model of a directory in the original layout, in float32 and eval mode."""
    fields = json.loads((directory / "config.json").read_text())
    tokenizer_length = fields["text_config"]["initial_tokenizer_len"]
    config = XGenMMConfig(**fields)
    for name, value in config_changes.items():
        setattr(config.text_config, name, value)
    model = XGenMMForConditionalGeneration(config).float().eval()
    tensors = translate_state_dict(load_file(directory / "model.safetensors"), tokenizer_length)
    model.load_state_dict(tensors, strict=True)
    return model
