"""A run that is killed goes on as if nothing had happened, and never from half a checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xgen_mm.training.checkpoints import (
    MARKER,
    CheckpointError,
    complete_checkpoints,
    is_complete,
    is_full_disk,
    last_checkpoint,
)
from xgen_mm.training.recipe import Recipe, dump_recipe
from xgen_mm.training.recipe_sections import RecipeError
from xgen_mm.training.run import train

from .conftest import MakeRecipe

STEPS = 12
# Runs a recipe as the command line does, so that it can be killed.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from xgen_mm.cli.main import main; sys.exit(main(sys.argv[1:]))",
    "train",
]
MAX_FILE_BYTES = 20_000
# A limit on the size of files stands in for a full disk: writing fails half-way through a file.
WITH_SMALL_FILES = (
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MAX_FILE_BYTES}, {MAX_FILE_BYTES}));"
    "from xgen_mm.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def recipe_of_a_run(make_recipe: MakeRecipe, directory: Path, *changes: str) -> Recipe:
    """Dropout, accumulation, packed rows and adapters: everything that has a state."""
    return make_recipe(
        "optim.learning_rate=0.01",
        "optim.optimizer=adamw_torch",
        "optim.schedule=cosine",
        f"optim.max_steps={STEPS}",
        "batches.grouping=packed",
        "batches.row_length=160",
        "text.max_tokens=160",
        "model.lora={rank: 2, alpha: 4, dropout: 0.2}",
        "model.trainable=[resampler]",
        "output.save_steps=2",
        f"output.dir={directory}",
        *changes,
    )


def history_of(directory: Path) -> list[dict[str, float]]:
    history = json.loads((directory / "final" / "trainer_state.json").read_text())["log_history"]
    return [{name: entry[name] for name in ("step", "loss", "learning_rate")} for entry in history if "loss" in entry]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of floats have the same order in every process, so that runs in two of them can be compared exactly."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def write(recipe: Recipe, path: Path) -> Path:
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", [pytest.param("pretrain", marks=pytest.mark.slow), "sft"])
def test_killed_run_goes_on_to_the_same_losses_and_the_same_weights(
    make_recipe: MakeRecipe, tmp_path: Path, stage: str
) -> None:
    whole = recipe_of_a_run(make_recipe, tmp_path / "whole", f"stage={stage}")
    train(whole)
    killed = recipe_of_a_run(make_recipe, tmp_path / "killed", f"stage={stage}")
    path = write(killed, tmp_path / "killed.yaml")
    process = subprocess.Popen(
        [*COMMAND, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Somewhere after a first checkpoint; where exactly is left to chance, which is the point.
    deadline = time.monotonic() + 120
    while not complete_checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert complete_checkpoints(tmp_path / "killed")

    result = train(killed, resume=True)
    assert result.steps == STEPS
    assert history_of(tmp_path / "killed") == history_of(tmp_path / "whole")
    found = load_file(tmp_path / "killed" / "final" / "model.safetensors")
    expected = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_written_checkpoint_is_never_picked_up(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=4"))
    newest, older = tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-2"
    assert last_checkpoint(tmp_path / "run") == newest
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-10])
    assert not is_complete(newest)
    assert last_checkpoint(tmp_path / "run") == older
    (older / MARKER).unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        last_checkpoint(tmp_path / "run")


def test_old_checkpoints_go_and_a_finished_run_only_writes_its_result_again(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=6", "output.keep=2")
    whole = train(recipe)
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-6"]
    weights = load_file(whole.final / "model.safetensors")
    again = train(recipe, resume=True)
    assert (again.steps, again.loss) == (6, whole.loss)
    found = load_file(again.final / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_full_disk_leaves_the_checkpoint_before_it_whole_and_the_run_goes_on_from_there(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=6")
    train(recipe_of_a_run(make_recipe, tmp_path / "whole", "optim.max_steps=6"))
    save = torch.save

    def fill_disk(content: object, path: str, *args: object, **kwargs: object) -> None:
        if path.endswith("checkpoint-4/optimizer.pt"):
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr("torch.save", fill_disk)
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-2` is complete: free some space"):
        train(recipe)
    monkeypatch.setattr("torch.save", save)
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    train(recipe, resume=True)
    assert history_of(tmp_path / "run") == history_of(tmp_path / "whole")


def test_full_disk_ends_the_command_with_one_clear_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = write(recipe_of_a_run(make_recipe, tmp_path / "run"), tmp_path / "run.yaml")
    result = subprocess.run(
        [sys.executable, "-c", WITH_SMALL_FILES, "train", str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert "could not be written" in result.stderr
    assert "free some space and start again" in result.stderr
    assert "Traceback" not in result.stderr


def test_full_disk_is_seen_behind_the_errors_of_libraries() -> None:
    hidden = RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0")
    assert is_full_disk(hidden)
    outer = RuntimeError("saving failed")
    outer.__cause__ = OSError(28, "No space left on device")
    assert is_full_disk(outer)
    assert not is_full_disk(RuntimeError("shape mismatch"))


def test_checkpoint_that_will_not_fit_is_refused_beforehand(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("xgen_mm.training.checkpoints.shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"1 are free.*checkpoint-2"):
        train(recipe_of_a_run(make_recipe, tmp_path / "run"))
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_directory_of_another_run_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2"))
    with pytest.raises(RecipeError, match="not empty"):
        train(recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2"))
    with pytest.raises(RecipeError, match=r"other values of \['optim'\]"):
        train(recipe_of_a_run(make_recipe, tmp_path / "run"), resume=True)


def test_resuming_without_a_checkpoint_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train(recipe_of_a_run(make_recipe, tmp_path / "empty"), resume=True)
