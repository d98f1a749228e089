"""Loads a checkpoint for a harness."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ...checkpoint_config import check_model_type
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
        checkpoint: Directory or Hub id.
        device: Torch device; `None` and `auto` take an accelerator if there is one.
        dtype: `auto` keeps the precision of the weights.
        revision: Commit, branch or tag on the Hub.
        **settings: Arguments of `ModelAdapter`.
    """
    check_model_type(checkpoint, revision=revision)
    processor = AutoProcessor.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=dtype, revision=revision, trust_remote_code=False
    )
    return ModelAdapter(model.to(_choose(device)), processor, **settings)


def _choose(device: str | torch.device | None) -> torch.device:
    if device is not None and device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
