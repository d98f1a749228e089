"""Tiny pretrained-looking parts on disk: vision towers and language models of several families, with random weights.

The chat templates are written for these tests in the manner of each family: line breaks, turn marks, and quirks such
as a missing system role are there, so that extending them to pictures is tried on what is found in practice.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

CLIP_MEAN, CLIP_STD = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
HALF = [0.5, 0.5, 0.5]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 512}

PHI_3_STYLE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Indented, and begins with white space that only the host's block settings remove.
CHATML_STYLE = """  {% if messages[0].role != 'system' %}
{{ '<|im_start|>system\\nBe brief.<|im_end|>' }}
  {% endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and "</think>" in message.content %}
        {%- set answer = message.content.split("</think>")[-1] %}
    {%- else %}
        {%- set answer = message.content %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {{- "<|im_start|>assistant\\n" }}
        {%- generation %}
        {{- answer ~ "<|im_end|>" }}
        {%- endgeneration %}
        {{- "\\n" }}
    {%- else %}
        {{- "<|im_start|>" ~ message.role ~ "\\n" ~ answer ~ "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}"""
HEADER_STYLE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set turn = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set turn = bos_token + turn %}{% endif %}{{ turn }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
TURN_STYLE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (message['content'] | trim) + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Two checkpoints on disk."""

    vision: Path
    text: Path


def build_tokenizer(
    special: list[str], *, chat_template: str | None = None, other: tuple[str, ...] = (), **names: str
) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges; `special` and `other` are added tokens, the latter not special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in other])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, padding_side="right", **names
    )
    wrapped.chat_template = chat_template
    return wrapped


def save_text(directory: Path, model_class: type[PreTrainedModel], config: Any, tokenizer: Any) -> Path:
    torch.manual_seed(1)
    model_class(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_vision(
    directory: Path, model_class: type[PreTrainedModel], config: Any, *, mean: list[float], std: list[float]
) -> Path:
    torch.manual_seed(2)
    model_class(config).save_pretrained(directory)
    vision = getattr(config, "vision_config", config)
    settings = {
        "image_processor_type": "SiglipImageProcessor" if mean == HALF else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return directory


def ids(tokenizer: Any) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def siglip(directory: Path) -> Path:
    """Dual encoder, tiles of 28 pixels and patches of 7."""
    config = SiglipConfig(
        vision_config={**SMALL, "image_size": 28, "patch_size": 7}, text_config={**SMALL, "vocab_size": 40}
    )
    return save_vision(directory, SiglipModel, config, mean=HALF, std=HALF)


def siglip_2(directory: Path) -> Path:
    """Fixed-resolution SigLIP 2 alone: patches of 16, and a tile size that is no multiple of them."""
    config = SiglipVisionConfig(**SMALL, image_size=40, patch_size=16)
    return save_vision(directory, SiglipVisionModel, config, mean=HALF, std=HALF)


def clip(directory: Path) -> Path:
    """Dual encoder with a class token."""
    config = CLIPConfig(
        vision_config={**SMALL, "image_size": 28, "patch_size": 14}, text_config={**SMALL, "vocab_size": 40}
    )
    return save_vision(directory, CLIPModel, config, mean=CLIP_MEAN, std=CLIP_STD)


def dfn(directory: Path) -> Path:
    """Vision half of a CLIP with the fast GELU."""
    config = CLIPVisionConfig(**SMALL, image_size=28, patch_size=7, hidden_act="quick_gelu")
    return save_vision(directory, CLIPVisionModel, config, mean=CLIP_MEAN, std=CLIP_STD)


def dino(directory: Path) -> Path:
    """Tower that never saw text."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, image_size=28, patch_size=7)
    return save_vision(directory, Dinov2Model, config, mean=CLIP_MEAN, std=CLIP_STD)


def phi_3(directory: Path) -> Path:
    """Untied, with spare rows in the token tables."""
    special = ["<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = build_tokenizer(special, chat_template=PHI_3_STYLE, **names)
    config = Phi3Config(**TEXT, vocab_size=len(tokenizer) + 10, **ids(tokenizer))
    return save_text(directory, Phi3ForCausalLM, config, tokenizer)


def llama(directory: Path) -> Path:
    """Untied, no spare row, no padding token."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    tokenizer = build_tokenizer(special, chat_template=HEADER_STYLE, **names)
    config = LlamaConfig(**TEXT, vocab_size=len(tokenizer), **ids(tokenizer))
    return save_text(directory, LlamaForCausalLM, config, tokenizer)


def qwen_3(directory: Path) -> Path:
    """Tied, spare rows for some image tokens only, tags that are no special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = build_tokenizer(special, chat_template=CHATML_STYLE, other=("<think>", "</think>", "    "), **names)
    config = Qwen3Config(**TEXT, head_dim=8, vocab_size=len(tokenizer) + 1, tie_word_embeddings=True, **ids(tokenizer))
    return save_text(directory, Qwen3ForCausalLM, config, tokenizer)


def gemma(directory: Path) -> Path:
    """Tied, scaled embeddings, no system role."""
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = build_tokenizer(special, chat_template=TURN_STYLE, **names)
    config = GemmaConfig(**TEXT, head_dim=8, vocab_size=len(tokenizer), **ids(tokenizer))
    return save_text(directory, GemmaForCausalLM, config, tokenizer)


def mistral(directory: Path) -> Path:
    """Base model without a chat template."""
    tokenizer = build_tokenizer(["<unk>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    config = MistralConfig(**TEXT, vocab_size=len(tokenizer), **ids(tokenizer))
    return save_text(directory, MistralForCausalLM, config, tokenizer)


def phi_1(directory: Path) -> Path:
    """Output layer with a bias; the tokens of the Phi-3 chat format, but no template."""
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer = build_tokenizer(special, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    config = PhiConfig(**TEXT, vocab_size=len(tokenizer), **ids(tokenizer))
    return save_text(directory, PhiForCausalLM, config, tokenizer)


PAIRS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "siglip-phi3": (siglip, phi_3),
    "clip-llama": (clip, llama),
    "siglip2-qwen3": (siglip_2, qwen_3),
    "dfn-gemma": (dfn, gemma),
    "dino-mistral": (dino, mistral),
    "siglip-phi1": (siglip, phi_1),
}


def save_pair(name: str, directory: Path) -> Parts:
    """Write both parts of a pair."""
    vision, text = PAIRS[name]
    return Parts(vision=vision(directory / "vision"), text=text(directory / "text"))
