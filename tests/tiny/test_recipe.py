"""Recipes are checked when they are read."""

from pathlib import Path

import pytest

from tests.tiny.conftest import SMALL_RECIPE
from xgen_mm.errors import XGenMMError
from xgen_mm.tiny.recipe import load_recipe

SHIPPED = Path(__file__).parents[2] / "recipes" / "tiny" / "digits.yaml"


def _load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def test_load_recipe_shipped_file_names_the_published_sizes() -> None:
    recipe = load_recipe(SHIPPED)
    assert (recipe.model.tile_size, recipe.model.patch_size, recipe.model.num_latents) == (84, 12, 8)
    assert sum(phase.steps for phase in recipe.joint.phases) > 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("seed: 3", "sead: 3", "unknown key `sead`; did you mean `seed`", id="misspelt"),
        pytest.param("seed: 3", "seed: 3\nxyz: 1", "unknown key `xyz`; valid names", id="strange"),
        pytest.param("seed: 3", "", r"lacks \['seed'\]", id="missing"),
        pytest.param("seed: 3", "seed: three", "seed` is 'three'; expected a value of type int", id="text-for-number"),
        pytest.param("warmup_steps: 2", "warmup_steps: 2.5", "expected a value of type int", id="fraction-for-int"),
        pytest.param("[0.5, 0.5]", "[0.5, 0.6]", "probabilities that sum to 1", id="weights"),
        pytest.param("[0.4, 0.1]", "0.4", "expected a list of 2", id="scalar-for-list"),
    ],
)
def test_load_recipe_bad_content_raises(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(XGenMMError, match=message):
        _load(tmp_path, SMALL_RECIPE.replace(old, new))


def test_load_recipe_empty_file_raises(tmp_path: Path) -> None:
    with pytest.raises(XGenMMError, match="expected a mapping"):
        _load(tmp_path, "")
