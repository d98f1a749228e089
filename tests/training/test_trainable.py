"""Exactly the weights that a recipe names change."""

import re
from pathlib import Path

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.training.recipe_sections import LoraSection, RecipeError
from xgen_mm.training.run import train
from xgen_mm.training.starting_point import canvases, load_model, load_processor
from xgen_mm.training.trainable import lora_targets, prepare_model

from .conftest import MakeRecipe


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        pytest.param([], ("resampler", "language_model", "lm_head"), id="default"),
        pytest.param(["model.trainable=[resampler]"], ("resampler",), id="resampler"),
        pytest.param(
            ["model.trainable=[vision_tower, resampler, language_model]"],
            ("vision_tower", "resampler", "language_model", "lm_head"),
            id="everything",
        ),
    ],
)
def test_one_step_changes_every_trained_weight_and_no_frozen_one(
    make_recipe: MakeRecipe, stage: str, changes: list[str], trained: tuple[str, ...]
) -> None:
    recipe = make_recipe(f"stage={stage}", *changes, "optim.learning_rate=0.01")
    before = load_model(recipe).state_dict()
    result = train(recipe)
    after = XGenMMForConditionalGeneration.from_pretrained(result.final).state_dict()
    # Token embeddings change in the rows that occur; here they do in every tensor.
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if any(f"{part}." in name for part in trained)}
    assert changed == expected


@pytest.mark.parametrize("parts", ["[]", "[resampler]"])
def test_adapters_change_and_the_weights_below_them_do_not(make_recipe: MakeRecipe, parts: str) -> None:
    # The second matrix of an adapter is zero at first, so that the first one has no gradient before step 2.
    recipe = make_recipe(f"model.trainable={parts}", "model.lora={rank: 2, alpha: 4}", "optim.max_steps=2")
    start = prepare_model(recipe, load_model(recipe))
    frozen = {name for name, weight in start.named_parameters() if not weight.requires_grad}
    assert {name for name in frozen if "vision_tower" in name}
    assert all("lora_" in name or "resampler" in name for name in set(dict(start.named_parameters())) - frozen)
    result = train(recipe)
    before = load_model(recipe).state_dict()
    merged = XGenMMForConditionalGeneration.from_pretrained(result.final).state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    linears = re.compile(r"language_model\.layers\.\d+\..*(qkv_proj|o_proj|gate_up_proj|down_proj)\.weight")
    expected = {name for name in before if linears.search(name) or ("resampler" in parts and "resampler." in name)}
    assert changed == expected


def test_merged_weights_answer_as_the_adapters_do(make_recipe: MakeRecipe, conversations: object) -> None:
    from peft import PeftModel

    recipe = make_recipe("model.trainable=[resampler]", "model.lora={rank: 2, alpha: 4}", "optim.max_steps=2")
    result = train(recipe)
    adapted = PeftModel.from_pretrained(load_model(recipe), result.adapter).eval()
    merged = XGenMMForConditionalGeneration.from_pretrained(result.final).eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_adapters_reach_linear_layers_of_the_language_model_only(tiny_model: XGenMMForConditionalGeneration) -> None:
    pattern = re.compile(lora_targets(("language_model",), tiny_model))
    found = {name for name, _ in tiny_model.named_modules() if pattern.fullmatch(name)}
    assert len(found) == 2 * 4
    assert all(name.startswith("model.language_model.layers.") for name in found)


def test_adapter_on_an_unknown_layer_is_refused_with_the_known_ones(
    tiny_model: XGenMMForConditionalGeneration,
) -> None:
    with pytest.raises(RecipeError, match=r"q_proj.*qkv_proj"):
        lora_targets(LoraSection(targets=("q_proj",)).targets, tiny_model)


def test_pictures_are_cut_alike_by_model_and_processor(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("pictures={resolution: anyres, max_tiles: 7}")
    processor, model = load_processor(recipe), load_model(recipe)
    assert processor.image_processor.image_grid_pinpoints == model.config.image_grid_pinpoints
    assert [28, 168] not in model.config.image_grid_pinpoints, "at most four tiles a side"
    assert [56, 84] in model.config.image_grid_pinpoints


def test_canvases_of_twelve_tiles_hold_the_released_ones() -> None:
    assert max(rows * columns // 384**2 for rows, columns in canvases(5, tile_size=384)) + 1 == 5
    found = canvases(13, tile_size=384)
    released = {(768, 384), (384, 768), (768, 768), (384, 1152), (1152, 384)}
    assert released <= {(height, width) for height, width in found}
    assert max(height * width for height, width in found) == 12 * 384 * 384


def test_run_starts_from_an_adapter_merged_into_its_base(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = train(make_recipe("model.trainable=[]", "model.lora={rank: 2, alpha: 4}", "optim.max_steps=2"))
    merged = load_model(make_recipe(f"model.checkpoint={first.final}")).state_dict()
    changes = (f"model.checkpoint={first.adapter}", f"output.dir={tmp_path / 'second'}", "optim.max_steps=2")
    start = load_model(make_recipe(*changes)).state_dict()
    assert all(torch.equal(start[name], weight) for name, weight in merged.items())
    second = train(make_recipe(*changes, "model.trainable=[]", "model.lora={rank: 2, alpha: 4}"))
    final = load_model(make_recipe(f"model.checkpoint={second.final}")).state_dict()
    again = load_model(make_recipe(f"model.checkpoint={second.adapter}")).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in final.items()), "the second lies on the first"
    assert any(not torch.equal(start[name], weight) for name, weight in final.items())


def test_adapter_is_not_merged_into_quantised_weights(make_recipe: MakeRecipe) -> None:
    first = train(make_recipe("model.trainable=[]", "model.lora={rank: 2, alpha: 4}"))
    changes = ("model.trainable=[]", "model.lora={rank: 2, alpha: 4}", "model.quantization=nf4")
    with pytest.raises(RecipeError, match=r"cannot be merged with `model: quantization`.*xgen-mm export --model"):
        load_model(make_recipe(f"model.checkpoint={first.adapter}", *changes))
