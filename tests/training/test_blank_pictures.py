"""Where a model is sharded, every batch runs the resampler: one of text alone gets a picture that teaches nothing."""

import json
from pathlib import Path

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.training.batches import make_loader

from .conftest import MakeRecipe

PACKED = ("batches.grouping=packed", "batches.row_length={row}", "text.max_tokens={row}")


@pytest.mark.parametrize(
    ("changes", "num_rows"),
    [
        pytest.param([], 3, id="padded"),
        pytest.param([change.format(row=600) for change in PACKED], 2, id="room-in-the-row"),
        pytest.param([change.format(row=24) for change in PACKED], 3, id="no-room"),
    ],
)
def test_batch_of_text_alone_gets_a_picture_of_which_nothing_is_learned(
    make_recipe: MakeRecipe,
    tiny_processor: XGenMMProcessor,
    tiny_model: XGenMMForConditionalGeneration,
    tmp_path: Path,
    changes: list[str],
    num_rows: int,
) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there"}]
    path = tmp_path / "text.json"
    path.write_text(json.dumps([{"id": str(number), "conversations": turns} for number in range(2)]))
    recipe = make_recipe(f"data.0.path={path}", "batches.global_batch_size=2", "batches.window=2", *changes)
    plain, guarded = (
        next(iter(make_loader(recipe, tiny_processor, always_pictures=always))) for always in (False, True)
    )
    assert "pixel_values" not in plain
    assert guarded["pixel_values"].shape[0] == 1
    assert (guarded["input_ids"] == tiny_processor.image_token_id).any()
    assert len(guarded["input_ids"]) == num_rows
    assert (guarded["labels"] != -100).sum() == (plain["labels"] != -100).sum() > 0
    losses = [tiny_model(**batch).loss for batch in (plain, guarded)]
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    losses[1].backward()
    assert all(weight.grad is not None for weight in tiny_model.model.resampler.parameters())
