"""Test helper: cases recorded from the original code, expressed in our input contract."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


@dataclass(frozen=True)
class GoldenCase:
    """One recorded case.

    Attributes:
        meta: What was recorded, see `tests/golden/README.md`.
        tensors: Inputs and outputs by name.
    """

    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def image_names(self) -> list[str]:
        """Recorded pictures that the prompt refers to, in prompt order (unused ones are dropped)."""
        image_id = self.meta["specials"]["<image>"]
        names = []
        for row, ids in enumerate(self.tensors["inputs.input_ids"]):
            stems = [f"inputs.pixel_values.{row}.{index}" for index in range(int((ids == image_id).sum()))]
            names.extend(stems)
        return names

    def model_inputs(self, *, num_latents: int, tile_counts: list[int], padding_side: str) -> dict[str, torch.Tensor]:
        """Inputs in our contract: `<image>` expanded, tiles padded to one tensor, sizes as (height, width)."""
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

    def is_anyres(self) -> bool:
        """Whether pictures were cut into tiles."""
        return self.meta["image_mode"].startswith("anyres") and self.meta["case"] != "single_patch_in_anyres"

    def _all_image_names(self) -> list[str]:
        counts = self.meta["images_per_sample"]
        return [f"inputs.pixel_values.{row}.{index}" for row, count in enumerate(counts) for index in range(count)]

    def _expanded_rows(self, *, num_latents: int, tile_counts: list[int]) -> list[list[tuple[int, int]]]:
        """Rows of (id, label) pairs without padding; `<image placeholder>` slots become image tokens too."""
        image_id, placeholder_id = self.meta["specials"]["<image>"], self.meta["specials"]["<image placeholder>"]
        is_base = self.meta["layout"] == "v1.5-base"
        counts = iter(tile_counts)
        ids, mask = self.tensors["inputs.input_ids"], self.tensors["inputs.attention_mask"]
        labels = self.tensors.get("inputs.labels", torch.full_like(ids, -100))
        rows = []
        for row_ids, row_mask, row_labels in zip(ids.tolist(), mask.tolist(), labels.tolist(), strict=True):
            row = []
            for token, keep, label in zip(row_ids, row_mask, row_labels, strict=True):
                if token == image_id:
                    row += [(image_id, -100)] * (1 if is_base else num_latents * next(counts))
                elif is_base and token == placeholder_id:
                    row.append((image_id, -100))
                elif keep:
                    row.append((token, label))
            rows.append(row)
        return rows


def load_case(layout: str, name: str) -> GoldenCase:
    """Read one recorded case of a layout directory (`v1_5`)."""
    with safe_open(GOLDEN / layout / f"{name}.safetensors", "pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
        return GoldenCase(meta=meta, tensors={key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118


def case_names(layout: str) -> list[str]:
    """All recorded cases of a layout."""
    return sorted(path.stem for path in (GOLDEN / layout).glob("*.safetensors"))


def _pad_rows(rows: list[list[tuple[int, int]]], *, pad_id: int, padding_side: str) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    inputs: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        filler = [(pad_id, -100)] * (width - len(row))
        mask = [1] * len(row)
        left = padding_side == "left"
        padded = filler + row if left else row + filler
        inputs["input_ids"].append([token for token, _ in padded])
        inputs["labels"].append([label for _, label in padded])
        inputs["attention_mask"].append([0] * len(filler) + mask if left else mask + [0] * len(filler))
    return {name: torch.tensor(values) for name, values in inputs.items()}
