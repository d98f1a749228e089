"""A run from its recipe to a checkpoint that loads through the Auto classes."""

import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerState, set_seed

from ..adapters import load_merged_model, merge_adapter
from ..output_directory import DirectoryLock, is_full_disk, replaced_directory, unfinished_path
from .arguments import training_arguments
from .batches import count_steps, make_loader, make_mixture, passes_per_step
from .checkpoints import (
    PREFIX,
    WholeCheckpoints,
    complete_checkpoints,
    full_disk_error,
    last_checkpoint,
    step_of,
)
from .interruption import RunInterrupted, StopOnSignal
from .monitoring.callbacks import PassCounter, close_bar, make_callbacks, watch
from .monitoring.run_record import RECIPE_FILE, is_failed_start
from .recipe import LIKELIHOOD_STAGES, Recipe, load_recipe
from .recipe_sections import RecipeError
from .stages.likelihood import build_pretrainer, build_sft_trainer
from .stages.parts import TrainerParts
from .starting_point import checkpoint_of, load_model, load_processor
from .trainable import kept_precision, prepare_model

logger = logging.getLogger(__name__)

# Stages that compare or judge answers: module and function that builds the trainer, imported with TRL when needed.
ANSWER_STAGES = {
    "dpo": ("preferences", "build_dpo_trainer"),
    "kto": ("preferences", "build_kto_trainer"),
    "grpo": ("grpo", "build_grpo_trainer"),
}
FINAL, ADAPTER = "final", "adapter"
# What may be another when a run goes on: where results are shown, not what is computed.
FREE_ON_RESUME = ("output",)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run left.

    Attributes:
        directory: Directory of the run.
        final: The trained model, with its processor.
        adapter: Adapters alone, if some were trained.
        steps: Optimiser steps, those before a resumption included.
        loss: Mean loss of these steps.
        arguments: Settings of the trainer, as plain values.
    """

    directory: Path
    final: Path
    adapter: Path | None
    steps: int
    loss: float
    arguments: dict[str, Any]


def train(recipe: Recipe, *, resume: bool = False) -> RunResult:
    """Carry out a run.

    Started by `torchrun` or `accelerate launch`, every process calls this.

    Args:
        recipe: The run.
        resume: Go on from the last complete checkpoint in `output: dir`.

    Raises:
        RecipeError: If the recipe cannot be run, or the directory holds another run.
        DivergedError: If the loss is no number any more.
        CheckpointError: If there is nothing to go on from, or no room for a checkpoint.
        DirectoryInUseError: If another process is writing `output: dir`.
        RunInterrupted: If SIGINT or SIGTERM ended it, behind a whole checkpoint. A second one ends it at once.
    """
    _check_trackers(recipe)
    state = _start_processes()
    directory = Path(recipe.output.dir)
    with DirectoryLock(directory) if state.is_main_process else nullcontext():
        resume_from = _prepare_directory(recipe, directory, resume=resume, is_main=state.is_main_process)
        state.wait_for_everyone()
        trainer = _build(recipe, state=state, resume_from=resume_from)
        watch(trainer)
        # Transformers cannot write the optimiser of a model that it has divided itself.
        stop = StopOnSignal(saves=recipe.distributed.fsdp_size is None)
        trainer.add_callback(stop)
        trainer.add_callback(WholeCheckpoints(recipe.output.keep))
        try:
            with stop.listening():
                final, adapter = _train(recipe, trainer, stop=stop, resume_from=resume_from)
        except RunInterrupted:
            raise
        except KeyboardInterrupt:
            if complete := complete_checkpoints(directory):
                logger.warning("Stopped; `%s` is complete, and `--resume` goes on from it.", complete[-1])
            raise
        except Exception as error:
            if is_full_disk(error):
                raise full_disk_error(error, directory) from error
            raise
    return RunResult(
        directory=directory,
        final=final,
        adapter=adapter,
        steps=trainer.state.global_step,
        loss=_mean_loss(trainer.state.log_history),
        # The host's own number counts only where there is no number of steps.
        arguments=trainer.args.to_dict() | {"num_train_epochs": trainer.state.epoch},
    )


def _train(
    recipe: Recipe, trainer: Trainer, *, stop: StopOnSignal, resume_from: Path | None
) -> tuple[Path, Path | None]:
    """Train and write the result, which is returned as by `_save_final`."""
    if resume_from is not None and 0 < trainer.args.max_steps <= step_of(resume_from):
        # Nothing is left but to write the result; the host looks at the number of steps behind a step only.
        trainer.get_train_dataloader = list
    try:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    finally:
        close_bar(trainer)
    directory = Path(recipe.output.dir)
    if stop.stopped_by is not None:
        raise RunInterrupted(_describe_stop(directory, trainer.state, stop), stop.stopped_by)
    return _save_final(recipe, trainer, directory)


def _describe_stop(directory: Path, state: TrainerState, stop: StopOnSignal) -> str:
    name = signal.Signals(stop.stopped_by or 0).name
    where = f"{name} ended the run behind step {state.global_step} of {state.max_steps}"
    if not stop.saves:
        return f"{where}; with `distributed: fsdp_size` there is no checkpoint to go on from, so begin it anew."
    checkpoint = directory / f"{PREFIX}{state.global_step}"
    return f"{where}; `{checkpoint}` is complete. Go on with: xgen-mm train {directory / RECIPE_FILE} --resume"


def is_main_process() -> bool:
    """Whether this process is the one that reports."""
    return bool(PartialState().is_main_process)


def _check_trackers(recipe: Recipe) -> None:
    """Refuse to show metrics with a package that is not there, before anything is loaded."""
    missing = [name for name in recipe.output.report_to if name != "none" and find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"`output: report_to` has {missing}, not installed here: `pip install {' '.join(missing)}`, or `--set "
            "output.report_to=none`; `metrics.json` and the curves are written in any case."
        )


def _start_processes() -> PartialState:
    """Join the other processes, if there are some; the model may have to be divided while it is loaded."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _prepare_directory(recipe: Recipe, directory: Path, *, resume: bool, is_main: bool) -> Path | None:
    """Refuse a directory that holds something, or find where an earlier run stopped in it."""
    earlier = directory / RECIPE_FILE
    if resume:
        checkpoint = last_checkpoint(directory)
        _check_same_run(recipe, load_recipe(earlier), directory)
        return checkpoint
    if is_main and directory.exists() and not is_failed_start(directory):
        raise RecipeError(
            f"`output: dir` is `{directory}`, which is not empty. Go on with the run in it (`--resume`), or name "
            "another directory (`--set output.dir=...`)."
        )
    return None


