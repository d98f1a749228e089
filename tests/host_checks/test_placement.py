"""Where weights are put: tensor-parallel plan, device maps, and parts kept on disk."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import infer_auto_device_map

from xgen_mm import XGenMMForConditionalGeneration

from .outside_view import make_batch

PARTS = ("model.vision_tower", "model.resampler", "model.language_model", "lm_head")


def test_tensor_parallel_plan_names_linear_layers_that_exist(model: XGenMMForConditionalGeneration) -> None:
    modules = dict(model.named_modules())
    assert len(model.tp_plan) > 4
    for pattern in model.tp_plan:
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        found = [modules[name] for name in modules if regex.fullmatch(name)]
        assert found, pattern
        assert all(isinstance(module, torch.nn.Linear | torch.nn.Embedding) for module in found), pattern


def test_tensor_parallel_plan_covers_the_language_model_and_the_head(model: XGenMMForConditionalGeneration) -> None:
    planned = set(model.tp_plan)
    for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        assert f"model.language_model.layers.*.{name}" in planned
    assert "lm_head" in planned


def test_layers_with_shortcuts_are_never_split(model: XGenMMForConditionalGeneration) -> None:
    expected = {"SiglipEncoderLayer", "XGenMMResamplerLayer", "Phi3DecoderLayer"}
    assert expected <= set(model._no_split_modules)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    device_map = infer_auto_device_map(
        model, max_memory={0: size // 2, "cpu": size}, no_split_module_classes=model._no_split_modules
    )
    assert len(set(device_map.values())) == 2
    layer_names = [name for name, module in model.named_modules() if type(module).__name__ in expected]
    inside = [name for name in device_map for layer in layer_names if name.startswith(f"{layer}.")]
    assert inside == []


@pytest.mark.parametrize("part", PARTS)
def test_part_kept_on_disk_gives_the_same_logits(
    model: XGenMMForConditionalGeneration, tmp_path: Path, part: str
) -> None:
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(PARTS, "cpu") | {part: "disk"}
    split = XGenMMForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert split.hf_device_map == device_map
    assert {weight.device.type for weight in split.get_submodule(part).parameters()} == {"meta"}
    batch = make_batch("tiles")
    with torch.no_grad():
        torch.testing.assert_close(split(**batch).logits, model(**batch).logits)
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(split.generate(**batch, **settings), model.generate(**batch, **settings))
