"""Evaluation asks through processor and `generate`, and exported checkpoints load and answer alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xgen_mm.modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from xgen_mm.processing.processing_xgen_mm import XGenMMProcessor
from xgen_mm.tiny import evaluation
from xgen_mm.tiny.conversations import converse
from xgen_mm.tiny.curve import draw_curve
from xgen_mm.tiny.digits import GlyphBank
from xgen_mm.tiny.evaluation import TASKS, Question, evaluate, format_scores, scores_to_json, wilson_interval
from xgen_mm.tiny.export import build_processor, export_checkpoint
from xgen_mm.tiny.joint_stage import QuestionMaker, XGenMMWithPatchHead
from xgen_mm.tiny.recipe import TinyRecipe


@pytest.fixture
def exported(model: XGenMMWithPatchHead, recipe: TinyRecipe, tmp_path: Path) -> Path:
    save_file({name: value.detach().clone() for name, value in model.named_parameters()}, tmp_path / "ema.safetensors")
    export_checkpoint(tmp_path / "ema.safetensors", tmp_path / "checkpoint", model=recipe.model)
    return tmp_path / "checkpoint"


def test_exported_checkpoint_holds_the_average_without_training_parts(
    exported: Path, model: XGenMMWithPatchHead
) -> None:
    weights = load_file(exported / "model.safetensors")
    assert not any(name.startswith("patch_head") for name in weights)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    loaded = XGenMMForConditionalGeneration.from_pretrained(exported)
    assert loaded.dtype == torch.float32
    latents = model.model.resampler.latents.detach().half().float()
    torch.testing.assert_close(loaded.model.resampler.latents.data, latents)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_exported_processor_builds_the_prompts_of_training(
    exported: Path, bank: GlyphBank, maker: QuestionMaker, recipe: TinyRecipe
) -> None:
    processor = XGenMMProcessor.from_pretrained(exported)
    question = TASKS[3].draw(np.random.default_rng(0), bank, 0)
    text = processor.apply_chat_template([question.message()], add_generation_prompt=True)
    numbers = [(1,), (2, 3)]
    trained = next(converse(np.random.default_rng(0), numbers, canonical=True).paths())
    assert text == trained.split("Image 2<|end|>")[0]
    inputs = processor(text=text, images=question.images, return_tensors="pt")
    tiles = maker.batch(np.random.default_rng(0), [numbers], canonical=True)
    assert inputs["pixel_values"].shape[2:] == (3, 84, 84)
    assert tiles["tiles"].shape[1:] == (84, 84)
    num_image_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    assert num_image_tokens % recipe.model.num_latents == 0


def test_evaluate_perfect_answers_score_everything(
    bank: GlyphBank, recipe: TinyRecipe, model: XGenMMWithPatchHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "answer", lambda model, processor, questions: [q.answer for q in questions])
    scores = evaluate(model, build_processor(recipe.model), bank, num_questions=7, batch_size=3)
    assert [score.num_right for score in scores] == [7] * len(TASKS)
    assert scores[0].low < 1 == scores[0].share
    lines = list(format_scores(scores))
    assert lines[2].startswith("| one digit | 100.0 % | 7 |")
    assert json.loads(json.dumps(scores_to_json(scores, checkpoint="x", seed=0)))["split"] == "MNIST test"


def test_evaluate_untrained_model_answers_through_generate(exported: Path, bank: GlyphBank) -> None:
    loaded = XGenMMForConditionalGeneration.from_pretrained(exported, dtype=torch.float32)
    processor = XGenMMProcessor.from_pretrained(exported)
    scores = evaluate(loaded, processor, bank, num_questions=2, batch_size=2, tasks=TASKS[-1:])
    assert scores[0].num_questions == 2


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_tasks_questions_show_what_they_ask_about(bank: GlyphBank, task: evaluation.EvaluationTask) -> None:
    questions = [task.draw(np.random.default_rng(index), bank, index) for index in range(10)]
    for question in questions:
        assert all(image.mode == "RGB" for image in question.images)
        content = question.message()["content"]
        assert sum(part["type"] == "image" for part in content) == len(question.images)
        assert content[-1]["text"] == question.text
    assert len({question.answer for question in questions}) > 1


def test_question_single_image_has_no_introduction(bank: GlyphBank) -> None:
    question: Question = TASKS[0].draw(np.random.default_rng(0), bank, 0)
    assert [part["type"] for part in question.message()["content"]] == ["image", "text"]


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (950, 1000)])
def test_wilson_interval_holds_the_share(right: int, total: int) -> None:
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total <= high <= 1
    assert high - low > 0.01


def test_draw_curve_writes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"step": 1, "minutes": 0.1, "answer_loss": 1.0}, {"step": 2, "minutes": 0.2, "dev/number_1_digit": 0.5}]
    (tmp_path / "curve.json").write_text(json.dumps(rows))
    draw_curve(tmp_path / "curve.json", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
