"""Both stages run through the host's trainer; batches, schedule and average are what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from xgen_mm.tiny.architecture import vision_fields
from xgen_mm.tiny.development import DEVELOPMENT_SETS, DevelopmentSet, MeasureDevelopment
from xgen_mm.tiny.joint_stage import QuestionBatches, QuestionMaker, XGenMMWithPatchHead
from xgen_mm.tiny.recipe import TinyRecipe
from xgen_mm.tiny.sequences import IGNORED
from xgen_mm.tiny.tower_stage import MosaicBatches, TowerWithPatchHead
from xgen_mm.tiny.train import load_tower
from xgen_mm.tiny.training import CURVE_FILE, EMA_FILE, AverageWeights, RecordCurve, build_trainer, schedule


@pytest.fixture
def tower(recipe: TinyRecipe) -> TowerWithPatchHead:
    torch.manual_seed(0)
    return TowerWithPatchHead(SiglipVisionModel(SiglipVisionConfig(**vision_fields(recipe.model))), seed=0)


def test_schedule_rises_then_falls_to_the_final_fraction(recipe: TinyRecipe) -> None:
    factors = [schedule(step, steps=100, optim=recipe.joint.optim) for step in range(101)]
    assert factors[0] == pytest.approx(0.5)
    assert max(factors) == factors[1] > 0.99
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert factors[-1] == pytest.approx(recipe.joint.optim.final_fraction)


def test_question_batches_same_index_gives_the_same_batch(maker: QuestionMaker, recipe: TinyRecipe) -> None:
    batches = QuestionBatches(maker, recipe)
    assert len(batches) == 4
    for index in (0, 3):
        first, second = batches[index], batches[index]
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(value, second[name])
    assert batches[0]["tiles"].shape != batches[1]["tiles"].shape or (batches[0]["tiles"] != batches[1]["tiles"]).any()


def test_question_batches_follow_the_phases(maker: QuestionMaker, recipe: TinyRecipe) -> None:
    batches = QuestionBatches(maker, recipe)
    # Ten tiles are two single pictures, or one pair; each batch has one more row of text alone.
    assert [len(batches[index]["image_sizes"]) for index in range(4)] == [2, 2, 2, 2]
    assert [len(batches[index]["input_ids"]) for index in range(4)] == [3, 3, 2, 2]


def test_joint_forward_counts_labelled_tokens_alone(maker: QuestionMaker, model: XGenMMWithPatchHead) -> None:
    batch = maker.batch(np.random.default_rng(0), [[(7,)], [(4, 0)]])
    before = model(**batch, progress=0.0)
    batch["labels"] = torch.where(batch["labels"] == IGNORED, IGNORED, 3)
    after = model(**batch, progress=0.0)
    assert before["answer_loss"] != after["answer_loss"]
    torch.testing.assert_close(
        before["loss"], before["answer_loss"] + (after["loss"] - after["answer_loss"]), atol=1e-5, rtol=1e-5
    )


def test_tower_stage_trains_and_hands_over_its_tower(
    tower: TowerWithPatchHead,
    model: XGenMMWithPatchHead,
    recipe: TinyRecipe,
    drawn_digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    batches = MosaicBatches(*drawn_digits, recipe=recipe)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    trainer, _ = build_trainer(
        tower, batches, optim=recipe.tower.optim, steps=4, seed=0, output_dir=tmp_path, save_steps=2
    )
    trainer.train()
    unchanged = [name for name, value in tower.state_dict().items() if torch.equal(value, before[name])]
    # Attention ignores a constant added to all keys, so key biases have no gradient beyond rounding.
    assert [name for name in unchanged if "k_proj.bias" not in name and "position_ids" not in name] == []
    load_tower(model, tmp_path / EMA_FILE)
    saved = load_file(tmp_path / EMA_FILE)
    torch.testing.assert_close(model.patch_head.weight.data, saved["patch_head.weight"])


def test_load_tower_without_tower_stage_says_what_to_run(model: XGenMMWithPatchHead, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run the tower stage"):
        load_tower(model, tmp_path / EMA_FILE)


def test_joint_stage_changes_every_parameter_and_records_scores(
    maker: QuestionMaker,
    model: XGenMMWithPatchHead,
    recipe: TinyRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DEVELOPMENT_SETS, "of_4", DevelopmentSet(2, 0, 2))
    for name in ("1_digit", "3_digits", "5_digits", "of_2"):
        monkeypatch.delitem(DEVELOPMENT_SETS, name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = QuestionBatches(maker, recipe)
    trainer, average = build_trainer(
        model, batches, optim=recipe.joint.optim, steps=4, seed=0, output_dir=tmp_path, save_steps=2
    )
    record = RecordCurve()
    trainer.add_callback(record)
    trainer.add_callback(MeasureDevelopment(model, maker, average, record, every=2, seed=0))
    trainer.train()
    unchanged = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert [name for name in unchanged if "k_proj.bias" not in name and "position_ids" not in name] == []
    rows = json.loads((tmp_path / CURVE_FILE).read_text())
    assert sum("dev/largest_of_4" in row for row in rows) == 2
    assert set(load_file(tmp_path / EMA_FILE)) == {name for name, _ in model.named_parameters()}


def test_joint_stage_resumed_run_ends_like_an_uninterrupted_one(
    maker: QuestionMaker, model: XGenMMWithPatchHead, recipe: TinyRecipe, tmp_path: Path
) -> None:
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def run(resume: Path | None) -> dict[str, torch.Tensor]:
        model.load_state_dict(start)
        trainer, average = build_trainer(
            model,
            QuestionBatches(maker, recipe),
            optim=recipe.joint.optim,
            steps=4,
            seed=0,
            output_dir=tmp_path,
            save_steps=2,
        )
        if resume is not None:
            average.restore(resume)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return {name: value.clone() for name, value in average.average.items()}

    whole = run(None)
    resumed = run(tmp_path / "checkpoint-2")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


def test_average_weights_swap_twice_restores_the_weights(model: XGenMMWithPatchHead) -> None:
    average = AverageWeights(model, decay=0.9)
    held = {name: value.clone() for name, value in average.average.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.swap()
    torch.testing.assert_close(model.lm_head.weight.data, held["model.language_model.embed_tokens.weight"])
    average.swap()
    torch.testing.assert_close(model.lm_head.weight.data, held["model.language_model.embed_tokens.weight"] + 1.0)
