"""The small packaged model, which really reads pictures, and prompts for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

import xgen_mm
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor

PICTURES = Path(xgen_mm.__file__).parent / "cli" / "demo_images"
Encode = Callable[..., BatchFeature]
Answers = Callable[..., list[str]]


def picture(number: int) -> Image.Image:
    """A picture of this number."""
    return Image.open(PICTURES / f"{number}.png")


def question(*parts: Any) -> list[dict[str, Any]]:
    """One user turn; integers stand for pictures of that number."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": picture(part)}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


ONE = question(86, "What number is in the image?")
TWO = question("Image 1: ", 86, "Image 2: ", 392, "Which image shows the largest number?")


@pytest.fixture(scope="session")
def model() -> XGenMMForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint()).eval()


@pytest.fixture(scope="session")
def processor() -> XGenMMProcessor:
    return AutoProcessor.from_pretrained(xgen_mm.tiny_checkpoint())


@pytest.fixture(scope="session")
def encode(processor: XGenMMProcessor) -> Encode:
    """Encode conversations as one batch."""

    def encode_all(*chats: list[dict[str, Any]]) -> BatchFeature:
        return processor.apply_chat_template(
            list(chats),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    return encode_all


@pytest.fixture(scope="session")
def answers(model: XGenMMForConditionalGeneration, processor: XGenMMProcessor) -> Answers:
    """Generate and decode what is new."""

    def generate(inputs: BatchFeature, **arguments: Any) -> list[str]:
        ids = model.generate(**inputs, **({"max_new_tokens": 8} | arguments))
        texts: list[str] = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    return generate


@pytest.fixture
def tower_calls(model: XGenMMForConditionalGeneration) -> Any:
    """Tiles that went through the vision tower, one entry per call."""
    calls: list[int] = []

    def count(_: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        calls.append(len(args[0] if args else kwargs["pixel_values"]))

    handle = model.model.vision_tower.register_forward_pre_hook(count, with_kwargs=True)
    yield calls
    handle.remove()
