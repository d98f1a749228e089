"""A run that is killed goes on as if nothing had happened, and never from half a checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from xgen_mm.cli.main import main
from xgen_mm.output_directory import DirectoryInUseError, DirectoryLock
from xgen_mm.training import run
from xgen_mm.training.checkpoints import (
    MARKER,
    CheckpointError,
    complete_checkpoints,
    is_complete,
    last_checkpoint,
)
from xgen_mm.training.interruption import RunInterrupted
from xgen_mm.training.monitoring.callbacks import make_callbacks
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


class Send(TrainerCallback):
    """Sends this process a signal during a step, once or several times."""

    def __init__(self, number: signal.Signals, *, step: int, times: int = 1) -> None:
        self.number, self.step, self.times = number, step, times

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def send(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, step: int, times: int = 1) -> None:
    sender = Send(number, step=step, times=times)
    monkeypatch.setattr(run, "make_callbacks", lambda *arguments: [*make_callbacks(*arguments), sender])


def test_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on_bit_by_bit(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe_of_a_run(make_recipe, tmp_path / "whole"))
    recipe = recipe_of_a_run(make_recipe, tmp_path / "run")
    send(monkeypatch, signal.SIGTERM, step=5)
    assert main(["train", str(write(recipe, tmp_path / "run.yaml"))]) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    # Every second step is saved, so this one is on account of the signal.
    checkpoint = tmp_path / "run" / "checkpoint-5"
    assert f"SIGTERM ended the run behind step 5 of {STEPS}; `{checkpoint}` is complete." in told
    assert f"Go on with: xgen-mm train {tmp_path / 'run' / 'resolved_recipe.yaml'} --resume" in told
    assert last_checkpoint(tmp_path / "run") == checkpoint
    assert not (tmp_path / "run" / "final").exists()
    send(monkeypatch, signal.SIGINT, step=8)
    with pytest.raises(RunInterrupted, match="SIGINT ended the run behind step 8"):
        train(recipe, resume=True)
    monkeypatch.undo()
    assert main(["train", str(tmp_path / "run" / "resolved_recipe.yaml"), "--resume"]) == 0
    assert history_of(tmp_path / "run") == history_of(tmp_path / "whole")
    found = load_file(tmp_path / "run" / "final" / "model.safetensors")
    expected = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [json.loads((tmp_path / name / "metrics.json").read_text())["rows"] for name in ("run", "whole")]
    plain = [[{**row, "timing": None} for row in found] for found in rows]
    assert plain[0] == plain[1]


def test_second_signal_ends_a_run_at_once(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, signal.SIGINT, step=3, times=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(recipe_of_a_run(make_recipe, tmp_path / "run"))
    assert not isinstance(caught.value, RunInterrupted)
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signal_in_the_last_step_lets_the_run_end(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, signal.SIGTERM, step=2)
    assert train(recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2")).final.is_dir()


def test_signal_that_is_ignored_stays_ignored(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, signal.SIGINT, step=1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2")).steps == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_run_that_is_being_written_is_left_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2")
    refused = pytest.raises(DirectoryInUseError, match=f"written by another run: process {os.getpid()} on host")
    with DirectoryLock(tmp_path / "run"), refused:
        train(recipe)
    train(recipe)
    refused = pytest.raises(DirectoryInUseError, match="written by another run")
    with DirectoryLock(tmp_path / "run"), refused:
        train(recipe, resume=True)


def test_result_appears_whole_or_not_at_all(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_a_run(make_recipe, tmp_path / "run", "optim.max_steps=2", "model.lora=null")

    def fill_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.trainer_callback.TrainerState.save_to_json", fill_disk)
    recipe_without_checkpoints = replace(recipe, output=replace(recipe.output, save_steps=None))
    with pytest.raises(CheckpointError, match=r"could not be written to `\S+run`: .*No space left"):
        train(recipe_without_checkpoints)
    assert not list((tmp_path / "run").glob("final*"))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        (["optim.max_steps=null", "optim.epochs=3"], 3.0),
        (["optim.max_steps=10", "batches.grouping=fixed", "batches.row_length=null", "text.max_tokens=null"], 2.0),
    ],
    ids=["epochs", "steps"],
)
def test_passes_over_the_data_are_counted(
    make_recipe: MakeRecipe, tmp_path: Path, changes: list[str], passes: float
) -> None:
    result = train(recipe_of_a_run(make_recipe, tmp_path / "run", "output.save_steps=null", *changes))
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert rows[-1]["epoch"] == pytest.approx(passes)
    assert json.loads((result.final / "trainer_state.json").read_text())["epoch"] == pytest.approx(passes)
    assert result.arguments["num_train_epochs"] == pytest.approx(passes)


def test_start_that_failed_does_not_block_the_corrected_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    turns = [{"from": "human", "value": "<image> Hi"}, {"from": "gpt", "value": "Hello"}]
    broken.write_text(json.dumps([{"id": "1", "image": "missing.png", "conversations": turns}]))
    short = ("optim.max_steps=2", "output.report_to=tensorboard", "mixture.on_bad_record=raise")
    for wrong in ("model.checkpoint=./nowhere", "data.0.path=nowhere.json", f"data.0.path={broken}"):
        with pytest.raises((ValueError, OSError)):
            train(recipe_of_a_run(make_recipe, tmp_path / "run", *short, wrong))
    train(recipe_of_a_run(make_recipe, tmp_path / "run", *short))
    assert "nowhere" not in (tmp_path / "run" / "resolved_recipe.yaml").read_text()
    assert str(broken) not in (tmp_path / "run" / "resolved_recipe.yaml").read_text()


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
