"""Cases recorded from the original code, expressed in our input contract.

A case is a safetensors file with inputs and outputs of one run of the original code on a small checkpoint, and a
header entry `meta` that describes it. `tests/golden/README.md` explains every tensor.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import ConversionError
from ..modeling.output_layer import IGNORED_LABEL


@dataclass(frozen=True)
class RecordedCase:
    """One recorded case.

    Attributes:
        meta: What was recorded.
        tensors: Inputs and outputs by name.
    """

    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def image_names(self) -> list[str]:
        """Recorded pictures that the prompt refers to, in prompt order (unused ones are dropped)."""
        image_id = self.meta["specials"]["<image>"]
        names = []
        for row, ids in enumerate(self.tensors["inputs.input_ids"]):
            names += [f"inputs.pixel_values.{row}.{index}" for index in range(int((ids == image_id).sum()))]
        return names

    def is_anyres(self) -> bool:
        """Whether pictures were cut into tiles."""
        mode: str = self.meta["image_mode"]
        return mode.startswith("anyres") and self.meta["case"] != "single_patch_in_anyres"

    def tile_counts(self, *, tile_grouping: str) -> list[int]:
        """Groups of image tokens that each picture of the prompt costs."""
        if not self.is_anyres() or tile_grouping == "image":
            return [1] * len(self.image_names())
        return [len(self.tensors[name]) for name in self.image_names()]

    def model_inputs(self, *, num_latents: int, tile_counts: list[int], padding_side: str) -> dict[str, torch.Tensor]:
        """Inputs in our contract: `<image>` expanded, tiles padded to one tensor, sizes as (height, width).

        Args:
            num_latents: Image tokens per tile.
            tile_counts: Groups of image tokens per picture, in prompt order.
            padding_side: `"left"` for generation, `"right"` otherwise.
        """
        rows = self._expanded_rows(num_latents=num_latents, tile_counts=tile_counts)
        inputs = _pad_rows(rows, pad_id=self.meta["specials"]["<pad>"], padding_side=padding_side)
        names = self.image_names()
        if names:
            tiles = [self.tensors[name].float() for name in names]
            tiles = [tile.unsqueeze(0) if tile.dim() == 3 else tile for tile in tiles]
            longest = max(len(tile) for tile in tiles)
            inputs["pixel_values"] = torch.stack(
                [torch.cat([tile, tile.new_zeros(longest - len(tile), *tile.shape[1:])]) for tile in tiles]
            )
        if names and self.is_anyres():
            # Recorded as (width, height) of all pictures, unused ones last in their sample.
            used = [name in names for name in self._all_image_names()]
            inputs["image_sizes"] = self.tensors["inputs.image_sizes"][used].flip(-1).long()
        return inputs

    def position_arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Positions that the original counted, where they are not the usual ones.

        The v1 code fills shorter pictures up inside the sequence. The filler is masked and holds nothing, so what is
        left of it is a jump in the positions behind the picture.

        Args:
            inputs: What `model_inputs` gave.

        Returns:
            `position_ids`, shape (batch, sequence), or nothing.
        """
        if self.meta["layout"] != "v1":
            return {}
        is_image = inputs["input_ids"] == self.meta["specials"]["<image>"]
        num_missing = is_image.sum(1).max() - is_image.sum(1)
        is_behind = (is_image.cumsum(1) == is_image.sum(1, keepdim=True)) & ~is_image
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return {"position_ids": positions + num_missing[:, None] * is_behind}

    def _all_image_names(self) -> list[str]:
        counts = self.meta["images_per_sample"]
        return [f"inputs.pixel_values.{row}.{index}" for row, count in enumerate(counts) for index in range(count)]

    def _expanded_rows(self, *, num_latents: int, tile_counts: list[int]) -> list[list[tuple[int, int]]]:
        """Rows of (id, label) pairs without padding; `<image placeholder>` slots become image tokens too."""
        image_id, placeholder_id = self.meta["specials"]["<image>"], self.meta["specials"]["<image placeholder>"]
        is_base = self.meta["layout"] == "v1.5-base"
        counts = iter(tile_counts)
        ids, mask = self.tensors["inputs.input_ids"], self.tensors["inputs.attention_mask"]
        labels = self.tensors.get("inputs.labels", torch.full_like(ids, IGNORED_LABEL))
        rows = []
        for row_ids, row_mask, row_labels in zip(ids.tolist(), mask.tolist(), labels.tolist(), strict=True):
            row: list[tuple[int, int]] = []
            for token, keep, label in zip(row_ids, row_mask, row_labels, strict=True):
                if token == image_id:
                    row += [(image_id, IGNORED_LABEL)] * (1 if is_base else num_latents * next(counts))
                elif is_base and token == placeholder_id:
                    row.append((image_id, IGNORED_LABEL))
                elif keep:
                    row.append((token, label))
            rows.append(row)
        return rows


def read_case(path: Path) -> RecordedCase:
    """Read one recorded case.

    Raises:
        ConversionError: If the file is not a recorded case.
    """
    try:
        with safe_open(path, "pt") as handle:
            meta = json.loads((handle.metadata() or {})["meta"])
            names = list(handle.keys())
            return RecordedCase(meta=meta, tensors={name: handle.get_tensor(name) for name in names})
    except (OSError, KeyError, ValueError) as error:
        raise ConversionError(f"{path} is not a recorded case ({error}).") from error


def _pad_rows(rows: list[list[tuple[int, int]]], *, pad_id: int, padding_side: str) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    inputs: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        filler = [(pad_id, IGNORED_LABEL)] * (width - len(row))
        mask = [1] * len(row)
        left = padding_side == "left"
        padded = filler + row if left else row + filler
        inputs["input_ids"].append([token for token, _ in padded])
        inputs["labels"].append([label for _, label in padded])
        inputs["attention_mask"].append([0] * len(filler) + mask if left else mask + [0] * len(filler))
    return {name: torch.tensor(values) for name, values in inputs.items()}
