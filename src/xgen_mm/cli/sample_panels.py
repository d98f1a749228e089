"""What a contact sheet shows of a training sample. Imports torch and transformers."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from ..anyres import canvas_grid, content_cells
from ..data.checking import Example
from ..data.encoding import Sample
from .contact_sheet import Kind, SamplePanel, Segment, TiledPicture

MAX_PICTURES = 6


def build_panels(example: Example, processor: Any, *, cells_per_tile: int) -> Iterator[SamplePanel]:
    """Tiles and text of one record, as the processor makes them; of a preference pair, both answers.

    Args:
        example: Record and samples.
        processor: Processor of the model.
        cells_per_tile: Feature cells along one edge of a tile.
    """
    provenance = example.record.provenance
    sides = ("chosen", "rejected") if len(example.samples) == 2 else (type(example.record).__name__.lower(),)
    for number, (side, sample) in enumerate(zip(sides, example.samples, strict=True)):
        num_image_tokens = int((sample.input_ids == processor.image_token_id).sum())
        heading = (
            f"{provenance.dataset} · {provenance.key} · {side}: {len(sample)} tokens, {num_image_tokens} of pictures, "
            f"{int((sample.labels[1:] >= 0).sum())} learned"
        )
        if len(sample.pictures) > MAX_PICTURES:
            heading += f", {MAX_PICTURES} of {len(sample.pictures)} pictures shown"
        # Both sides of a pair see the same pictures.
        pictures = [] if number else [picture.load() for picture in sample.pictures[:MAX_PICTURES]]
        yield SamplePanel(
            heading=heading,
            pictures=tuple(_tile(pictures, processor, cells_per_tile=cells_per_tile)),
            segments=tuple(_segments(sample, processor)),
        )


def _tile(pictures: list[Image.Image], processor: Any, *, cells_per_tile: int) -> Iterator[TiledPicture]:
    if not pictures:
        return
    image_processor = processor.image_processor
    pixel_values = image_processor(pictures, return_tensors="pt")["pixel_values"]
    tile_size = image_processor.size["height"]
    has_grid = image_processor.image_aspect_ratio == "anyres"
    for number, (picture, values) in enumerate(zip(pictures, pixel_values, strict=True)):
        tiles = values if values.ndim == 4 else values[None]
        size = (picture.height, picture.width)
        grid = content = None
        num_tiles = 1
        if has_grid:
            grid = canvas_grid(size, pinpoints=image_processor.image_grid_pinpoints, tile_size=tile_size)
            content = content_cells(size, grid=grid, cells_per_tile=cells_per_tile)
            num_tiles = grid[0] * grid[1] + 1
        shape = "1 tile" if grid is None else f"canvas {grid[0]} x {grid[1]} tiles"
        yield TiledPicture(
            original=picture,
            caption=f"picture {number + 1}: {size[0]} x {size[1]} pixels, {shape}",
            tiles=tuple(_to_picture(tile, image_processor) for tile in tiles[:num_tiles]),
            grid=grid,
            content=content,
            cells_per_tile=cells_per_tile,
            num_fillers=len(tiles) - num_tiles,
        )


def _to_picture(tile: torch.Tensor, image_processor: Any) -> Image.Image:
    """A tile of shape (3, S, S) with its normalisation undone."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
    )
    levels = ((tile.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    # (3, S, S) -> (S, S, 3)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _segments(sample: Sample, processor: Any) -> Iterator[Segment]:
    """Stretches of tokens of one kind, with image tokens counted instead of written."""
    image_token_id = processor.image_token_id
    tokens = list(zip(sample.input_ids.tolist(), sample.labels.tolist(), strict=True))
    for kind, group in groupby(tokens, key=lambda token: _kind_of(*token, image_token_id=image_token_id)):
        ids = [token for token, _ in group]
        if kind == "picture":
            yield Segment(f"[{len(ids)} image tokens]", kind)
        else:
            yield Segment(processor.tokenizer.decode(ids, skip_special_tokens=False), kind)


def _kind_of(token: int, label: int, *, image_token_id: int) -> Kind:
    if token == image_token_id:
        return "picture"
    return "learned" if label >= 0 else "read"
