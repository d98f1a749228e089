"""What both training stages share: the trainer, the schedule, the weight average and the record of the run."""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .optimizer import MuonAdamW
from .recipe import OptimRecipe

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
CURVE_FILE = "training_curve.json"
Batch = dict[str, torch.Tensor]


class TinyTrainer(Trainer):
    """Trainer over a data set whose items are whole batches, made on demand from (seed, index).

    The model's `forward` takes one batch and returns a dict with a scalar `loss` and further scalars to log.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.Trainer`."""
        super().__init__(*args, **kwargs)
        # The loss is a mean already; the trainer must not rescale it by token counts.
        self.model_accepts_loss_kwargs = False
        self._sums: dict[str, float] = {}
        self._count = 0

    def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Loss of one batch; its parts are averaged until the next log line."""
        outputs = model(**inputs, progress=self.state.global_step / self.state.max_steps)
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._count += 1
        return outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the averages of the loss parts to the trainer's own line."""
        if self._count and "loss" in logs:
            logs.update({name: round(total / self._count, 4) for name, total in self._sums.items()})
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        # Items are random already; in order, process r of n sees r, r + n, ... and a resumed run goes on exactly.
        return SequentialSampler(train_dataset or self.train_dataset)


class AverageWeights(TrainerCallback):
    """Exponential moving average of the trainable weights, kept next to every checkpoint."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the weights of `model`.

        Args:
            model: The model in training (not its distributed wrapper).
            decay: Share of the old average that is kept per step; smaller during the first steps.
        """
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move the average towards the weights."""
        decay = min(self._decay, (1 + state.global_step) / (10 + state.global_step))
        parameters = [self._parameters[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the average beside the checkpoint and as the stage's latest result."""
        if state.is_world_process_zero:
            for directory in (
                Path(args.output_dir),
                Path(args.output_dir) / f"checkpoint-{state.global_step}",
            ):
                save_file(self.average, directory / EMA_FILE)

    def restore(self, directory: Path) -> None:
        """Continue from the average that was saved in a checkpoint."""
        self.average = load_file(directory / EMA_FILE)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average in place; call it again to undo."""
        for name, average in self.average.items():
            parameter = self._parameters[name]
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)


class RecordCurve(TrainerCallback):
    """Keeps every log line in `training_curve.json`, with the minutes of training so far."""

    def __init__(self) -> None:
        """Start with an empty record."""
        self._start = time.monotonic()
        self._seconds_before = 0.0
        self.rows: list[dict[str, float]] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take over the record of an interrupted run."""
        path = Path(args.output_dir) / CURVE_FILE
        self._start = time.monotonic()
        if state.global_step and path.is_file():
            self.rows = [row for row in json.loads(path.read_text()) if row["step"] <= state.global_step]
            self._seconds_before = 60 * self.rows[-1]["minutes"] if self.rows else 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one row and rewrite the file."""
        if not state.is_world_process_zero:
            return
        minutes = (self._seconds_before + time.monotonic() - self._start) / 60
        self.rows.append({"step": state.global_step, "minutes": round(minutes, 2), **(logs or {})})
        (Path(args.output_dir) / CURVE_FILE).write_text(json.dumps(self.rows, indent=0))


def build_trainer(
    model: nn.Module,
    batches: Dataset,
    *,
    optim: OptimRecipe,
    steps: int,
    seed: int,
    output_dir: Path,
    save_steps: int,
    extra_callbacks: list[TrainerCallback] | None = None,
) -> tuple[TinyTrainer, AverageWeights]:
    """Trainer with optimiser, schedule, weight average and record.

    Args:
        model: Takes one batch and returns loss parts; see `TinyTrainer`.
        batches: Item i is the i-th batch.
        optim: Step sizes and schedule.
        steps: Optimiser steps of the whole stage.
        seed: Seed of the host's own randomness; batches carry their own.
        output_dir: Where checkpoints and the record go.
        save_steps: Steps between checkpoints.
        extra_callbacks: Called after the average has moved.
    """
    optimizer = MuonAdamW(
        model,
        muon_learning_rate=optim.muon_learning_rate,
        adam_learning_rate=optim.adam_learning_rate,
        weight_decay=optim.weight_decay,
        adam_betas=(0.9, optim.adam_beta2),
    )
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        # Named only under `torchrun`: a single process has no group to set up.
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        per_device_train_batch_size=1,
        max_steps=steps,
        max_grad_norm=optim.max_grad_norm,
        logging_steps=25,
        save_steps=save_steps,
        save_total_limit=3,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
        seed=seed,
    )
    average = AverageWeights(model, optim.ema_decay)
    trainer = TinyTrainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=first_item,
        optimizers=(
            optimizer,
            LambdaLR(optimizer, lambda step: schedule(step, steps=steps, optim=optim)),
        ),
        callbacks=[average, RecordCurve(), *(extra_callbacks or [])],
    )
    return trainer, average


def schedule(step: int, *, steps: int, optim: OptimRecipe) -> float:
    """Factor on the step sizes: linear warm-up times a cosine from 1 to `final_fraction` over `steps`."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / optim.warmup_steps) * (optim.final_fraction + (1 - optim.final_fraction) * cosine)


def first_item(items: list[Batch]) -> Batch:
    """Collator for a data set of whole batches."""
    return items[0]


def find_phase(step: int, phase_steps: list[int]) -> int:
    """Index of the phase that `step` falls into; the last phase goes on beyond its end.

    >>> [find_phase(step, [2, 3]) for step in (0, 1, 2, 4, 9)]
    [0, 0, 1, 1, 1]
    """
    end = 0
    for index, count in enumerate(phase_steps):
        end += count
        if step < end:
            return index
    return len(phase_steps) - 1
