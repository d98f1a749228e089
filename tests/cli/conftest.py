"""A random model small enough for the command line to load in a moment."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMImageProcessorPil, XGenMMProcessor
from xgen_mm.tiny.tokenizer import build_tokenizer

TILE_SIZE = 28
NUM_LATENTS = 4


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random checkpoint with 28-pixel tiles and four latents."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer()
    config = small_config(tokenizer)
    torch.manual_seed(0)
    XGenMMForConditionalGeneration(config).save_pretrained(directory)
    image_processor = XGenMMImageProcessorPil(
        size={"height": TILE_SIZE, "width": TILE_SIZE}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    XGenMMProcessor(image_processor, tokenizer, num_latents=NUM_LATENTS).save_pretrained(directory)
    return directory


def small_config(tokenizer: PreTrainedTokenizerBase) -> XGenMMConfig:
    """Two layers of width 32 in every part."""
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return XGenMMConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": TILE_SIZE, "patch_size": 7, **width},
        resampler_config={
            "num_latents": NUM_LATENTS,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
        },
        text_config={
            "model_type": "phi3",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **width,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """Grey picture of 25 x 50 pixels (height x width): a canvas of one row and two columns, three tiles."""
    path = tmp_path / "picture.png"
    Image.new("L", (50, 25), 90).save(path)
    return path
