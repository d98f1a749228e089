"""The training-only task that teaches the tower: name the digit under every patch."""

from typing import NamedTuple

import torch
from torch import nn

from .digits import BACKGROUND

NUM_CLASSES = BACKGROUND + 1
# Most patches are paper; with full weight they would drown the digits.
BACKGROUND_WEIGHT = 0.15


class PatchScore(NamedTuple):
    """Weighted cross-entropy, and the share of digit patches that are named right."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def score_patches(logits: torch.Tensor, labels: torch.Tensor) -> PatchScore:
    """Loss and accuracy of patch classes.

    Args:
        logits: Shape (tiles, patches, 11).
        labels: Digit class or 10 for paper, shape (tiles, patches).
    """
    logits, labels = logits.flatten(0, 1), labels.flatten()
    class_weights = torch.ones(NUM_CLASSES, dtype=logits.dtype)
    class_weights[BACKGROUND] = BACKGROUND_WEIGHT
    loss = nn.functional.cross_entropy(logits, labels, weight=class_weights)
    is_digit = labels != BACKGROUND
    hits = (logits.detach().argmax(-1) == labels) & is_digit
    return PatchScore(loss, hits.sum() / is_digit.sum().clamp(min=1))


def to_pixel_values(tiles: torch.Tensor) -> torch.Tensor:
    """Normalise grey uint8 tiles (tiles, S, S) to (tiles, 3, S, S) in [-1, 1], as the image processor does."""
    return tiles.float().div_(127.5).sub_(1.0).unsqueeze(1).expand(-1, 3, -1, -1)
