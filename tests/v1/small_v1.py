"""Test helper: a small random v1 model and inputs for it."""

import torch

from xgen_mm import XGenMMV1Config, XGenMMV1ForConditionalGeneration

IMAGE, PAD, EOS = 5, 3, 2
TILE = 28
LATENTS = 4
WIDE, SQUARE, TALL = (20, 60), (40, 40), (84, 20)  # 1 x 3, 2 x 2 and 3 x 1 tiles: 4, 5 and 4 with the thumbnail


def small_config(**changes: object) -> XGenMMV1Config:
    """Two layers of width 32 in every part."""
    fields: dict[str, object] = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": 7,
        },
        "resampler_config": {
            "num_latents": LATENTS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
        "text_config": {
            "vocab_size": 60,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": EOS,
        },
        "image_token_id": IMAGE,
        "prompt_pad_token_id": PAD,
    }
    return XGenMMV1Config(**(fields | changes))


def build(**changes: object) -> XGenMMV1ForConditionalGeneration:
    """Random model in evaluation mode whose answers depend on its inputs."""
    torch.manual_seed(11)
    model = XGenMMV1ForConditionalGeneration(small_config(**changes)).eval()
    # Larger weights than the default initialisation, so that answers depend on pictures and prompts.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12.0 if parameter.dim() > 1 else 1.0)
    model.generation_config.eos_token_id = None
    # Random weights would emit the placeholder itself now and then.
    model.generation_config.suppress_tokens = [IMAGE]
    return model


def make_images(sizes: list[tuple[int, int]], counts: list[int], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tiles in the contract's layout; filler is zero."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(sizes), max(counts), 3, TILE, TILE, generator=generator)
    for image, count in enumerate(counts):
        pixels[image, count:] = 0
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids; an int is the number of tiles of a picture."""
    return [token for part in parts for token in ([IMAGE] * part * LATENTS if isinstance(part, int) else part)]


def left_pad(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows of ids as a batch for generation."""
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
