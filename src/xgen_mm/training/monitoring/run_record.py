"""Files that say how a run came about: the whole recipe, the environment and the revision of the code."""

import importlib.metadata
import logging
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ... import __version__
from ...output_directory import LOCK_NAME
from ..recipe import Recipe, dump_recipe

logger = logging.getLogger(__name__)

RECIPE_FILE = "resolved_recipe.yaml"
ENVIRONMENT_FILE = "environment.txt"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
_GIT_SECONDS = 10
# The last two are those of TensorBoard, which begins a file of its own each time, and of a directory's lock.
FILES_OF_A_START = {RECIPE_FILE, ENVIRONMENT_FILE, "runs", LOCK_NAME}


class RunRecord(TrainerCallback):  # type: ignore[misc]  # the host is taken as untyped
    """Writes `resolved_recipe.yaml` and `environment.txt` when training begins; a resumed run adds to the latter.

    Args:
        recipe: The run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write both files."""
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        if not state.global_step:
            (directory / RECIPE_FILE).write_text(dump_recipe(self.recipe), encoding="utf-8")
        begun = "resumed" if state.global_step else "started"
        block = f"[{begun} at step {state.global_step}]\n" + describe_environment(args)
        with (directory / ENVIRONMENT_FILE).open("a" if state.global_step else "w", encoding="utf-8") as file:
            file.write(block + "\n")


def is_failed_start(directory: Path) -> bool:
    """Whether a directory holds nothing but what a run writes before its first step; it may be empty."""
    return directory.is_dir() and {path.name for path in directory.iterdir()} <= FILES_OF_A_START


def describe_environment(args: TrainingArguments | None = None) -> str:
    """Versions, devices and code revision, one per line. Names of users, machines and directories are left out.

    Args:
        args: Settings of the trainer, for devices and processes.
    """
    versions = {"xgen-mm": __version__}
    for name in (*PACKAGES, "bitsandbytes", "flash_attn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with the build, which its wheel does not always name
    lines = [
        f"time: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"system: {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        *(f"{name}: {version}" for name, version in versions.items()),
        f"threads: {torch.get_num_threads()}",
    ]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        lines.append(f"accelerators: {', '.join(names)} (CUDA {torch.version.cuda or torch.version.hip})")
    if args is not None:
        lines.append(f"processes: {args.world_size}")
        lines.append(f"device: {args.device.type}")
    return "\n".join([*lines, f"revision: {git_revision(Path.cwd())}", ""])


def git_revision(directory: Path) -> str:
    """Commit of a working directory and whether it has changes; what is the case where there is none."""
    git = shutil.which("git")
    if git is None:
        return "unknown (no git)"
    answers = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain")):
        try:
            done = subprocess.run(
                [git, *command], cwd=directory, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown (no git repository)"
        answers.append(done.stdout.strip())
    commit, changes = answers
    return f"{commit} with uncommitted changes" if changes else commit
