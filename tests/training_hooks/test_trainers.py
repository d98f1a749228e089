"""transformers' `Trainer` and accelerate."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.picture_batch import make_batch
from tests.v1 import small_v1 as v1
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor

accelerate = pytest.importorskip("accelerate", reason="`Trainer` needs the `train` extra")

TEXTS = ["<image> What number is written here?", "<image>?", "<image> and so on", "<image> 7"]


@pytest.fixture(autouse=True)
def _no_accelerator_of_other_tests() -> Iterator[None]:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def collate(
    tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> Callable[[list[dict[str, str]]], dict[str, torch.Tensor]]:
    def collate(samples: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        texts = tuple(sample["text"] for sample in samples)
        return make_batch(tiny_processor, lambda *_: checker_image(20, 60), texts=texts)

    return collate


def train(
    model: XGenMMForConditionalGeneration,
    collate: Callable[[list[dict[str, str]]], dict[str, torch.Tensor]],
    *,
    directory: Path,
    **arguments: object,
) -> Any:
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        max_steps=2,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    trainer = Trainer(model, settings, train_dataset=[{"text": text} for text in TEXTS], data_collator=collate)
    trainer.train()
    return trainer


def weights(model: XGenMMForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_trainer_two_steps_change_every_weight(
    model: XGenMMForConditionalGeneration, collate: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    before = weights(model)
    trainer = train(model, collate, directory=tmp_path, per_device_train_batch_size=2)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert trainer.model_accepts_loss_kwargs
    assert [name for name, weight in weights(model).items() if torch.equal(weight, before[name])] == []


def test_trainer_accumulating_single_samples_equals_whole_batches(
    model: XGenMMForConditionalGeneration, collate: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    before = weights(model)
    train(model, collate, directory=tmp_path, per_device_train_batch_size=2)
    whole = weights(model)
    model.load_state_dict(before)
    train(model, collate, directory=tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    torch.testing.assert_close(weights(model), whole, atol=1e-5, rtol=1e-4)


def test_trainer_with_checkpointing_and_frozen_tower_trains_the_rest(
    model: XGenMMForConditionalGeneration, collate: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model.model.vision_tower.requires_grad_(False)
    before = weights(model)
    train(model, collate, directory=tmp_path, per_device_train_batch_size=2, gradient_checkpointing=True)
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "vision_tower" not in name}


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_accelerate_step_changes_every_weight(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], mixed_precision: str
) -> None:
    before = weights(model)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed_precision)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    loss = wrapped(**batch).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
    optimizer.step()
    after = weights(accelerator.unwrap_model(wrapped))
    assert torch.isfinite(loss)
    assert [name for name, weight in after.items() if torch.equal(weight, before[name])] == []


MIXED = [
    "<image> What number is written here?",
    "Seven, and no image at all.",
    "Words alone.",
    "<image> and <image> 7",
]


def usual_accuracy(evaluated: Any) -> dict[str, float]:
    """Share of the targets that scored highest, as it is written for any causal language model."""
    predictions, labels = evaluated.predictions.argmax(-1)[:, :-1], evaluated.label_ids[:, 1:]
    return {"accuracy": float((predictions == labels)[labels != -100].mean())}


def evaluation_trainer(model: Any, collate: Callable[..., Any], directory: Path, **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        per_device_eval_batch_size=1,
        **arguments,
    )
    rows = [{"text": text} for text in MIXED]
    return Trainer(model, settings, eval_dataset=rows, data_collator=collate, compute_metrics=usual_accuracy)


@pytest.mark.parametrize("include", [[], ["inputs", "loss"]], ids=["plain", "inputs-and-loss"])
def test_usual_metric_is_computed_over_rows_with_and_without_pictures(
    model: XGenMMForConditionalGeneration,
    collate: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
    include: list[str],
) -> None:
    trainer = evaluation_trainer(model, collate, tmp_path, include_for_metrics=include)
    right = total = 0
    for text in MIXED:
        batch = collate([{"text": text}])
        with torch.no_grad():
            logits = model.eval()(**batch).logits
        targets = batch["labels"][:, 1:]
        right += int((logits.argmax(-1)[:, :-1] == targets)[targets != -100].sum())
        total += int((targets != -100).sum())
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(right / total)
    predicted = trainer.predict([{"text": text} for text in MIXED])
    assert predicted.metrics["test_accuracy"] == pytest.approx(right / total)
    # Scores alone: no image tokens, no caches.
    assert predicted.predictions.shape == (*predicted.label_ids.shape, model.config.text_config.vocab_size)


def test_usual_metric_is_computed_with_a_v1_model(tmp_path: Path) -> None:
    rows = [v1.prompt([1, 10], 4, [11, 12]), v1.prompt([1, 13, 14, 15])]

    def collate(samples: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        has_picture = "<image>" in samples[0]["text"]
        ids = torch.tensor([rows[0] if has_picture else rows[1]])
        pictures = v1.make_images([v1.WIDE], [4]) if has_picture else {}
        return {"input_ids": ids, "labels": ids.masked_fill(ids == v1.IMAGE, -100), **pictures}

    trainer = evaluation_trainer(v1.build(), collate, tmp_path)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert trainer.predict([{"text": text} for text in MIXED]).predictions.shape[-1] == 60
