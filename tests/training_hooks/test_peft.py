"""PEFT adapters on modules chosen by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from xgen_mm import XGenMMForConditionalGeneration

peft = pytest.importorskip("peft", reason="adapters need the `train` extra")

LANGUAGE_MODEL = r".*language_model.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
RESAMPLER = r".*resampler.*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj)"


def adapted(model: XGenMMForConditionalGeneration, **settings: object) -> Any:
    torch.manual_seed(3)
    adapter = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(model, adapter)


def adapted_parts(model: torch.nn.Module) -> set[str]:
    """Which parts of the model carry adapters."""
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return {
        part for part in ("vision_tower", "resampler", "language_model", "lm_head") for name in names if part in name
    }


def take_steps(model: torch.nn.Module, batch: dict[str, torch.Tensor], *, num_steps: int = 2) -> list[float]:
    """Losses before each step, the last one after them."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(num_steps):
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, model(**batch).loss.item()]


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        pytest.param(LANGUAGE_MODEL, "language_model", id="language-model"),
        pytest.param(RESAMPLER, "resampler", id="resampler"),
    ],
)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_adapters_on_one_part_train_it_and_leave_the_weights(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], targets: str, part: str, use_dora: bool
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wrapped = adapted(model, target_modules=targets, use_dora=use_dora)
    assert adapted_parts(wrapped) == {part}
    losses = take_steps(wrapped, batch)
    assert losses[-1] < losses[0]
    after = wrapped.unload().state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_adapters_train_the_same_under_activation_checkpointing(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], use_reentrant: bool
) -> None:
    wrapped = adapted(model, target_modules=LANGUAGE_MODEL)
    wrapped(**batch).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in wrapped.named_parameters() if weight.requires_grad}
    wrapped.zero_grad()
    wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    wrapped(**batch).loss.backward()
    found = {name: weight.grad for name, weight in wrapped.named_parameters() if weight.requires_grad}
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_all_linear_reaches_the_tower_unless_it_is_excluded(model: XGenMMForConditionalGeneration) -> None:
    everywhere = adapted(model, target_modules="all-linear")
    assert adapted_parts(everywhere) == {"vision_tower", "resampler", "language_model"}
    without_tower = adapted(everywhere.unload(), target_modules="all-linear", exclude_modules=r".*vision_tower.*")
    assert adapted_parts(without_tower) == {"resampler", "language_model"}


def test_fully_trained_resampler_next_to_adapters_is_saved_with_them(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "base")
    base = XGenMMForConditionalGeneration.from_pretrained(tmp_path / "base").train()
    wrapped = adapted(base, target_modules=LANGUAGE_MODEL, modules_to_save=["resampler"])
    take_steps(wrapped, batch)
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(loaded(**batch).logits, expected)
        assert not torch.equal(expected, model.eval()(**batch).logits)


def test_merged_adapters_give_a_plain_model_with_the_same_logits(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrapped = adapted(model, target_modules=LANGUAGE_MODEL).eval()
    take_steps(wrapped, batch)
    with torch.no_grad():
        expected = wrapped(**batch).logits
        merged = wrapped.merge_and_unload()
        merged.save_pretrained(tmp_path)
        loaded = XGenMMForConditionalGeneration.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_prompt_tuning_trains_virtual_tokens_before_pictures(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    trained = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
    assert trained == ["prompt_encoder.default.embedding.weight"]
    losses = take_steps(wrapped, batch, num_steps=3)
    assert losses[-1] < losses[0]
    other = batch | {"pixel_values": batch["pixel_values"].flip(-1)}
    assert wrapped(**other).loss.item() != losses[-1]


def test_prompt_tuned_model_generates_about_pictures(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    output = wrapped.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with torch.no_grad():
        first = wrapped(**inputs).logits[:, -1].argmax(-1)
    assert output.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert output[:, -3].tolist() == first.tolist()
