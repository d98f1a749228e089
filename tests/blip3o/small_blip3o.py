"""Small BLIP3-o parts for tests, in the sizes of the golden files or smaller."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xgen_mm import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oProcessor
from xgen_mm.blip3o.configuration_blip3o import Blip3oDiffusionConfig, feed_forward_size
from xgen_mm.blip3o.diffusion_transformer import Blip3oDiffusionTransformer
from xgen_mm.conversion.blip3o_rules import BLIP3O, RELEASED_TOWER, RELEASED_TRANSFORMER

GOLDEN = Path(__file__).parents[1] / "golden" / "blip3o"
VOCAB_SIZE = 151668
# Turns as Qwen writes them.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """Tensors of one golden file."""
    return load_file(GOLDEN / f"{name}.safetensors")


@cache
def meta() -> dict[str, Any]:
    """Sizes and settings of the golden files."""
    return json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))


def released_weights(name: str) -> dict[str, torch.Tensor]:
    """Golden weights whose names begin so, in float32, without that part."""
    found = golden("weights").items()
    return {key.removeprefix(name): tensor.float() for key, tensor in found if key.startswith(name)}


def load_released(module: torch.nn.Module, released: dict[str, torch.Tensor], *, prefix: str = "") -> None:
    """Fill a module from released tensors by the key rules; nothing may be left over on either side."""
    used: set[str] = set()
    state = {}
    for name, tensor in module.state_dict().items():
        copies = BLIP3O.row_copies(prefix + name, num_rows=tensor.shape[0], first_added_row=0)
        assert copies is not None, f"no rule for {prefix + name}"
        used.update(copy.released for copy in copies)
        state[name] = torch.cat([released[copy.released][copy.released_start :][: copy.num_rows] for copy in copies])
    assert used == set(released)
    module.load_state_dict(state)


def diffusion_config(name: str) -> Blip3oDiffusionConfig:
    """Configuration of a golden diffusion transformer."""
    sizes = meta()["e2e"] if name == "dit_1792" else meta()["dit"][name]
    return Blip3oDiffusionConfig(
        sample_size=sizes["input_size"],
        patch_size=sizes.get("patch_size", 1),
        num_channels=sizes["in_channels"],
        condition_size=sizes["latent_embedding_size"],
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        intermediate_size=feed_forward_size(
            sizes["dim"], multiplier=sizes.get("ffn_dim_multiplier") or 1.0, multiple_of=sizes["multiple_of"]
        ),
        use_qk_norm=sizes.get("qk_norm", True),
    )


def diffusion_transformer(name: str = "dit") -> Blip3oDiffusionTransformer:
    """Golden diffusion transformer."""
    model = Blip3oDiffusionTransformer(diffusion_config(name))
    weights = {RELEASED_TRANSFORMER + key: tensor for key, tensor in released_weights(f"{name}.model.").items()}
    load_released(model, weights, prefix="diffusion_transformer.")
    return model.eval()


def tower_weights() -> dict[str, torch.Tensor]:
    """Golden weights of the feature tower under their released names."""
    return {RELEASED_TOWER + key: tensor for key, tensor in released_weights("gen_vision_tower.").items()}


def tower_fields() -> dict[str, Any]:
    """Sizes of the golden feature tower."""
    sizes = meta()["eva"]["config"]
    return {
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
        "hidden_size": sizes["width"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["width"] // sizes["head_width"],
        "pooling_size": 2,
    }


def text_fields() -> dict[str, Any]:
    """Sizes of the golden language model."""
    sizes = meta()["lm"]
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": sizes["hidden_size"],
            "intermediate_size": sizes["intermediate"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "num_key_value_heads": sizes["kv"],
            "rms_norm_eps": sizes["rms_norm_eps"],
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": sizes["rope_theta"],
                "mrope_section": sizes["mrope_section"],
            },
            "pad_token_id": 151643,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": sizes["vis_hidden"],
            "intermediate_size": sizes["vis_inter"],
            "num_heads": 2,
            "out_hidden_size": sizes["hidden_size"],
            "fullatt_block_indexes": [1],
        },
    }


def released_model_weights(transformer: str) -> dict[str, torch.Tensor]:
    """A whole golden checkpoint under its released names, the feature tower included."""
    rows = golden("weights")
    table = torch.zeros(VOCAB_SIZE, rows["embed_rows.values"].shape[1])
    table[rows["embed_rows.ids"]] = rows["embed_rows.values"].float()
    named = {name: tensor for prefix in ("visual.", "model.") for name, tensor in _named(prefix).items()}
    named |= {RELEASED_TRANSFORMER + key: found for key, found in released_weights(f"{transformer}.model.").items()}
    return named | {"model.embed_tokens.weight": table, "lm_head.weight": table.flip(1)}


def golden_config(transformer: str = "dit", **fields: Any) -> Blip3oConfig:
    """Configuration of the whole golden model."""
    return Blip3oConfig(
        text_config=text_fields(), diffusion_config=diffusion_config(transformer), negative_prompt_ids=[32], **fields
    )


def golden_model(transformer: str = "dit") -> Blip3oForConditionalGeneration:
    """The whole golden model, without feature tower."""
    model = Blip3oForConditionalGeneration(golden_config(transformer))
    load_released(model, released_model_weights(transformer))
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, and Qwen's special tokens under their ids."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_of = {char: byte for byte, char in _byte_level_table().items()}
    vocab = {char: byte_of[char] for char in alphabet}
    special = {
        151643: "<|endoftext|>",
        151644: "<|im_start|>",
        151645: "<|im_end|>",
        151652: "<|vision_start|>",
        151653: "<|vision_end|>",
        151655: "<|image_pad|>",
        151656: "<|video_pad|>",
        151665: "[IMG]",
        151666: "[/IMG]",
        151667: "<image>",
    }
    vocab |= {token: number for number, token in special.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(special.values()),
        chat_template=CHAT_TEMPLATE,
    )


def text_processor(**fields: Any) -> Blip3oProcessor:
    """Processor for a language model that takes no images."""
    return Blip3oProcessor(tokenizer=byte_tokenizer(), **fields)


def _named(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in released_weights(prefix).items()}


def _byte_level_table() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# Ids of the small models below.
START_ID, QUERY_ID, NUM_QUERIES = 508, 509, 4


def small_config(model_type: str = "phi3", **fields: Any) -> Blip3oConfig:
    """Two layers everywhere, 4 queries, maps of 4 x 4 cells of width 8."""
    text_config = {
        "model_type": model_type,
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    diffusion = {"sample_size": 4, "num_channels": 8, "hidden_size": 32, "num_hidden_layers": 2}
    tower = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pooling_size": 2,
    }
    settings: dict[str, Any] = {
        "text_config": text_config,
        "diffusion_config": diffusion | {"num_attention_heads": 2, "intermediate_size": 48},
        "feature_config": tower,
        "pixel_decoder_config": {"image_size": 16, "feature_channels": 8, "hidden_size": 8, "num_inference_steps": 2},
        "num_queries": NUM_QUERIES,
        "image_start_token_id": START_ID,
        "query_token_id": QUERY_ID,
        "negative_prompt_ids": [32],
        "num_image_steps": 3,
    }
    return Blip3oConfig(**settings | fields)


def small_model(model_type: str = "phi3", **fields: Any) -> Blip3oForConditionalGeneration:
    """Random model of `small_config` in evaluation mode, with gates that let the condition through."""
    torch.manual_seed(0)
    model = Blip3oForConditionalGeneration(small_config(model_type, **fields)).eval()
    with torch.no_grad():
        for layer in model.diffusion_transformer.layers:
            layer.cross_gate.fill_(1.0)
    return model


def prompt(*texts: str, padding_side: str = "right") -> dict[str, torch.Tensor]:
    """Model inputs of prompts, a byte a token."""
    rows = [[*text.encode(), START_ID, *[QUERY_ID] * NUM_QUERIES] for text in texts]
    longest = max(len(row) for row in rows)
    ids, masks = [], []
    for row in rows:
        padding, shown = [0] * (longest - len(row)), [1] * len(row)
        ids.append(padding + row if padding_side == "left" else row + padding)
        masks.append(padding + shown if padding_side == "left" else shown + padding)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


def generators(*seeds: int) -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
