"""Ways to load and save that the host offers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

from tests.picture_batch import Draw, make_batch
from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.modeling.host import CACHE_NAME

REPOSITORY, REVISION = "someone/some-model", "a" * 40


@pytest.fixture
def batch(tiny_processor: XGenMMProcessor, checker_image: Draw) -> dict[str, torch.Tensor]:
    return make_batch(tiny_processor, checker_image, with_labels=False)


@pytest.fixture
def expected(tiny_model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = tiny_model(**batch).logits
    return logits


@pytest.fixture
def saved(tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path) -> Path:
    """A checkpoint in several shards."""
    tiny_model.save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    tiny_processor.save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    return tmp_path / "saved"


# Weights read from a file are aligned as the file has them, and kernels round by that: sums are close, not equal.
def logits_of(model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits.cpu()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"device_map": "auto"}, id="device-map-auto"),
        pytest.param({"device_map": "cpu"}, id="device-map-cpu"),
        pytest.param({"device_map": {"model": "cpu", "lm_head": "cpu"}}, id="device-map-dict"),
        pytest.param({"low_cpu_mem_usage": True}, id="low-memory"),
        pytest.param({"dtype": "auto"}, id="dtype-auto"),
        pytest.param({"use_safetensors": True}, id="safetensors"),
        pytest.param({"local_files_only": True}, id="local"),
    ],
)
def test_loading_gives_the_saved_logits(
    saved: Path, batch: dict[str, torch.Tensor], expected: torch.Tensor, arguments: dict[str, object]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(saved, **arguments).eval()
    torch.testing.assert_close(logits_of(model, batch), expected)


@pytest.mark.parametrize("part", ["model.vision_tower", "model.resampler", "model.language_model"])
def test_part_offloaded_to_disk_gives_the_saved_logits(
    saved: Path, batch: dict[str, torch.Tensor], expected: torch.Tensor, tmp_path: Path, part: str
) -> None:
    places = dict.fromkeys(("model.vision_tower", "model.resampler", "model.language_model", "lm_head"), "cpu")
    model = AutoModelForImageTextToText.from_pretrained(
        saved, device_map=places | {part: "disk"}, offload_folder=tmp_path / "offload"
    ).eval()
    assert model.hf_device_map[part] == "disk"
    assert all(weight.device.type == "meta" for weight in model.get_submodule(part).parameters())
    torch.testing.assert_close(logits_of(model, batch), expected)


def test_stored_precision_is_kept_with_auto_and_changed_on_request(
    tiny_model: XGenMMForConditionalGeneration, tmp_path: Path
) -> None:
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_variant_is_saved_and_loaded_by_its_name(
    tiny_model: XGenMMForConditionalGeneration, tmp_path: Path, batch: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    tiny_model.save_pretrained(tmp_path, variant="fp32")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.fp32.safetensors"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, variant="fp32").eval()
    torch.testing.assert_close(logits_of(loaded, batch), expected)
    with pytest.raises(OSError, match="model"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_hub_id_and_revision_are_found_in_the_cache_without_a_network(
    saved: Path, tmp_path: Path, batch: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    home = tmp_path / "cache" / "models--someone--some-model"
    shutil.copytree(saved, home / "snapshots" / REVISION)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    where = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for revision in ("main", REVISION):
        model = AutoModelForImageTextToText.from_pretrained(REPOSITORY, revision=revision, **where).eval()
        torch.testing.assert_close(logits_of(model, batch), expected)
        assert type(AutoProcessor.from_pretrained(REPOSITORY, revision=revision, **where)) is XGenMMProcessor
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        AutoModelForImageTextToText.from_pretrained(REPOSITORY, revision="b" * 40, **where)


def test_added_tokens_get_rows_in_both_tables_and_the_bias(
    tiny_model: XGenMMForConditionalGeneration,
    tiny_processor: XGenMMProcessor,
    batch: dict[str, torch.Tensor],
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    tokenizer = tiny_processor.tokenizer
    old_size = len(tokenizer)
    try:
        assert tokenizer.add_tokens(["<box>", "</box>"]) == 2
        tiny_model.resize_token_embeddings(len(tokenizer))
        assert tiny_model.lm_head.bias.shape == (old_size + 2,)
        assert tiny_model.config.text_config.vocab_size == old_size + 2
        tiny_model.save_pretrained(tmp_path)
        tiny_processor.save_pretrained(tmp_path)
    finally:
        # The tokenizer is shared by all tests.
        tiny_processor.tokenizer = type(tokenizer).from_pretrained(tmp_path)
        del tokenizer
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded, batch)[..., :old_size], expected)
    ids = AutoProcessor.from_pretrained(tmp_path)(text="<box>")["input_ids"][0]
    assert ids[-1:] == [old_size]
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["vocab_size"] == old_size + 2


def has_cache(model: XGenMMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> tuple[bool, bool]:
    """Whether `forward` and `generate` keep a cache where the call leaves it open."""
    with torch.no_grad():
        scored = model(**batch)
    generated = model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True)
    return getattr(scored, CACHE_NAME) is not None, getattr(generated, CACHE_NAME) is not None


@pytest.mark.parametrize("loader", [XGenMMForConditionalGeneration, AutoModelForImageTextToText])
@pytest.mark.parametrize("use_cache", [False, True])
def test_use_cache_of_a_load_is_that_of_forward_and_generate(
    saved: Path, batch: dict[str, torch.Tensor], tmp_path: Path, loader: Any, use_cache: bool
) -> None:
    model = loader.from_pretrained(saved, use_cache=use_cache)
    assert has_cache(model, batch) == (use_cache, use_cache)
    # A setting of the model, so it is saved with it.
    model.save_pretrained(tmp_path / "again")
    assert has_cache(loader.from_pretrained(tmp_path / "again"), batch) == (use_cache, use_cache)
    assert has_cache(loader.from_pretrained(tmp_path / "again", use_cache=not use_cache), batch) == (
        not use_cache,
        not use_cache,
    )
    config = XGenMMConfig.from_pretrained(saved)
    given = loader.from_pretrained(saved, config=config, use_cache=use_cache)
    assert has_cache(given, batch) == (use_cache, use_cache)
    assert config.use_cache is None


@pytest.mark.parametrize("section", ["", "text_config"])
@pytest.mark.parametrize("has_generation_file", [True, False])
def test_use_cache_of_the_configuration_is_that_of_forward_and_generate(
    saved: Path, batch: dict[str, torch.Tensor], section: str, has_generation_file: bool
) -> None:
    settings = json.loads((saved / "config.json").read_text())
    (settings[section] if section else settings)["use_cache"] = False
    (saved / "config.json").write_text(json.dumps(settings))
    if not has_generation_file:
        (saved / "generation_config.json").unlink()
    loaded = XGenMMForConditionalGeneration.from_pretrained(saved)
    new = XGenMMForConditionalGeneration(XGenMMConfig.from_pretrained(saved)).eval()
    assert has_cache(loaded, batch) == has_cache(new, batch) == (False, False)
    with torch.no_grad():
        assert getattr(loaded(**batch, use_cache=True), CACHE_NAME) is not None


def test_cache_that_a_trainer_turned_off_is_on_in_what_it_saves(
    saved: Path, batch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = XGenMMForConditionalGeneration.from_pretrained(saved)
    Trainer(model, TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True)).save_model(tmp_path / "done")
    assert model.config.use_cache is False
    assert has_cache(XGenMMForConditionalGeneration.from_pretrained(tmp_path / "done"), batch) == (True, True)


@pytest.mark.parametrize("value", ["no", 0])
def test_use_cache_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="use_cache"):
        XGenMMConfig(use_cache=value)
