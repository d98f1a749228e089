"""Labels that still hold the image placeholders, as collators make them that copy the ids."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.picture_batch import Draw, make_batch
from tests.v1.small_v1 import IMAGE as V1_IMAGE
from tests.v1.small_v1 import WIDE, build, make_images, prompt
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor

accelerate = pytest.importorskip("accelerate", reason="`Trainer` needs the `train` extra")

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[dict[str, str]]], Batch]
# As ragged as can be: a picture and words, words alone, two pictures.
TEXTS = [
    "<image> What number is written here?",
    "Seven is a number and so is eleven.",
    "<image> and <image>",
    "7 <image>",
]


@pytest.fixture(autouse=True)
def _no_accelerator_of_other_tests() -> Iterator[None]:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def with_placeholders(batch: Batch) -> Batch:
    """The batch as a collator makes it that copies the ids: padding alone is left out."""
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


@pytest.fixture
def masked_and_copied(batch: Batch) -> tuple[Batch, Batch]:
    copied = with_placeholders(batch)
    assert not torch.equal(batch["labels"], copied["labels"])
    return batch, copied


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="chunks"),
        pytest.param({"skip_logits": False}, id="logits"),
        pytest.param({"num_items_in_batch": 11}, id="number-of-items"),
        pytest.param({"num_items_in_batch": torch.tensor(11), "skip_logits": False}, id="logits-number-of-items"),
    ],
)
def test_placeholders_change_neither_loss_nor_gradients(
    model: XGenMMForConditionalGeneration, masked_and_copied: tuple[Batch, Batch], settings: dict[str, Any]
) -> None:
    losses, found = [], []
    for batch in masked_and_copied:
        model.zero_grad()
        loss = model(**batch, **settings).loss
        loss.backward()
        losses.append(loss.detach())
        found.append(gradients(model))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("ignored", [-100, -7])
def test_shifted_labels_lose_their_placeholders_too(
    model: XGenMMForConditionalGeneration, masked_and_copied: tuple[Batch, Batch], skip_logits: bool, ignored: int
) -> None:
    losses = []
    for batch in masked_and_copied:
        labels = batch["labels"].masked_fill(batch["labels"] == -100, ignored)
        shifted = nn.functional.pad(labels, (0, 1), value=ignored)[:, 1:]
        inputs = {**batch, "labels": labels, "shift_labels": shifted}
        losses.append(model(**inputs, ignore_index=ignored, skip_logits=skip_logits).loss)
    torch.testing.assert_close(losses[1], losses[0])


def test_loss_function_set_by_hand_sees_no_placeholders(
    model: XGenMMForConditionalGeneration, masked_and_copied: tuple[Batch, Batch]
) -> None:
    model.loss_function = lambda logits, labels, **_: (labels != -100).sum()
    masked, copied = masked_and_copied
    assert int(model(**copied).loss) == int((masked["labels"] != -100).sum())
    assert model.config.image_token_id in copied["labels"]  # the caller's tensor stays as it is


def test_packed_rows_lose_their_placeholders(
    model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    rows = [make_batch(tiny_processor, checker_image, texts=(text,)) for text in TEXTS[:2]]
    lengths = [row["input_ids"].shape[1] for row in rows]
    packed = {name: torch.cat([row[name] for row in rows], dim=1) for name in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    packed |= {name: rows[0][name] for name in ("pixel_values", "image_sizes")}
    expected = model(**packed).loss
    torch.testing.assert_close(model(**{**packed, "labels": packed["input_ids"]}).loss, expected)


def test_v1_loses_its_placeholders() -> None:
    model = build().train()
    ids = torch.tensor([prompt([1, 10], 4, [11, 12, 13])])
    inputs = {"input_ids": ids, **make_images([WIDE], [4])}
    expected = model(**inputs, labels=ids.masked_fill(ids == V1_IMAGE, -100)).loss
    for settings in ({}, {"skip_logits": False}):
        torch.testing.assert_close(model(**inputs, labels=ids, **settings).loss, expected)


@pytest.fixture
def collators(
    tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> tuple[Collate, Collate]:
    """One that leaves placeholders out of the labels, and one that copies the ids."""

    def masking(samples: list[dict[str, str]]) -> Batch:
        texts = tuple(sample["text"] for sample in samples)
        return make_batch(tiny_processor, checker_image, texts=texts)

    def copying(samples: list[dict[str, str]]) -> Batch:
        return with_placeholders(masking(samples))

    return masking, copying


def make_trainer(model: Any, collate: Collate, directory: Path, **arguments: Any) -> Any:
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
    rows = [{"text": text} for text in TEXTS]
    return Trainer(model, settings, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def run(trainer: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after training, and the losses that were logged."""
    start = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    trained = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses.append(trainer.evaluate()["eval_loss"])
    trainer.model.load_state_dict(start, strict=False)
    return trained, losses


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, id="accumulated"),
        pytest.param({"per_device_train_batch_size": 2}, id="one-batch"),
        pytest.param(
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
            id="smoothed",
        ),
    ],
)
def test_trainer_counts_and_scores_no_placeholders(
    model: XGenMMForConditionalGeneration,
    collators: tuple[Collate, Collate],
    tmp_path: Path,
    arguments: dict[str, Any],
) -> None:
    results = [run(make_trainer(model, collate, tmp_path, **arguments)) for collate in collators]
    torch.testing.assert_close(results[1], results[0])
    # What counts is that something was learned at all.
    assert all(np.isfinite(loss) and loss > 0 for loss in results[0][1])


