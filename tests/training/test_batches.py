"""Batches of a run."""

import json
from pathlib import Path

import pytest
import torch

from tests.data.made_records import conversation
from xgen_mm.data.collators import PaddingCollator
from xgen_mm.data.encoding import RecordEncoder
from xgen_mm.data.packing import PackingCollator
from xgen_mm.training.batches import WithPicture, make_loader
from xgen_mm.training.starting_point import load_model, load_processor

from .conftest import MakeRecipe


@pytest.fixture
def text_alone(tmp_path: Path) -> Path:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    path = tmp_path / "text.json"
    path.write_text(json.dumps([{"id": str(number), "conversations": turns} for number in range(4)]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="padded"),
        pytest.param(("batches.grouping=packed", "batches.row_length=160", "text.max_tokens=160"), id="packed"),
    ],
)
def test_text_alone_reaches_the_resampler_where_weights_are_sharded(
    make_recipe: MakeRecipe, text_alone: Path, changes: tuple[str, ...]
) -> None:
    recipe = make_recipe(*changes, data=[{"format": "llava_json", "path": str(text_alone)}])
    model, processor = load_model(recipe), load_processor(recipe)
    plain, with_picture = (
        next(iter(make_loader(recipe, processor, always_pictures=always))) for always in (False, True)
    )
    assert "pixel_values" not in plain
    # The blank picture teaches nothing.
    learned = [batch["labels"][batch["labels"] != -100].tolist() for batch in (plain, with_picture)]
    assert learned[0] == learned[1] != []
    model(**with_picture).loss.backward()
    assert all(weight.grad is not None for weight in model.model.resampler.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(**with_picture).loss, model(**plain).loss)


def test_blank_picture_goes_into_the_last_row_if_there_is_room(make_recipe: MakeRecipe) -> None:
    processor = load_processor(make_recipe())
    sample = RecordEncoder(processor)(conversation("What?", "This."))
    collator = PackingCollator(processor)
    room = len(WithPicture(collator, processor).blank)
    for row_length, num_rows in ((len(sample) + room, 1), (len(sample) + room - 1, 2)):
        batch = WithPicture(collator, processor, row_length=row_length)([[sample]])
        assert batch["input_ids"].shape[0] == num_rows
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == room


def test_batch_with_a_picture_is_left_as_it_is(make_recipe: MakeRecipe) -> None:
    processor = load_processor(make_recipe())
    encoder = RecordEncoder(processor)
    samples = [encoder(conversation("<image>What?", "This.")), encoder(conversation("What?", "That."))]
    collator = PaddingCollator(processor)
    found, expected = WithPicture(collator, processor)([samples]), collator([samples])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
