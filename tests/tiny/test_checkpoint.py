"""The packaged checkpoint belongs to the code beside it."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from xgen_mm.modeling.configuration_xgen_mm import XGenMMConfig
from xgen_mm.processing.processing_xgen_mm import XGenMMProcessor
from xgen_mm.tiny import checkpoint
from xgen_mm.tiny.architecture import build_config
from xgen_mm.tiny.checkpoint import tiny_checkpoint
from xgen_mm.tiny.recipe import load_recipe

SHIPPED_RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "digits.yaml"
TEXT = "<|user|>\nImage 1: <image>\nWhich image shows the largest number?<|end|>\n<|assistant|>\nImage 2<|end|>"


def test_packaged_tokenizer_is_the_one_training_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    packaged = XGenMMProcessor.from_pretrained(tiny_checkpoint()).tokenizer
    assert packaged.get_vocab() == tokenizer.get_vocab()
    assert packaged(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert packaged.padding_side == "left"


def test_packaged_config_has_the_sizes_of_the_shipped_recipe(tokenizer: PreTrainedTokenizerFast) -> None:
    packaged = XGenMMConfig.from_pretrained(tiny_checkpoint())
    built = build_config(load_recipe(SHIPPED_RECIPE).model, tokenizer)
    for name in ("vision_config", "resampler_config", "text_config"):
        ours, theirs = getattr(packaged, name).to_dict(), getattr(built, name).to_dict()
        sizes = {key for key, value in theirs.items() if isinstance(value, int) and not isinstance(value, bool)}
        assert {key: ours[key] for key in sizes} == {key: theirs[key] for key in sizes}
    assert packaged.image_grid_pinpoints == built.image_grid_pinpoints
    assert packaged.tile_grouping == built.tile_grouping == "tile"
    assert packaged.image_token_id == built.image_token_id


def test_packaged_weights_stay_small() -> None:
    assert (tiny_checkpoint() / "model.safetensors").stat().st_size < 12 * 2**20


def test_tiny_checkpoint_missing_files_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"recipes/tiny/README\.md"):
        tiny_checkpoint()
