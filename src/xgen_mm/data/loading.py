"""A data loader that can be stopped behind any batch, and transformers' `Trainer` on it."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .collators import Batch
from .cursors import Place
from .streams import BatchStream

STATE_FILE = "data_state_rank{rank}.json"


class ResumableLoader:
    """Batches of a stream, read by worker processes.

    `state_dict` says where the last batch that was handed out ended, whatever the workers have read ahead;
    `load_state_dict` into a new loader of the same settings gives the remaining batches. (torchdata's
    `StatefulDataLoader` offers the same for data sets that keep their own state; this one needs nothing but torch.)

    A stream without end is one epoch. One that ends can be iterated again: that is the next epoch.

    Args:
        stream: What to load.
        num_workers: Worker processes; 0 reads in this process.
        prefetch_factor: Batches that each worker reads ahead.
        pin_memory: Whether batches are put where copying to an accelerator is fast.
        finish: What remains to be done to a batch in this process, such as `LevelNormaliser`.
    """

    def __init__(
        self,
        stream: BatchStream,
        *,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        finish: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.finish = finish
        self._epoch = 0
        self._places: dict[int, Place] = {}
        self._next_part = 0
        self._num_batches = 0

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches of the epoch.

        Raises:
            ValueError: If a whole epoch has no batch.
        """
        num_parts = max(1, self.num_workers)
        self.stream.epoch = self._epoch
        self.stream.places = dict(self._places)
        self.stream.first_part = self._next_part
        is_fresh, num_before = not self._places, self._num_batches
        loader = DataLoader(
            self.stream,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            # Torch draws a seed for its workers; from the global generator that would shift the dropout of a run
            # that goes on, where loading begins once more.
            generator=torch.Generator().manual_seed(self._epoch),
            worker_init_fn=_leave_signals_to_the_run,
        )
        for part, place, batch in loader:
            self._places[part] = place
            self._next_part = (part + 1) % num_parts
            self._num_batches += 1
            yield batch if self.finish is None else self.finish(batch)
        if is_fresh and self._num_batches == num_before:
            raise ValueError(
                "The stream gave this process no batch in a whole epoch: none of its records can be used, or they are "
                "fewer than ranks times workers. `xgen-mm data check` shows what is wrong with each."
            )
        self._epoch, self._places, self._next_part = self._epoch + 1, {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the last batch ended; JSON can hold it."""
        return {
            "settings": self._settings(),
            "epoch": self._epoch,
            "next_part": self._next_part,
            "num_batches": self._num_batches,
            "places": {str(part): place for part, place in self._places.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: If this loader's settings differ from those of the state, so that it would give other batches.
        """
        ours = json.loads(json.dumps(self._settings()))
        theirs = json.loads(json.dumps(state["settings"]))
        changed = [
            f"{name} was {theirs.get(name)}, now {ours[name]}" for name in ours if ours[name] != theirs.get(name)
        ]
        if changed:
            raise ValueError(
                f"The data cannot go on: {'; '.join(changed)}. Use the earlier settings, or begin the data anew."
            )
        self._epoch = state["epoch"]
        self._next_part = state["next_part"]
        self._num_batches = state["num_batches"]
        self._places = {int(part): place for part, place in state["places"].items()}

    def statistics(self) -> dict[str, dict[str, int]]:
        """What this rank drew from each data set, in the mixture's unit, and left out by reason.

        Whole windows count, although some of their batches may not have been handed out yet.
        """
        statistics: dict[str, dict[str, int]] = {"drawn": {}, "skipped": {}}
        for place in self._places.values():
            for kind, counts in place["counts"].items():
                for name, count in counts.items():
                    statistics[kind][name] = statistics[kind].get(name, 0) + count
        return statistics

    def _settings(self) -> dict[str, Any]:
        return {**self.stream.description(), "num_workers": self.num_workers}


class DataStateCallback(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Writes the loader's state into every checkpoint, one file per rank; see `train_on`."""

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the state beside the model that was just saved."""
        directory = Path(args.output_dir, f"checkpoint-{state.global_step}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / STATE_FILE.format(rank=self.loader.stream.rank)).write_text(
            json.dumps(self.loader.state_dict()), encoding="utf-8"
        )


def train_on(trainer: Any, loader: ResumableLoader, *, resume_from_checkpoint: str | Path | None = None) -> None:
    """Let transformers' `Trainer` read its training batches from a loader, and save the loader's place with the model.

    Set `max_steps` (a stream has no length) and `ignore_data_skip=True` (the loader knows where to go on; the host's
    way is to read everything again). Without this function the host shards an iterable by handing every n-th batch of
    the whole stream to each process.

    Args:
        trainer: A `Trainer` without `train_dataset`.
        loader: Where its batches come from; each process has its own, with its own rank.
        resume_from_checkpoint: The checkpoint directory that is then given to `trainer.train` as well.

    Raises:
        ValueError: If the trainer's settings do not fit, or the checkpoint was made by other settings of the loader.
        FileNotFoundError: If the checkpoint holds no state of the data.
    """
    arguments = trainer.args
    ranks = (arguments.process_index, arguments.world_size)
    if ranks != (loader.stream.rank, loader.stream.world_size):
        raise ValueError(
            f"This is process {ranks[0]} of {ranks[1]} but the stream was made for rank {loader.stream.rank} of "
            f"{loader.stream.world_size}; build it with `rank=args.process_index, world_size=args.world_size`."
        )
    if not arguments.ignore_data_skip:
        raise ValueError("Set `ignore_data_skip=True`: the loader goes on by itself, and must not be wound forward.")
    if resume_from_checkpoint is not None:
        path = Path(resume_from_checkpoint, STATE_FILE.format(rank=loader.stream.rank))
        if not path.is_file():
            raise FileNotFoundError(
                f"`{path}` is missing: the checkpoint was not written by a trainer on this loader."
            )
        loader.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
    trainer.get_train_dataloader = lambda: loader
    trainer.add_callback(DataStateCallback(loader))


def _leave_signals_to_the_run(worker: int) -> None:
    """Read on when a terminal or a scheduler signals every process of a run: the one that trains ends it in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(item: Any) -> Any:
    return item
