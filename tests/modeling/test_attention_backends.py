"""Attention backends that need a compiler or a GPU; eager and SDPA are compared in `tests/host_checks`."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

import xgen_mm


@pytest.fixture
def inputs() -> BatchFeature:
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((50, 90), (90, 50), (90, 90))]
    processor = AutoProcessor.from_pretrained(xgen_mm.tiny_checkpoint())
    return processor(
        text=["<image>What number?", "<image> and <image>"],
        images=[pictures[:1], pictures[1:]],
        padding=True,
        return_tensors="pt",
    )


def logits_of(inputs: BatchFeature, *, attention: str, device: str, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(
        xgen_mm.tiny_checkpoint(), attn_implementation=attention, dtype=dtype
    )
    with torch.no_grad():
        logits = model.to(device).eval()(**inputs.to(device)).logits
    real: torch.Tensor = logits[inputs["attention_mask"].bool()].float().cpu()
    return real


@pytest.mark.slow
def test_flex_attention_agrees_with_sdpa(inputs: BatchFeature) -> None:
    found, expected = (
        logits_of(inputs, attention=attention, device="cpu", dtype=torch.float32)
        for attention in ("flex_attention", "sdpa")
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_agrees_with_sdpa(inputs: BatchFeature) -> None:
    found, expected = (
        logits_of(inputs, attention=attention, device="cuda", dtype=torch.bfloat16)
        for attention in ("flash_attention_2", "sdpa")
    )
    # Steps of bfloat16 at logits of this size.
    torch.testing.assert_close(found, expected, atol=0.25, rtol=0)
