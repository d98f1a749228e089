"""What watches a run and writes its files; the trainers of all stages take the same callbacks."""

from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..recipe import Recipe
from .divergence import StopWhenDiverged
from .run_metrics import RunMetrics
from .run_record import RunRecord
from .sample_generations import SampleGenerations


def make_callbacks(recipe: Recipe, processor: Any) -> list[TrainerCallback]:
    """Callbacks of a run: its record, its figures, its end if it diverges, and sample answers if the recipe has some.

    Args:
        recipe: The run.
        processor: Processor of the model that is trained.

    Returns:
        The second one is `RunMetrics`, whose `attach` has to be called with the trainer; see `watch`.
    """
    metrics = RunMetrics()
    callbacks: list[TrainerCallback] = [RunRecord(recipe), metrics, StopWhenDiverged()]
    if recipe.output.samples is not None:
        as_documents = recipe.stage == "pretrain"
        callbacks.append(
            SampleGenerations(recipe.output.samples, processor, as_documents=as_documents, metrics=metrics)
        )
    return callbacks


class PassCounter(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Counts passes over the data as `epoch`; of a loader without end the host sees one, and none behind a resumption.

    Args:
        per_step: Part of a pass that a step takes; see `passes_per_step`.
    """

    def __init__(self, per_step: float) -> None:
        self.per_step = per_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Correct the host's figure before it is logged."""
        state.epoch = state.global_step * self.per_step


def watch(trainer: Any) -> None:
    """Let the figures of `make_callbacks` reach reports and progress bar; call it before `trainer.train`.

    Args:
        trainer: A trainer that was given these callbacks.
    """
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, RunMetrics):
            callback.attach(trainer)


def close_bar(trainer: Any) -> None:
    """Leave the progress bar's line, which an error would otherwise continue.

    Args:
        trainer: A trainer that has stopped, for whatever reason.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()
