"""A recipe run by two processes gives the losses of one, at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe, checkpoint, conversations, make_recipe
from xgen_mm.training.checkpoints import complete_checkpoints
from xgen_mm.training.recipe import Recipe, dump_recipe
from xgen_mm.training.run import train

from .test_two_processes import needs_fsdp

__all__ = ["checkpoint", "conversations", "make_recipe"]

TRAIN = "import sys; from xgen_mm.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"
STEPS = 3
# Ends the process as `kill -9` does: behind step 3, whose checkpoint before it is that of step 2.
TRAIN_AND_DIE = """
import os, signal, sys
from transformers import TrainerCallback
from xgen_mm.training import run
from xgen_mm.training.recipe import load_recipe

class Die(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

make_callbacks = run.make_callbacks
run.make_callbacks = lambda *arguments: [*make_callbacks(*arguments), Die()]
run.train(load_recipe(sys.argv[1]))
"""


# A scheduler may reach one process before the other: here the second one only, in the third step.
TRAIN_AND_SIGNAL = """
import os, signal, sys
from transformers import TrainerCallback
from xgen_mm.cli.main import main
from xgen_mm.training import run

class Send(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

make_callbacks = run.make_callbacks
run.make_callbacks = lambda *arguments: [*make_callbacks(*arguments), Send()]
status = main(["train", sys.argv[1]])
sys.stderr.write(f"rank {os.environ['RANK']} ends with {status}.")
"""


def losses_of(directory: Path) -> list[float]:
    history = json.loads((directory / "final" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def run_on_two(
    recipe: Recipe, directory: Path, *options: str, script_text: str = TRAIN
) -> "subprocess.CompletedProcess[str]":
    """Run a recipe as the command line does, on two processes."""
    path, script = directory / "two.yaml", directory / "train.py"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    script.write_text(script_text, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(script), str(path), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


PACKED = ["batches.grouping=packed", "batches.row_length=160", "text.max_tokens=160"]
ADAPTERS = ["model.lora={rank: 2, alpha: 4}", "model.trainable=[resampler]"]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        pytest.param("sft", [], id="sft-ddp"),
        pytest.param("pretrain", [], id="pretrain-ddp", marks=pytest.mark.slow),
        pytest.param("pretrain", ["distributed.fsdp_size=2"], id="pretrain-fsdp2", marks=needs_fsdp),
        pytest.param("sft", ["distributed.fsdp_size=2"], id="sft-fsdp2", marks=[needs_fsdp, pytest.mark.slow]),
        pytest.param("sft", ADAPTERS, id="sft-ddp-adapters", marks=pytest.mark.slow),
        pytest.param("pretrain", ADAPTERS, id="pretrain-ddp-adapters", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(
    make_recipe: MakeRecipe, tmp_path: Path, stage: str, changes: list[str]
) -> None:
    settings = (
        f"stage={stage}",
        "optim.learning_rate=0.01",
        "optim.optimizer=adamw_torch",
        "optim.max_grad_norm=1.0",
        f"optim.max_steps={STEPS}",
        "batches.global_batch_size=8",
    )
    train(make_recipe(*settings, *changes, "distributed.fsdp_size=null", f"output.dir={tmp_path / 'one'}"))
    recipe = make_recipe(*settings, *changes, f"output.dir={tmp_path / 'two'}")
    result = run_on_two(recipe, tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    expected = losses_of(tmp_path / "one")
    assert len(expected) == STEPS
    assert losses_of(tmp_path / "two") == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [pytest.param([], id="padded"), pytest.param(PACKED, id="packed")])
def test_two_processes_killed_and_resumed_give_the_losses_of_a_whole_run(
    make_recipe: MakeRecipe, tmp_path: Path, changes: list[str]
) -> None:
    settings = (
        "optim.learning_rate=0.01",
        "optim.optimizer=adamw_torch",
        "optim.schedule=cosine",
        "optim.max_steps=6",
        "output.save_steps=2",
        *changes,
    )
    whole = run_on_two(make_recipe(*settings, f"output.dir={tmp_path / 'whole'}"), tmp_path)
    assert whole.returncode == 0, whole.stderr[-4000:]
    recipe = make_recipe(*settings, f"output.dir={tmp_path / 'killed'}")
    assert run_on_two(recipe, tmp_path, script_text=TRAIN_AND_DIE).returncode != 0
    (checkpoint,) = complete_checkpoints(tmp_path / "killed")
    assert checkpoint.name == "checkpoint-2"
    places = [(checkpoint / f"data_state_rank{rank}.json").read_text() for rank in range(2)]
    assert places[0] != places[1], "each process has a place of its own"
    resumed = run_on_two(recipe, tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    expected = losses_of(tmp_path / "whole")
    assert len(expected) == 6
    assert losses_of(tmp_path / "killed") == expected


SIGNALLED = (
    "optim.learning_rate=0.01",
    "optim.optimizer=adamw_torch",
    "optim.schedule=cosine",
    "optim.max_steps=5",
    "batches.num_workers=1",
)


def test_two_processes_end_behind_the_same_step_when_one_of_them_is_signalled(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    cut = run_on_two(make_recipe(*SIGNALLED), tmp_path, script_text=TRAIN_AND_SIGNAL)
    assert [f"rank {rank} ends with 143." in cut.stderr for rank in range(2)] == [True, True], cut.stderr[-4000:]
    assert cut.stderr.count("SIGTERM ended the run behind step 3 of 5") == 1
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-3"]


@pytest.mark.slow
def test_two_processes_signalled_and_resumed_give_the_losses_of_a_whole_run(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(*SIGNALLED, f"output.dir={tmp_path / 'cut'}")
    run_on_two(recipe, tmp_path, script_text=TRAIN_AND_SIGNAL)
    resumed = run_on_two(recipe, tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    run_on_two(make_recipe(*SIGNALLED, f"output.dir={tmp_path / 'whole'}"), tmp_path)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
