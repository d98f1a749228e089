"""Models, processors and pictures for all tests: small, seeded, and made without a download."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

# Before the first import of a library that reads them. `HF_HUB_OFFLINE=0 pytest -m hub` still reaches the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image

# The rest is imported in the fixtures, so that the tests that need neither torch nor transformers start at once.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor

# Stands among transformers' own tests when it runs: `make test-host-suite`.
collect_ignore = ["host_suite"]

TILE_SIZE = 28
NUM_LATENTS = 4
CELL = 7


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """Tokenizer with the special tokens of the released models."""
    from xgen_mm.tiny.tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def tiny_config(tiny_tokenizer: "PreTrainedTokenizerFast") -> "XGenMMConfig":
    """Two layers of width 32 in every part, 28-pixel tiles on the released grids, 4 latents per tile."""
    from xgen_mm import XGenMMConfig

    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return XGenMMConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": TILE_SIZE, "patch_size": 7, **width},
        resampler_config={
            "num_latents": NUM_LATENTS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
        },
        text_config={
            "model_type": "phi3",
            "vocab_size": len(tiny_tokenizer),
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": tiny_tokenizer.bos_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            **width,
        },
        image_token_id=tiny_tokenizer.convert_tokens_to_ids("<image>"),
    )


@pytest.fixture
def tiny_model(tiny_config: "XGenMMConfig") -> "XGenMMForConditionalGeneration":
    """Random model of `tiny_config` in evaluation mode; a new one for each test."""
    import torch

    from xgen_mm import XGenMMForConditionalGeneration

    torch.manual_seed(0)
    return XGenMMForConditionalGeneration(tiny_config).eval()


@pytest.fixture
def tiny_processor(tiny_config: "XGenMMConfig", tiny_tokenizer: "PreTrainedTokenizerFast") -> "XGenMMProcessor":
    """Processor that fits `tiny_model`, with the default image processor."""
    from xgen_mm import XGenMMImageProcessor, XGenMMProcessor

    image_processor = XGenMMImageProcessor(
        size={"height": TILE_SIZE, "width": TILE_SIZE}, image_grid_pinpoints=tiny_config.image_grid_pinpoints
    )
    return XGenMMProcessor(image_processor, tiny_tokenizer, num_latents=NUM_LATENTS)


@pytest.fixture(scope="session")
def checker_image() -> Callable[[int, int], Image.Image]:
    """Function from height and width to an RGB picture of coloured 7-pixel squares, no two rows or columns alike."""
    return _draw_checker


def _draw_checker(height: int, width: int) -> Image.Image:
    rows, cols = -(-height // CELL), -(-width // CELL)
    colours = np.random.default_rng(0).integers(0, 256, size=(rows, cols, 3), dtype=np.uint8)
    pixels = colours.repeat(CELL, axis=0).repeat(CELL, axis=1)[:height, :width]
    return Image.fromarray(pixels)
