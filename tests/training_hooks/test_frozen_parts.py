"""Parts that are not trained cost no autograd graph."""

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration


def saved_bytes(model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of activations that autograd keeps of encoding the pictures."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The output is held until the count is done, so that no storage is used twice.
        outputs = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
    assert outputs is not None
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("method", ["enable_input_require_grads", "gradient_checkpointing_enable"])
def test_frozen_tower_gives_features_without_graph_and_the_resampler_still_trains(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], method: str
) -> None:
    model.model.vision_tower.requires_grad_(False)
    # Both mark the outputs of embedding layers as differentiable, the tower's among them.
    getattr(model, method)()
    outputs = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
    assert outputs.last_hidden_state.grad_fn is None
    assert outputs.pooler_output[0].grad_fn is not None
    model(**batch).loss.backward()
    assert all(weight.grad is None for weight in model.model.vision_tower.parameters())
    assert all(weight.grad.abs().max() > 0 for weight in model.model.resampler.parameters())


def test_frozen_tower_keeps_none_of_its_activations(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    model.model.resampler.requires_grad_(False)
    trained = saved_bytes(model, batch)
    model.model.vision_tower.requires_grad_(False)
    # What PEFT and activation checkpointing do to embedding layers.
    model.enable_input_require_grads()
    assert trained > 1e5
    assert saved_bytes(model, batch) == 0


def test_one_trained_weight_in_the_tower_keeps_its_graph(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    model.model.vision_tower.requires_grad_(False)
    model.model.vision_tower.post_layernorm.weight.requires_grad_(True)
    model(**batch).loss.backward()
    assert model.model.vision_tower.post_layernorm.weight.grad.abs().max() > 0


def test_frozen_model_still_differentiates_with_respect_to_pixels(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    model.requires_grad_(False)
    pixels = batch["pixel_values"].requires_grad_(True)
    model(**batch).loss.backward()
    assert pixels.grad[0, 0].abs().max() > 0
    # The fifth tile of the first picture is filler.
    assert pixels.grad[0, 4].abs().max() == 0