def test_trainer_of_an_adapted_model_counts_no_placeholders(
    model: XGenMMForConditionalGeneration, collators: tuple[Collate, Collate], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv_proj"], r=2, lora_alpha=32))
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    results = [run(make_trainer(adapted, collate, tmp_path, **arguments)) for collate in collators]
    torch.testing.assert_close(results[1], results[0])


def test_trainers_of_other_models_are_left_alone(
    model: XGenMMForConditionalGeneration, collators: tuple[Collate, Collate], tmp_path: Path
) -> None:
    from transformers import Phi3ForCausalLM

    make_trainer(model, collators[1], tmp_path)  # whatever it changes is in place now
    other = Phi3ForCausalLM(model.config.text_config)
    trainer = make_trainer(other, collators[1], tmp_path)
    batch = collators[1]([{"text": TEXTS[0]}])
    labels = batch["labels"].clone()
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert int(count) == int((labels[:, 1:] != -100).sum())
    assert torch.equal(trainer._prepare_inputs(batch)["labels"], labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sft_trainer_with_its_own_collator_learns_no_placeholders(
    model: XGenMMForConditionalGeneration,
    tiny_processor: XGenMMProcessor,
    checker_image: Draw,
    tmp_path: Path,
    smoothing: float,
) -> None:
    trl = pytest.importorskip("trl", reason="`SFTTrainer` needs the `train` extra")
    datasets = pytest.importorskip("datasets", reason="`SFTTrainer` needs the `train` extra")

    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
            ],
            "images": [checker_image(20, 60)] * count,
        }
        for count, question in ((1, "What number is written here?"), (2, "Which one?"))
    ]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        label_smoothing_factor=smoothing,
        learning_rate=1e-2,
        optim="sgd",
        max_length=None,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    results = []
    for is_masked in (True, False):
        trainer = trl.SFTTrainer(
            model, settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tiny_processor
        )
        collate = trainer.data_collator
        if is_masked:

            def masking(samples: list[dict[str, Any]], collate: Any = collate) -> Any:
                made = collate(samples)
                made["labels"] = made["labels"].masked_fill(made["labels"] == tiny_processor.image_token_id, -100)
                return made

            trainer.data_collator = masking
        start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append(({name: weight.detach().clone() for name, weight in model.named_parameters()}, losses))
        model.load_state_dict(start, strict=False)
        del model.forward
    torch.testing.assert_close(results[1], results[0])
