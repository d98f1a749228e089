"""Image placeholders are never targets: they are taken out of labels, before anyone counts what is left.

Collators that copy `input_ids` into `labels`, TRL's among them, leave the placeholders in. The model masks them in
every loss of its own. What a loss is divided by under gradient accumulation is counted by the host's Trainer before
the model sees a batch, and some losses (label smoothing, TRL's own) are computed outside the model; so the Trainer of
a model of ours masks them in its batches.
"""

import sys
from collections.abc import MutableMapping
from functools import cache, wraps
from typing import Any

import torch

from .configuration_xgen_mm import XGenMMConfig
from .output_layer import IGNORED_LABEL

LABEL_NAMES = ("labels", "shift_labels")


def mask_placeholders(labels: torch.Tensor, *, image_token_id: int, ignore_index: int = IGNORED_LABEL) -> torch.Tensor:
    """Labels without image placeholders.

    Args:
        labels: Target ids, of any shape.
        image_token_id: Id of the placeholder.
        ignore_index: Label without loss.

    Returns:
        A copy with `ignore_index` in place of each placeholder.
    """
    return labels.masked_fill(labels == image_token_id, ignore_index)


class AcceptsLossArguments:
    """Class attribute `accepts_loss_kwargs`: `True`, as the loss takes `num_items_in_batch`.

    The host's Trainer asks for it when it is built around a model, which is the moment from which on its batches
    need masking; a program without a Trainer never imports one.
    """

    def __get__(self, model: Any, owner: type | None = None) -> bool:
        """See the class."""
        trainers = sys.modules.get("transformers.trainer")
        if trainers is not None:
            _mask_batches_of(trainers.Trainer)
        return True


@cache
def _mask_batches_of(trainer_class: Any) -> None:
    """Have a Trainer class mask placeholders before it counts or uses the labels of a batch."""
    count, prepare = trainer_class._get_num_items_in_batch, trainer_class._prepare_inputs

    @wraps(count)
    def count_masked(self: Any, batch_samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        for batch in batch_samples:
            _mask_batch(self.model, batch)
        return count(self, batch_samples, *args, **kwargs)

    # Evaluation takes the labels for its metrics before it counts.
    @wraps(prepare)
    def prepare_masked(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        _mask_batch(self.model, inputs)
        return prepare(self, inputs, *args, **kwargs)

    trainer_class._get_num_items_in_batch, trainer_class._prepare_inputs = count_masked, prepare_masked


def _mask_batch(model: Any, batch: Any) -> None:
    config = getattr(model, "config", None)
    if not isinstance(config, XGenMMConfig) or not isinstance(batch, MutableMapping):
        return
    for name in LABEL_NAMES:
        if isinstance(batch.get(name), torch.Tensor):
            batch[name] = mask_placeholders(batch[name], image_token_id=config.image_token_id)