def _check_same_run(recipe: Recipe, earlier: Recipe, directory: Path) -> None:
    changed = [
        name
        for name in recipe.__dataclass_fields__
        if name not in FREE_ON_RESUME and getattr(recipe, name) != getattr(earlier, name)
    ]
    if changed:
        raise RecipeError(
            f"`{directory}` was begun with other values of {changed}; a run goes on as it was begun. Use "
            f"`{directory / RECIPE_FILE}`, or start another run."
        )


def _build(recipe: Recipe, *, state: PartialState, resume_from: Path | None) -> Trainer:
    set_seed(recipe.seed)
    processor = load_processor(recipe)
    callbacks = make_callbacks(recipe, processor)
    if recipe.stage not in LIKELIHOOD_STAGES:
        arguments = training_arguments(recipe, world_size=state.num_processes, max_steps=recipe.optim.max_steps)
        model = prepare_model(recipe, load_model(recipe))
        module, function = ANSWER_STAGES[recipe.stage]
        build_on_answers = getattr(import_module(f"{__package__}.stages.{module}"), function)
        parts = TrainerParts(recipe=recipe, model=model, processor=processor, arguments=arguments, callbacks=callbacks)
        with kept_precision(model):
            trainer: Trainer = build_on_answers(parts)
        return trainer
    mixture = make_mixture(recipe, processor)
    max_steps = count_steps(recipe, mixture)
    callbacks.append(PassCounter(passes_per_step(recipe, mixture, max_steps=max_steps)))
    arguments = training_arguments(recipe, world_size=state.num_processes, max_steps=max_steps)
    loader = make_loader(
        recipe,
        processor,
        mixture=mixture,
        rank=state.process_index,
        world_size=state.num_processes,
        always_pictures=_is_sharded(recipe) and state.num_processes > 1,
    )
    model = prepare_model(recipe, load_model(recipe))
    parts = TrainerParts(recipe=recipe, model=model, processor=processor, arguments=arguments, callbacks=callbacks)
    build = build_pretrainer if recipe.stage == "pretrain" else build_sft_trainer
    with kept_precision(model):
        return build(parts, loader=loader, resume_from=resume_from)


def _mean_loss(history: list[dict[str, Any]]) -> float:
    """Mean over all steps; each line has the mean since the one before, and those before a resumption are kept."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / last if last else math.nan


def _is_sharded(recipe: Recipe) -> bool:
    """Whether weights are spread over processes, by transformers itself or by the launcher."""
    return recipe.distributed.fsdp_size is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _save_final(recipe: Recipe, trainer: Trainer, directory: Path) -> tuple[Path, Path | None]:
    """Write the trained model; all processes take part where it is spread over them."""
    final = directory / FINAL
    if recipe.model.lora is None:
        with _whole(trainer, final) as partial:
            trainer.save_model(str(partial))
            _add_state(trainer, partial)
        return final, None
    adapter = directory / ADAPTER
    with _whole(trainer, adapter) as partial:
        trainer.save_model(str(partial))
        _add_state(trainer, partial)
    if trainer.is_world_process_zero() and recipe.output.merge_lora:
        # Read anew: quantised or spread weights cannot be merged where they are.
        section = recipe.model
        base = load_merged_model(
            checkpoint_of(section), revision=section.revision, dtype=getattr(torch, section.dtype)
        )
        base.config.image_grid_pinpoints = trainer.model.config.image_grid_pinpoints
        with replaced_directory(final) as partial:
            merge_adapter(base, adapter).save_pretrained(partial)
            trainer.processing_class.save_pretrained(partial)
            _add_state(trainer, partial)
    trainer.accelerator.wait_for_everyone()
    return final if recipe.output.merge_lora else adapter, adapter


@contextmanager
def _whole(trainer: Trainer, directory: Path) -> Iterator[Path]:
    """Where all processes write a directory that appears, or replaces an older one, when they are done."""
    wait = trainer.accelerator.wait_for_everyone
    with replaced_directory(directory) if trainer.is_world_process_zero() else nullcontext():
        wait()
        yield unfinished_path(directory)
        wait()
    wait()


def _add_state(trainer: Trainer, directory: Path) -> None:
    """Keep the history of the run with its weights; take away a pickle that nobody should have to open."""
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(directory / "trainer_state.json"))
        (directory / "training_args.bin").unlink(missing_ok=True)
        # PEFT's blank form of a model card, in whose place ours is written.
        (directory / "README.md").unlink(missing_ok=True)
