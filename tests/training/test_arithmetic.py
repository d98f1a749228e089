"""Numbers that a run computes by itself: the mean of its losses, and the length of its warm-up."""

import math

import pytest

from xgen_mm.training.arguments import training_arguments
from xgen_mm.training.run import _mean_loss

from .conftest import MakeRecipe


def test_mean_loss_weighs_each_line_by_its_steps() -> None:
    # One step of 6, then three whose mean is 2, then four whose mean is 1; evaluation lines have no training loss.
    history = [{"step": 1, "loss": 6.0}, {"step": 4, "loss": 2.0}, {"step": 4, "eval_loss": 50.0}]
    assert _mean_loss([*history, {"step": 8, "loss": 1.0}]) == pytest.approx((6 + 3 * 2 + 4 * 1) / 8)


def test_mean_loss_of_no_steps_is_no_number() -> None:
    assert math.isnan(_mean_loss([{"step": 0, "eval_loss": 1.0}]))


@pytest.mark.parametrize(("ratio", "steps"), [(0.03, 2), (0.04, 2), (0.01, 1), (0.0, 0)])
def test_warm_up_is_rounded_up_to_whole_steps(make_recipe: MakeRecipe, ratio: float, steps: int) -> None:
    recipe = make_recipe("optim.schedule=cosine", f"optim.warmup_ratio={ratio}", "optim.max_steps=50")
    assert training_arguments(recipe, world_size=1, max_steps=50)["warmup_steps"] == steps


def test_warm_up_stays_a_part_where_the_host_counts_the_steps(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("optim.schedule=cosine", "optim.warmup_ratio=0.03", "optim.max_steps=50")
    assert training_arguments(recipe, world_size=1, max_steps=None)["warmup_steps"] == 0.03
