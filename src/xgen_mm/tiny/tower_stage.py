"""Stage one: the vision tower alone learns to name the digit under every patch of a mosaic."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import SiglipVisionModel

from .initialisation import initialise_tower
from .mosaics import MosaicMaker
from .patch_labels import NUM_CLASSES, score_patches, to_pixel_values
from .recipe import TinyRecipe
from .training import Batch, find_phase


class TowerWithPatchHead(nn.Module):
    """A vision tower and a linear layer on its features."""

    def __init__(self, vision_tower: SiglipVisionModel, *, seed: int) -> None:
        """Initialise the tower for quick learning; see `initialisation`."""
        super().__init__()
        initialise_tower(vision_tower, seed=seed)
        self.vision_tower = vision_tower
        self.patch_head = nn.Linear(vision_tower.config.hidden_size, NUM_CLASSES)

    def forward(self, tiles: torch.Tensor, patch_labels: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        """Loss and accuracy.

        Args:
            tiles: Grey tiles, uint8 of shape (tiles, S, S).
            patch_labels: Shape (tiles, patches).
            progress: Share of the run that is done; unused here.
        """
        features = self.vision_tower(pixel_values=to_pixel_values(tiles)).last_hidden_state
        score = score_patches(self.patch_head(features), patch_labels)
        return {"loss": score.loss, "patch_accuracy": score.accuracy}


class MosaicBatches(Dataset):
    """Item i is the i-th batch of mosaic tiles, made from (seed, i)."""

    def __init__(self, pixels: np.ndarray, classes: np.ndarray, *, recipe: TinyRecipe) -> None:
        """Keep the digits; nothing is drawn yet."""
        self._maker = MosaicMaker(pixels, classes)
        self._recipe = recipe

    def __len__(self) -> int:
        """Batches of all processes over the whole stage."""
        return sum(phase.steps for phase in self._recipe.tower.phases) * self._recipe.num_processes

    def __getitem__(self, index: int) -> Batch:
        """Draw batch `index`: `tiles` and `patch_labels`."""
        recipe, model = self._recipe, self._recipe.model
        phases = recipe.tower.phases
        phase = phases[find_phase(index // recipe.num_processes, [phase.steps for phase in phases])]
        rng = np.random.default_rng([recipe.seed, 1, index])
        drawn = [
            self._maker.draw(
                rng,
                tile_size=model.tile_size,
                num_patches=model.tile_size // model.patch_size,
                scale=(phase.scale[0], phase.scale[1]),
            )
            for _ in range(recipe.tower.tiles_per_process)
        ]
        tiles, labels = zip(*drawn, strict=True)
        return {
            "tiles": torch.from_numpy(np.stack(tiles)),
            "patch_labels": torch.from_numpy(np.stack(labels)),
        }
