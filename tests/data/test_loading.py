"""transformers' `Trainer` on a stream, stopped and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.data.training_run import RUN, make_loader, make_trainer, train

pytest.importorskip("accelerate", reason="`Trainer` needs the `train` extra")


@pytest.fixture(autouse=True)
def _no_accelerator_of_other_tests() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_trainer_resumed_on_a_stream_ends_with_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, num_workers: int
) -> None:
    straight = train(tmp_path / "straight", steps=(4,), num_workers=num_workers)
    halved = train(tmp_path / "halved", steps=(2, 4), num_workers=num_workers)
    # Exactly: going on from a checkpoint is the same computation, in one process and with the same shapes.
    torch.testing.assert_close(halved, straight, atol=0, rtol=0)
    other = train(tmp_path / "other", steps=(2,), num_workers=num_workers)
    assert not torch.equal(other["lm_head.weight"], straight["lm_head.weight"])


def test_trainer_that_would_wind_the_data_forward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ignore_data_skip=True"):
        make_trainer(tmp_path, make_loader(rank=0, world_size=1), steps=1, ignore_data_skip=False)


def test_trainer_on_the_stream_of_another_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="process 0 of 1 but the stream was made for rank 1 of 2"):
        make_trainer(tmp_path, make_loader(rank=1, world_size=2), steps=1)


def test_checkpoint_without_data_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_state_rank0\.json"):
        make_trainer(tmp_path, make_loader(rank=0, world_size=1), steps=1, resume_from_checkpoint=tmp_path)


@pytest.mark.slow
def test_two_processes_resumed_on_a_stream_end_with_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    port = 20_000 + os.getpid() % 20_000
    workers = [
        subprocess.Popen(
            [sys.executable, str(RUN), str(tmp_path)],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    straight, halved = (torch.load(tmp_path / f"{name}.pt") for name in ("straight", "halved"))
    torch.testing.assert_close(halved, straight, atol=0, rtol=0)
