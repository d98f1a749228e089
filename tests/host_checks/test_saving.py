"""Saving, loading, copying and fresh weights."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xgen_mm import XGenMMForConditionalGeneration, XGenMMModel

from .outside_view import make_batch, outside_config


def logits_of(model: XGenMMForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_batch("tiles")).logits


@pytest.mark.parametrize("shard_size", ["5GB", "30KB"], ids=["one-file", "shards"])
def test_saved_model_loads_with_every_weight_and_equal_logits(
    model: XGenMMForConditionalGeneration, tmp_path: Path, shard_size: str
) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "30KB")
    loaded, info = XGenMMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    torch.testing.assert_close(logits_of(loaded), logits_of(model))


def test_saved_files_hold_our_names(model: XGenMMForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(model.state_dict())


def test_model_without_head_and_model_with_head_load_each_other(
    model: XGenMMForConditionalGeneration, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "full")
    base, info = XGenMMModel.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not info["missing_keys"]
    base.save_pretrained(tmp_path / "base")
    full, info = XGenMMForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["lm_head.bias", "lm_head.weight"]
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(full.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_precision_survives_saving(model: XGenMMForConditionalGeneration, tmp_path: Path, dtype: torch.dtype) -> None:
    copy.deepcopy(model).to(dtype).save_pretrained(tmp_path)
    loaded = XGenMMForConditionalGeneration.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_copies_give_equal_logits(model: XGenMMForConditionalGeneration) -> None:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False))
    expected = logits_of(model)
    for copied in copies:
        torch.testing.assert_close(logits_of(copied), expected)


def test_outputs_pickle(model: XGenMMForConditionalGeneration) -> None:
    with torch.no_grad():
        outputs = model(**make_batch("tiles"), use_cache=False)
    loaded = pickle.loads(pickle.dumps(outputs))
    assert torch.equal(loaded.logits, outputs.logits)
    assert torch.equal(loaded.image_hidden_states, outputs.image_hidden_states)


def test_fresh_weights_follow_the_configured_range() -> None:
    config = outside_config()
    for part in (config.text_config, config.resampler_config):
        part.initializer_range = 1e-10
    model = XGenMMForConditionalGeneration(config)
    for name, parameter in [*model.model.resampler.named_parameters(), *model.lm_head.named_parameters()]:
        expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tolerance = 4.0 if name == "latents" else 1e-8
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), atol=tolerance, rtol=0.0)
    assert model.model.resampler.latents.std().item() == pytest.approx(1.0, abs=0.2)


def test_weights_that_a_checkpoint_lacks_are_made_afresh() -> None:
    torch.manual_seed(0)
    model = XGenMMForConditionalGeneration.from_pretrained(None, config=outside_config(), state_dict={})
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cpu", name
        assert torch.isfinite(parameter).all(), name
        assert parameter.abs().max() < 10, name
    latents = model.model.resampler.latents
    assert latents.std().item() == pytest.approx(1.0, abs=0.2)
    assert torch.equal(model.model.resampler.norm.weight, torch.ones(32))


def test_model_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = XGenMMForConditionalGeneration(outside_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_wider_vocabulary_on_disk_is_refused_unless_asked_to_ignore_it(
    model: XGenMMForConditionalGeneration, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    config = outside_config()
    config.text_config.vocab_size = 50
    with pytest.raises(RuntimeError, match="mismatch"):
        XGenMMForConditionalGeneration.from_pretrained(tmp_path, config=config)
    loaded = XGenMMForConditionalGeneration.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert loaded.lm_head.weight.shape == (50, 32)
    assert torch.equal(loaded.model.resampler.latents, model.model.resampler.latents)
