"""Every system builds, and its parts do together what the whole does."""

from dataclasses import replace

import pytest
import torch

from benchmarks.suite.phases.encoding import count_encoded
from benchmarks.suite.phases.prefill import PARTS, prefill_jobs
from benchmarks.suite.shapes import FULL, HOST, SMALL, TOY
from benchmarks.suite.systems import STANDARD, SYSTEMS, TILES_PER_IMAGE, build_system
from xgen_mm.modeling.host import CACHE_NAME

SHAPE = replace(TOY, vocab_size=128)


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_prefills_a_prompt_with_two_pictures(name: str) -> None:
    built = build_system(name, SHAPE)
    inputs = built.prompt(2)
    placeholders = int((inputs["input_ids"] == built.image_token_id).sum())
    assert placeholders == 2 * built.tokens_per_image
    with torch.no_grad():
        outputs = built.model(**inputs, logits_to_keep=1, use_cache=True)
    assert outputs.logits.shape == (1, 1, SHAPE.vocab_size)
    assert getattr(outputs, CACHE_NAME).get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", SYSTEMS)
def test_whole_prefill_sends_every_tile_through_the_tower_once(name: str) -> None:
    built = build_system(name, SHAPE)
    whole = prefill_jobs(built, built, num_images=1, batch=2)["whole"]
    assert count_encoded(built, whole) == 2 * TILES_PER_IMAGE


@pytest.mark.parametrize("name", STANDARD)
def test_every_part_of_a_system_runs(name: str) -> None:
    built = build_system(name, SHAPE)
    jobs = prefill_jobs(built, built, num_images=1)
    assert tuple(jobs) == PARTS
    with torch.no_grad():
        features, scores = jobs["vision"](), jobs["language"]()
        jobs["connector"]()
    assert features.shape == (TILES_PER_IMAGE, SHAPE.cells, SHAPE.vision_width)
    assert scores.shape == (1, 1, SHAPE.vocab_size)


@pytest.mark.parametrize("name", STANDARD)
def test_bare_language_model_shares_the_weights_of_the_system(name: str) -> None:
    built = build_system(name, SHAPE)
    causal = built.causal_lm()
    ids = built.input_ids(0)
    with torch.no_grad():
        expected = built.model(input_ids=ids, logits_to_keep=1).logits
        found = causal(input_ids=ids, logits_to_keep=1).logits
    torch.testing.assert_close(found, expected)


def test_tower_in_small_calls_gives_the_features_of_one_call() -> None:
    built = build_system(STANDARD[0], SHAPE)
    tiles = built.tiles(2)
    with torch.no_grad():
        torch.testing.assert_close(built.encode(tiles, per_call=4), built.encode(tiles))


def test_unknown_system_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"no system 'flamingo'.*idefics3"):
        build_system("flamingo", SHAPE)


def test_shapes_keep_the_released_proportions() -> None:
    assert (FULL.vision_mlp, FULL.text_mlp, FULL.cells) == (4304, 8192, 729)
    assert SMALL.vision_width / SMALL.vision_heads == FULL.vision_width / FULL.vision_heads == 72
    assert (HOST.vision_layers, HOST.resampler_layers, HOST.text_layers) == (27, 6, 32)
