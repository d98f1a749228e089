"""Loads a checkpoint for a harness."""

from typing import Any

import torch

from ...adapters import load_merged_model, load_merged_processor
from .adapter import ModelAdapter


def load_adapter(
    checkpoint: str,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    **settings: Any,
) -> ModelAdapter:
    """A model that replies to prompts.

    Args:
        checkpoint: Directory or Hub id of a checkpoint or of an adapter.
        device: Torch device; `None` and `auto` take an accelerator if there is one.
        dtype: `auto` keeps the precision of the weights.
        revision: Commit, branch or tag on the Hub.
        **settings: Arguments of `ModelAdapter`.
    """
    model = load_merged_model(checkpoint, dtype=dtype, revision=revision)
    processor = load_merged_processor(checkpoint, revision=revision)
    return ModelAdapter(model.to(_choose(device)), processor, **settings)


def _choose(device: str | torch.device | None) -> torch.device:
    if device is not None and device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
