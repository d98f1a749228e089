"""Training: every weight gets a gradient, with and without activation checkpointing."""

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration

from .outside_view import IMAGE, make_batch, outside_model


def gradients(model: XGenMMForConditionalGeneration, form: str) -> dict[str, torch.Tensor]:
    batch = make_batch(form)
    hidden = (batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE)
    model.zero_grad()
    model.train()
    model(**batch, labels=batch["input_ids"].masked_fill(hidden, -100)).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("grouping", ["raster_chunks", "tile"])
@pytest.mark.parametrize("form", ["one-tile", "tiles"])
def test_every_weight_gets_a_gradient(form: str, grouping: str) -> None:
    model = outside_model(tile_grouping=grouping)
    found = gradients(model, form)
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    # A key's bias shifts all scores of a query alike, so its gradient is zero but for rounding.
    idle = [name for name, grad in found.items() if not grad.any() and "k_proj.bias" not in name]
    assert idle == []


@pytest.mark.parametrize("use_reentrant", [None, False, True], ids=["default", "not-reentrant", "reentrant"])
def test_checkpointing_gives_the_same_gradients(use_reentrant: bool | None) -> None:
    model = outside_model()
    expected = {name: grad.clone() for name, grad in gradients(model, "tiles").items()}
    settings = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    assert model.is_gradient_checkpointing
    found = gradients(model, "tiles")
    assert sorted(found) == sorted(expected)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_checkpointing_runs_every_layer_again_until_it_is_switched_off() -> None:
    model = outside_model()
    layers = [
        *model.model.vision_tower.encoder.layers,
        *model.model.resampler.layers,
        *model.model.language_model.layers,
    ]
    runs = [0] * len(layers)

    def count(index: int) -> None:
        runs[index] += 1

    for index, layer in enumerate(layers):
        # The part of a layer that the checkpointed function itself calls.
        inner = getattr(layer, "attention", None) or layer.self_attn
        inner.register_forward_pre_hook(lambda *_, index=index: count(index))
    model.gradient_checkpointing_enable()
    gradients(model, "tiles")
    assert runs == [2] * 6
    model.gradient_checkpointing_disable()
    gradients(model, "tiles")
    assert runs == [3] * 6


def test_targets_that_are_shifted_already_replace_the_labels() -> None:
    model = outside_model()
    batch = make_batch("one-tile")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        expected = model(**batch, labels=labels).loss
        torch.testing.assert_close(model(**batch, labels=labels, shift_labels=shifted).loss, expected)
        other = model(**batch, labels=labels, shift_labels=shifted.roll(1, 1)).loss
    assert abs(other - expected) > 1e-3
