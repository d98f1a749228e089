"""Test helper: a directory with everything a released v1.5 directory holds, around the recorded small weights."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from tests.modeling.golden_cases import GOLDEN

CHECKPOINT = GOLDEN / "v1_5" / "checkpoint"
# As in the released tokenizer, 32,000 entries further down.
ADDED = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
    "<pad>",
)
NUM_BASE_TOKENS = 188
END_ID, PAD_ID, IMAGE_ID = 195, 199, 200
GRIDS = [[58, 116], [116, 58], [116, 116], [174, 58], [58, 174]]
SHARD_OF = {"vlm.vision_encoder": 1, "vlm.vision_tokenizer": 2, "vlm.lang_model": 3}
REMOTE_MODULES = ("modeling_xgenmm.py", "image_processing_blip_3.py", "tokenization_xgenmm.py")


def write_released_files(directory: Path, *, grids: list[list[int]] | None = None) -> Path:
    """Write a directory in the released v1.5 layout: three shards, index, tokenizer, image settings, remote code.

    The remote code leaves a file named `RAN` behind if it is ever executed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    write_json(directory / "config.json", config)
    ids = {"bos_token_id": 1, "eos_token_id": NUM_BASE_TOKENS, "pad_token_id": NUM_BASE_TOKENS}
    write_json(directory / "generation_config.json", {"_from_model_config": True, **ids})
    write_json(directory / "preprocessor_config.json", image_settings(grids))
    write_tokenizer(directory)
    write_shards(directory)
    for name in REMOTE_MODULES:
        (directory / name).write_text(f"open({str(directory / 'RAN')!r}, 'w').close()\nraise SystemExit\n")
    return directory


def write_shards(directory: Path) -> None:
    """Write the recorded weights in three shards with an index."""
    tensors = load_file(CHECKPOINT / "model.safetensors")
    weight_map: dict[str, str] = {}
    for prefix, number in SHARD_OF.items():
        name = f"model-{number:05d}-of-00003.safetensors"
        shard = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix + ".")}
        save_file(shard, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_tokenizer(directory: Path) -> None:
    """Write a character tokenizer with the released special tokens and the released way of normalising."""
    characters = ["▁", *(chr(code) for code in range(33, 127)), "\n"]
    tokens = ["<unk>", "<s>", "</s>", *characters]
    tokens += [f"<unused{number}>" for number in range(NUM_BASE_TOKENS - len(tokens))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [AddedToken("<unk>", special=True), AddedToken("<s>", special=True)]
    swallows_spaces = set(ADDED) - {"<|endoftext|>", "<pad>"}
    special += [AddedToken(token, special=True, rstrip=token in swallows_spaces) for token in ADDED]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": "<pad>",
        "padding_side": "left",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    write_json(directory / "tokenizer_config.json", settings)


def image_settings(grids: list[list[int]] | None) -> dict[str, Any]:
    """Content of the original `preprocessor_config.json`, for tiles of 58 pixels; grids are (width, height)."""
    return {
        "auto_map": {"AutoImageProcessor": "image_processing_blip_3.Blip3ImageProcessor"},
        "do_resize": True,
        "grids": grids,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Blip3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "interpolation_mode": "bicubic",
        "resize_mode": "squash",
        "size": [58, 58],
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2))


def weight_names(directory: Path) -> set[str]:
    """Names of the weights that are stored in a directory."""
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            names |= set(handle.keys())
    return names
