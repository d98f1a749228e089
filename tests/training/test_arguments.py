"""A recipe in the words of the host."""

import pytest

from xgen_mm.training.arguments import training_arguments

from .conftest import MakeRecipe


@pytest.mark.parametrize(
    ("changes", "max_steps", "expected"),
    [
        pytest.param(("optim.warmup_ratio=0.1",), 22, 3, id="ratio-is-rounded-up"),
        pytest.param(("optim.warmup_ratio=0.1",), 20, 2, id="whole-number-stays"),
        pytest.param(("optim.warmup_ratio=0.1",), None, 0.1, id="unknown-steps-leave-it-to-the-host"),
        pytest.param(("optim.warmup_steps=5",), 22, 5, id="steps"),
    ],
)
def test_warm_up_in_steps(
    make_recipe: MakeRecipe, changes: tuple[str, ...], max_steps: int | None, expected: float
) -> None:
    arguments = training_arguments(make_recipe(*changes), world_size=1, max_steps=max_steps)
    assert arguments["warmup_steps"] == expected
