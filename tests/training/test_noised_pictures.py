"""The second preference step per batch: its noise, its pairs and its loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.training.recipe_sections import RecipeError
from xgen_mm.training.stages.noised_pictures import add_noise, prompts_of, replace_rejected, signal_share

from .preference_run import DATA, FULL, PAIRS, answer_logps, build, history, make_recipe, weights

TOLERANCE = 1e-5
PAD, END, BREAK = 0, 9, 8


def noised_recipe(directory: Path, *, weight: float = 0.7, **changes: Any) -> Any:
    preference = {"noised_pictures": {"weight": weight, "noise_step": 500, "max_new_tokens": 4}}
    return make_recipe("dpo", directory, preference=preference, **changes)


def test_signal_share_is_the_product_of_the_schedule() -> None:
    expected = 1.0
    for index in range(300):
        expected *= 1.0 - (1e-4 + (0.02 - 1e-4) * index / 999)
    assert signal_share(300) == pytest.approx(expected, rel=1e-12)
    assert signal_share(0) == 1.0
    assert signal_share(1000) == pytest.approx(4.04e-5, rel=1e-2)


@pytest.mark.parametrize("step", [50, 500, 1000])
def test_noise_has_the_mean_and_spread_of_the_closed_form(step: int) -> None:
    pixels = torch.full((2, 3, 3, 64, 64), 0.8)
    noised = add_noise(pixels, step=step, seed=3, number=0)
    share = signal_share(step)
    assert noised.mean().item() == pytest.approx(0.8 * share**0.5, abs=0.01)
    assert noised.std().item() == pytest.approx((1 - share) ** 0.5, abs=0.01)


def test_noise_depends_on_picture_seed_and_number_but_not_on_the_batch() -> None:
    pictures = torch.randn(3, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    noised = add_noise(pictures, step=500, seed=1, number=4)
    torch.testing.assert_close(add_noise(pictures[2:], step=500, seed=1, number=4), noised[2:])
    assert not torch.equal(add_noise(pictures, step=500, seed=2, number=4), noised)
    assert not torch.equal(add_noise(pictures, step=500, seed=1, number=5), noised)


def test_noise_leaves_filler_tiles_the_input_and_the_random_numbers_alone() -> None:
    pictures = torch.ones(1, 3, 3, 28, 28)
    pictures[0, 2] = 0
    state = torch.get_rng_state()
    noised = add_noise(pictures, step=500, seed=1, number=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not noised[0, 2].any()
    assert torch.equal(pictures[0, 0], torch.ones(3, 28, 28))
    assert add_noise(pictures[:, 0], step=500, seed=1, number=0).shape == (1, 3, 28, 28)


def pairs() -> dict[str, torch.Tensor]:
    """Two pairs: prompts `1 2` and `3`, chosen `5 end break` and `6 end break`."""
    rows = [[1, 2, 5, 9, 8], [3, 6, 9, 8], [1, 2, 7, 9, 8], [3, 7, 9, 8]]
    answers = [3, 3, 3, 3]
    length = max(map(len, rows))
    batch = {"input_ids": torch.tensor([row + [PAD] * (length - len(row)) for row in rows])}
    batch["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    batch["completion_mask"] = torch.tensor(
        [
            [0] * (len(row) - count) + [1] * count + [0] * (length - len(row))
            for row, count in zip(rows, answers, strict=True)
        ]
    )
    return batch | {"pixel_values": torch.arange(4.0)[:, None], "image_sizes": torch.arange(4)[:, None]}


def test_prompts_are_padded_on_the_left_with_the_pictures_of_one_side() -> None:
    prompts = prompts_of(pairs(), pad_token_id=PAD)
    assert prompts["input_ids"].tolist() == [[1, 2], [0, 3]]
    assert prompts["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert prompts["pixel_values"].tolist() == [[0.0], [1.0]]
    assert prompts["image_sizes"].tolist() == [[0], [1]]


def test_generated_answers_take_the_place_of_rejected_ones() -> None:
    batch = pairs()
    # The first answer ends and is padded, the second one was cut off.
    answers = torch.tensor([[4, END, PAD], [4, 4, 4]])
    replaced = replace_rejected(batch, answers, pad_token_id=PAD, end_token_ids={END})
    assert replaced["input_ids"].tolist() == [
        [1, 2, 5, END, BREAK],
        [3, 6, END, BREAK, PAD],
        [1, 2, 4, END, BREAK],
        [3, 4, 4, 4, PAD],
    ]
    assert replaced["completion_mask"].tolist() == [
        [0, 0, 1, 1, 1],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 1, 1, 1, 0],
    ]
    assert replaced["attention_mask"].sum(dim=1).tolist() == [5, 4, 5, 4]
    assert replaced["pixel_values"] is batch["pixel_values"]


def randomise_adapters(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


def test_both_losses_and_their_gradients_equal_plain_pytorch(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path
) -> None:
    trainer: Any = build(noised_recipe(tmp_path), tiny_model, tiny_processor)
    model = trainer.model
    randomise_adapters(model)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    second = trainer.make_noised_pairs(batch)
    # The host sets this when training begins.
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(model, dict(batch))
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()

    total = torch.zeros(())
    for weight, pairs in ((1.0, batch), (0.7, second)):
        with torch.no_grad(), model.disable_adapter():
            reference = answer_logps(model, pairs)
        chosen, rejected = (answer_logps(model, pairs) - reference).chunk(2)
        total = total - weight * torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    total.backward()

    assert not torch.equal(second["input_ids"], batch["input_ids"])
    torch.testing.assert_close(loss, total.detach(), atol=TOLERANCE, rtol=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=TOLERANCE, rtol=TOLERANCE)


def test_vanishing_weight_gives_plain_dpo(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    trainer = build(
        noised_recipe(tmp_path, weight=1e-30, model=full(tmp_path, tiny_model)), tiny_model, tiny_processor
    )
    trainer.train()
    noised, losses = weights(tiny_model), history(trainer, "loss")
    tiny_model.load_state_dict(state)
    trainer = build(make_recipe("dpo", tmp_path, model=full(tmp_path, tiny_model)), tiny_model, tiny_processor)
    trainer.train()
    assert history(trainer, "loss") == pytest.approx(losses, abs=1e-7)
    for name, value in tiny_model.named_parameters():
        torch.testing.assert_close(value, noised[name], atol=1e-7, rtol=0)


def full(directory: Path, model: XGenMMForConditionalGeneration) -> dict[str, Any]:
    """All weights of the model are trained, and its present ones are the reference."""
    if not (directory / "start").exists():
        model.save_pretrained(directory / "start")
    return {"checkpoint": str(directory / "start"), "dtype": "float32", **FULL}


def test_run_repeats_itself_and_names_the_metrics_of_the_second_pair(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path
) -> None:
    runs = []
    tiny_model.save_pretrained(tmp_path / "start")
    for _ in range(2):
        model = XGenMMForConditionalGeneration.from_pretrained(tmp_path / "start")
        trainer = build(noised_recipe(tmp_path), model, tiny_processor)
        trainer.train()
        runs.append(trainer.state.log_history[:-1])
    assert json.dumps(runs[0]) == json.dumps(runs[1])
    assert runs[0][0]["noised/rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert runs[0][0]["loss"] == pytest.approx(1.7 * 0.6931, abs=1e-3)
    assert runs[0][1]["noised/rewards/rejected"] != runs[0][1]["rewards/rejected"]
    assert all(0 <= entry["noised/same_answer"] <= 1 for entry in runs[0])
    assert np.isfinite([entry["noised/rewards/margins"] for entry in runs[0]]).all()


def test_answers_to_noised_pictures_become_less_likely_than_chosen_ones(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path
) -> None:
    model = full(tmp_path, tiny_model)
    data = [{**PAIRS, "count": 4}]
    recipe = noised_recipe(tmp_path, weight=5.0, model=model, data=data, optim={"max_steps": 6})
    trainer: Any = build(recipe, tiny_model, tiny_processor)
    pairs = trainer.make_noised_pairs(dict(next(iter(trainer.get_train_dataloader()))))
    before = answer_logps(tiny_model, pairs).detach()
    trainer.train()
    chosen, rejected = (answer_logps(tiny_model, pairs) - before).chunk(2)
    assert (chosen - rejected).mean().item() > 1.0


def test_pairs_without_pictures_are_refused(
    tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (DATA / "preferences.jsonl").read_text(encoding="utf-8").splitlines()[:4]]
    rows[1] = {"prompt": "Hello!", "chosen": "Hi.", "rejected": "No.", "images": []}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = [{"format": "trl_preference", "path": str(path), "image_root": str(DATA)}]
    with pytest.raises(RecipeError, match="1 of 4 pairs have no picture"):
        build(noised_recipe(tmp_path, data=data), tiny_model, tiny_processor)
