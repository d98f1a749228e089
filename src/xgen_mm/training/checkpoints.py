"""Checkpoints that are whole: a list of their files is written last, and only checkpoints that match it count."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import XGenMMError

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MARKER = "complete.json"


class CheckpointError(XGenMMError):
    """A checkpoint that could not be written, or one to go on from that is not there."""


def is_complete(checkpoint: Path) -> bool:
    """Whether all files are there that the checkpoint had when it was finished, in their full size."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def complete_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    # Up to 18 digits as they are written here; other scripts have digits too, which no run writes.
    found = [path for path in directory.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}[0-9]{{1,18}}", path.name)]
    return [path for path in sorted(found, key=step_of) if is_complete(path)]


def last_checkpoint(directory: Path) -> Path:
    """The checkpoint to go on from.

    Raises:
        CheckpointError: If there is none.
    """
    complete = complete_checkpoints(directory)
    if not complete:
        raise CheckpointError(
            f"`{directory}` holds no complete checkpoint to go on from. Start without `--resume`, into a new "
            "`output.dir` or this one emptied."
        )
    for path in directory.glob(f"{PREFIX}*"):
        if path not in complete:
            logger.warning("`%s` was not finished and is left alone; it is written anew in its turn.", path.name)
    return complete[-1]


def step_of(checkpoint: Path) -> int:
    """Step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Marks checkpoints as complete when every process has written its part, then removes old ones.

    It has to come after all callbacks that write into checkpoints.

    Args:
        keep: Complete checkpoints that are kept.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say beforehand that a checkpoint will not fit, judged by the last one.

        Raises:
            CheckpointError: If it will not.
        """
        complete = (
            complete_checkpoints(Path(args.output_dir)) if control.should_save and state.is_world_process_zero else []
        )
        if not complete:
            return
        needed = sum(path.stat().st_size for path in complete[-1].rglob("*") if path.is_file())
        free = shutil.disk_usage(args.output_dir).free
        if free < needed:
            raise CheckpointError(
                f"The checkpoint of step {state.global_step} needs about {needed:,} bytes, and {free:,} are free. "
                f"`{complete[-1]}` is complete: free some space and go on with `--resume`."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the marker and remove what is too many."""
        if dist.is_initialized():
            dist.barrier()
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir)
        checkpoint = directory / f"{PREFIX}{state.global_step}"
        sizes = {
            str(path.relative_to(checkpoint)): path.stat().st_size
            for path in sorted(checkpoint.rglob("*"))
            if path.is_file() and path.name != MARKER
        }
        for name in sizes:
            _flush(checkpoint / name)
        partial = checkpoint / f"{MARKER}.partial"
        partial.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        _flush(partial)
        partial.replace(checkpoint / MARKER)
        for old in complete_checkpoints(directory)[: -self.keep]:
            # Without its marker it counts no longer, however far removing it gets.
            (old / MARKER).unlink()
            shutil.rmtree(old)


def full_disk_error(error: BaseException, directory: Path) -> CheckpointError:
    """What to tell whoever ran out of room while a checkpoint was written."""
    complete = complete_checkpoints(directory)
    rest = (
        f"`{complete[-1]}` is complete: free some space and go on with `--resume`."
        if complete
        else ("There is no complete checkpoint yet; free some space and start again.")
    )
    # Libraries write several lines, the first of which says what went wrong.
    reason = " ".join(str(error).split("\n", 1)[0].split())
    return CheckpointError(f"The run could not be written to `{directory}`: {reason}. {rest}")


def _flush(path: Path) -> None:
    """Make sure that a file is on the disk and not only in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
