"""A small model and its inputs as someone makes them who knows the public classes alone."""

from dataclasses import dataclass

import torch
from transformers import Phi3Config, SiglipVisionConfig

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration
from xgen_mm.anyres import count_tiles

TILE, PATCH, LATENTS, VOCABULARY = 16, 4, 4, 60
PAD, BOS, EOS, IMAGE = 0, 1, 2, 5
# Heights and widths in pixels; the first two leave padding on their canvases, the last fills its own.
WIDE, TALL, SQUARE = (12, 40), (50, 12), (32, 32)
FORMS = ("one-tile", "one-tile-per-row", "tiles")


def outside_config(**changes: object) -> XGenMMConfig:
    """Configuration from configuration objects of the parts."""
    width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields: dict[str, object] = {
        "vision_config": SiglipVisionConfig(image_size=TILE, patch_size=PATCH, vision_use_head=False, **width),
        "text_config": Phi3Config(
            vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, num_key_value_heads=2, **width
        ),
        "resampler_config": {
            "num_latents": LATENTS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
        "image_token_id": IMAGE,
    }
    return XGenMMConfig(**(fields | changes))


def outside_model(**changes: object) -> XGenMMForConditionalGeneration:
    """Random model in evaluation mode with weights large enough for its outputs to depend on all inputs."""
    torch.manual_seed(7)
    model = XGenMMForConditionalGeneration(outside_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 if parameter.dim() > 1 else 1.0)
        if model.lm_head.bias is not None:
            model.lm_head.bias.normal_()
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE]
    return model


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One prompt: pictures as (height, width) with their tile counts, then text."""

    sizes: tuple[tuple[int, int], ...]
    num_tiles: tuple[int, ...]
    text: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """Token ids, one per image token."""
        return [BOS, *[IMAGE] * (LATENTS * sum(self.num_tiles)), *self.text]


def make_samples(form: str) -> list[Sample]:
    """Three prompts of one picture each, or of one, two and no pictures with several tiles."""
    texts = ((10, 11, 12), (13,), (14, 15))
    if form != "tiles":
        return [Sample(sizes=(SQUARE,), num_tiles=(1,), text=text) for text in texts]
    pinpoints = outside_config().image_grid_pinpoints or []
    return [
        Sample(
            sizes=sizes,
            num_tiles=tuple(count_tiles(size, pinpoints=pinpoints, tile_size=TILE) for size in sizes),
            text=text,
        )
        for sizes, text in zip(((WIDE,), (SQUARE, TALL), ()), texts, strict=True)
    ]


def make_batch(form: str, *, padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Batch of `make_samples(form)`.

    Args:
        form: `"one-tile"` gives pixels of shape (images, 3, S, S), `"one-tile-per-row"` (images, 1, 3, S, S), both
            without `image_sizes`; `"tiles"` gives (images, tiles, 3, S, S) with them.
        padding_side: Where shorter prompts are padded.
    """
    samples = make_samples(form)
    length = max(len(sample.ids) for sample in samples)
    rows, masks = [], []
    for sample in samples:
        filler = length - len(sample.ids)
        row, mask = sample.ids, [1] * len(sample.ids)
        rows.append([PAD] * filler + row if padding_side == "left" else row + [PAD] * filler)
        masks.append([0] * filler + mask if padding_side == "left" else mask + [0] * filler)
    counts = [count for sample in samples for count in sample.num_tiles]
    pixels = torch.randn(len(counts), max(counts), 3, TILE, TILE, generator=torch.Generator().manual_seed(3))
    for image, count in enumerate(counts):
        pixels[image, count:] = 0
    batch = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks), "pixel_values": pixels}
    if form == "one-tile":
        batch["pixel_values"] = pixels[:, 0]
    if form == "tiles":
        batch["image_sizes"] = torch.tensor([size for sample in samples for size in sample.sizes])
    return batch


def picture_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What describes the pictures of a batch."""
    return {name: batch[name] for name in ("pixel_values", "image_sizes") if name in batch}


def single_sample(batch: dict[str, torch.Tensor], row: int, *, form: str) -> dict[str, torch.Tensor]:
    """One row of a batch on its own, without padding."""
    samples = make_samples(form)
    first = sum(len(sample.sizes) for sample in samples[:row])
    last = first + len(samples[row].sizes)
    input_ids = torch.tensor([samples[row].ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    pictures = {name: value[first:last] for name, value in picture_inputs(batch).items()}
    # A prompt without pictures has no such inputs at all.
    return inputs | (pictures if last > first else {})
