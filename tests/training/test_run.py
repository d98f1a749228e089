"""Parts of a run that its losses do not show."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from xgen_mm.training import run

from .conftest import MakeRecipe


def test_mean_loss_counts_each_line_by_its_steps() -> None:
    history = [{"loss": 2.0, "step": 4}, {"eval_loss": 9.0, "step": 4}, {"loss": 5.0, "step": 6}, {"step": 6}]
    assert run._mean_loss(history) == (2.0 * 4 + 5.0 * 2) / 6
    assert math.isnan(run._mean_loss([{"eval_loss": 9.0, "step": 4}]))


@pytest.mark.parametrize(
    ("changes", "launcher", "num_processes", "expected"),
    [
        pytest.param(("distributed.fsdp_size=2",), "false", 2, True, id="recipe"),
        pytest.param((), "true", 2, True, id="launcher"),
        pytest.param((), "false", 2, False, id="whole-weights"),
        pytest.param(("distributed.fsdp_size=2",), "true", 1, False, id="one-process"),
    ],
)
def test_every_batch_has_a_picture_where_weights_are_spread_over_processes(
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    changes: tuple[str, ...],
    launcher: str,
    num_processes: int,
    expected: bool,
) -> None:
    asked: list[Any] = []

    def make_loader(*_: object, always_pictures: bool, **__: object) -> None:
        asked.append(always_pictures)
        raise InterruptedError

    monkeypatch.setenv("ACCELERATE_USE_FSDP", launcher)
    monkeypatch.setattr(run, "make_loader", make_loader)
    state = SimpleNamespace(num_processes=num_processes, process_index=0)
    with pytest.raises(InterruptedError):
        run._build(make_recipe(*changes), state=state, resume_from=None)
    assert asked == [expected]
