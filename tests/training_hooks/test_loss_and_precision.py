"""The loss under gradient accumulation, and mixed precision."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from tests.picture_batch import make_batch
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor


def gradients(model: XGenMMForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def one_row(batch: dict[str, torch.Tensor], row: int, *, pictures: slice) -> dict[str, torch.Tensor]:
    """One row of a batch on its own, without its padding."""
    real = batch["attention_mask"][row].bool()
    text = {name: batch[name][row, real].unsqueeze(0) for name in ("input_ids", "attention_mask", "labels")}
    return text | {name: batch[name][pictures] for name in ("pixel_values", "image_sizes")}


def test_accumulated_unequal_batches_give_the_gradient_of_one_batch(
    model: XGenMMForConditionalGeneration,
    tiny_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
) -> None:
    # Both begin with a picture: the first token of a row is predicted only if padding stands before it.
    texts = ("<image> What number is written here?", "<image> and <image>")
    whole = make_batch(tiny_processor, checker_image, texts=texts)
    parts = [one_row(whole, 0, pictures=slice(0, 1)), one_row(whole, 1, pictures=slice(1, 3))]
    num_items = [int((part["labels"] != -100).sum()) for part in parts]
    assert num_items[0] > 2 * num_items[1]

    loss = model(**whole).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    accumulated = torch.zeros(())
    for part in parts:
        share = model(**part, num_items_in_batch=torch.tensor(sum(num_items))).loss
        share.backward()
        accumulated += share.detach()
    torch.testing.assert_close(accumulated, loss.detach())
    torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_trains_float32_weights(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    model(**batch).loss.backward()
    expected = gradients(model)
    expected_loss = model(**batch).loss
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch, skip_logits=False)
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.loss, expected_loss, atol=0.05, rtol=0.05)
    for part in ("vision_tower", "resampler", "language_model", "lm_head"):
        ours, theirs = (
            torch.cat([gradient.flatten() for name, gradient in found.items() if part in name])
            for found in (gradients(model), expected)
        )
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98, part


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_takes_float32_pictures(
    model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    expected = model(**batch).loss
    outputs = model.to(dtype)(**batch, skip_logits=False)
    outputs.loss.backward()
    assert outputs.logits.dtype == dtype
    torch.testing.assert_close(outputs.loss.float(), expected, atol=0.1, rtol=0.1)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


@pytest.mark.parametrize(
    ("tower", "resampler", "language"),
    [(torch.bfloat16, torch.float32, torch.float16), (torch.float32, torch.bfloat16, torch.float32)],
)
def test_parts_may_differ_in_precision(
    model: XGenMMForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    tower: torch.dtype,
    resampler: torch.dtype,
    language: torch.dtype,
) -> None:
    expected = model(**batch).loss
    model.model.vision_tower.to(tower)
    model.model.resampler.to(resampler)
    model.model.language_model.to(language)
    model.lm_head.to(language)
    torch.testing.assert_close(model(**batch).loss.float(), expected, atol=0.1, rtol=0.1)
