"""Activation (gradient) checkpointing: less memory, the same numbers."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from xgen_mm import XGenMMForConditionalGeneration


def loss_and_gradients(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_keeps_the_loss_and_every_gradient(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], use_reentrant: bool
) -> None:
    expected_loss, expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    loss, gradients = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss, expected_loss)
    assert all(gradient is not None for gradient in expected.values())
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_with_a_frozen_tower_keeps_the_other_gradients(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], use_reentrant: bool
) -> None:
    model.model.vision_tower.requires_grad_(False)
    _, expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    _, gradients = loss_and_gradients(model, batch)
    assert expected["model.resampler.latents"] is not None
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-5)


def test_checkpointing_covers_the_layers_of_all_three_parts(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[str] = []

    def count(function: Any, *args: object, **kwargs: object) -> object:
        # A partial of the layer's call; versions of the host differ in whether the layer is bound or given.
        bound = getattr(function.func, "__self__", None)
        recomputed.append(type(function.args[0] if bound is None else bound).__name__)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", count)
    model.gradient_checkpointing_enable()
    model(**batch)
    # Two layers in each part; 13 tiles go through tower and resampler in one call.
    assert sorted(recomputed) == ["Phi3DecoderLayer"] * 2 + ["SiglipEncoderLayer"] * 2 + ["XGenMMResamplerLayer"] * 2
