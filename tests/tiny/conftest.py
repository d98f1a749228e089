"""A bank of digits drawn with Pillow's own font, and the smallest model that can be trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import PreTrainedTokenizerFast

from xgen_mm.modeling.configuration_xgen_mm import XGenMMConfig
from xgen_mm.tiny.architecture import build_config
from xgen_mm.tiny.digits import GlyphBank
from xgen_mm.tiny.joint_stage import QuestionMaker, XGenMMWithPatchHead
from xgen_mm.tiny.recipe import ModelRecipe, TinyRecipe, load_recipe
from xgen_mm.tiny.tokenizer import build_tokenizer

SMALL_RECIPE = """
seed: 3
num_processes: 1
held_out_digits: 10
model: {tile_size: 84, patch_size: 12, vision_width: 16, vision_layers: 1, vision_heads: 2, vision_mlp: 24,
        num_latents: 2, resampler_layers: 1, resampler_heads: 2, text_width: 24, text_layers: 2, text_heads: 2,
        text_mlp: 32, max_positions: 1024}
tower:
  tiles_per_process: 3
  optim: {muon_learning_rate: 0.01, adam_learning_rate: 0.001, final_fraction: 0.1, warmup_steps: 2}
  phases: [{steps: 2, scale: [0.2, 0.5]}, {steps: 2, scale: [0.14, 0.62]}]
joint:
  tiles_per_process: 10
  patch_loss_weight: [0.4, 0.1]
  optim: {muon_learning_rate: 0.01, adam_learning_rate: 0.001, final_fraction: 0.1, warmup_steps: 2}
  phases:
    - {steps: 2, image_weights: [1.0], single_lengths: [0.5, 0.5], set_lengths: [1.0], text_rows: 1}
    - {steps: 2, image_weights: [0.0, 1.0], single_lengths: [1.0], set_lengths: [0.5, 0.5], text_rows: 1}
"""


@pytest.fixture(scope="session")
def drawn_digits() -> tuple[np.ndarray, np.ndarray]:
    """Light digits on black, uint8 of shape (20, 28, 28), two sizes of each class."""
    pixels = []
    for size in (16, 22):
        font = ImageFont.load_default(size)
        for digit in range(10):
            cell = Image.new("L", (28, 28))
            ImageDraw.Draw(cell).text((7, 2), str(digit), fill=255, font=font)
            pixels.append(np.asarray(cell))
    return np.stack(pixels), np.tile(np.arange(10), 2)


@pytest.fixture(scope="session")
def bank(drawn_digits: tuple[np.ndarray, np.ndarray]) -> GlyphBank:
    return GlyphBank(*drawn_digits)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TinyRecipe:
    path: Path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL_RECIPE, encoding="utf-8")
    return load_recipe(path)


@pytest.fixture(scope="session")
def full_size() -> ModelRecipe:
    return ModelRecipe()


@pytest.fixture
def config(recipe: TinyRecipe, tokenizer: PreTrainedTokenizerFast) -> XGenMMConfig:
    return build_config(recipe.model, tokenizer)


@pytest.fixture
def model(config: XGenMMConfig) -> XGenMMWithPatchHead:
    torch.manual_seed(0)
    return XGenMMWithPatchHead(config).eval()


@pytest.fixture
def maker(bank: GlyphBank, tokenizer: PreTrainedTokenizerFast, config: XGenMMConfig) -> QuestionMaker:
    return QuestionMaker(bank, tokenizer, config)
