"""FLOPs of a step: against torch's counter of what really runs, against published sizes, and peaks of devices."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.picture_batch import make_batch
from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.errors import XGenMMError
from xgen_mm.training.planning.flops import (
    BatchCounts,
    TrainedParts,
    count_pairs,
    count_pictures,
    count_tiled,
    forward_cost,
    step_flops,
    trained_parts,
)
from xgen_mm.training.planning.kept_activations import Arithmetic, kept_by_connector
from xgen_mm.training.planning.peak_speed import device_peak, measure_matmul, published_peak

TERA = 1e12
CELLS = 27**2


@pytest.fixture(scope="module")
def released() -> XGenMMForConditionalGeneration:
    """The 4B model without memory."""
    with torch.device("meta"):
        return XGenMMForConditionalGeneration(XGenMMConfig())


@pytest.fixture
def one_picture() -> BatchCounts:
    """A picture of five tiles and 64 text tokens, every position scored."""
    return BatchCounts(
        sequences=1, pictures=1, tiles=5, groups=5, cells=5 * CELLS, tokens=704, pairs=count_pairs(704), labelled=704
    )


def test_step_of_released_model_needs_20_tflop(
    released: XGenMMForConditionalGeneration, one_picture: BatchCounts
) -> None:
    flops = step_flops(forward_cost(released), one_picture, trained=TrainedParts())
    assert flops.model / TERA == pytest.approx(20.3, abs=0.05)
    assert flops.parts["vision_tower"] / TERA == pytest.approx(3.33, abs=0.005)
    assert flops.parts["resampler"] / TERA == pytest.approx(3 * 0.32, abs=0.015)


def test_forward_pass_of_released_model_needs_9_tflop(
    released: XGenMMForConditionalGeneration, one_picture: BatchCounts
) -> None:
    cost = forward_cost(released)
    prefill = step_flops(cost, one_picture, trained=TrainedParts()).forward - 703 * cost.label
    assert prefill / TERA == pytest.approx(8.85, abs=0.01)


def test_checkpointing_repeats_forward_pass_apart_from_frozen_tower(
    released: XGenMMForConditionalGeneration, one_picture: BatchCounts
) -> None:
    cost = forward_cost(released)
    plain = step_flops(cost, one_picture, trained=TrainedParts())
    checkpointed = step_flops(cost, one_picture, trained=TrainedParts(), checkpointing=True)
    assert plain.recompute == 0
    assert checkpointed.model == plain.model
    head_and_tower = cost.label * 704 + (cost.tile + cost.patches) * 5
    assert checkpointed.recompute == pytest.approx(plain.forward - head_and_tower)


@pytest.mark.parametrize(
    ("parts", "overlooked"),
    [
        pytest.param(("resampler", "language_model", "lm_head"), 1, id="as-released"),
        pytest.param(("resampler",), 0, id="resampler-only"),
        pytest.param(("vision_tower", "resampler", "language_model", "lm_head"), 1, id="everything"),
    ],
)
def test_counted_flops_equal_those_torch_sees(
    tiny_config: XGenMMConfig,
    tiny_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
    parts: tuple[str, ...],
    overlooked: int,
) -> None:
    torch.manual_seed(0)
    model = XGenMMForConditionalGeneration._from_config(tiny_config, attn_implementation="eager").train()
    train_only(model, parts)
    batch = make_batch(tiny_processor, checker_image)
    measured = measure(model, batch)
    counts = counts_of_full_squares(batch, tiny_config)
    cost = forward_cost(model)
    flops = step_flops(cost, counts, trained=trained_parts(model))
    # Torch's counter does not know products that are added in place, as the output layer's weight gradient is.
    assert flops.model == pytest.approx(measured + overlooked * cost.label * counts.labelled, rel=1e-9)


def test_counted_flops_of_adapters_equal_those_torch_sees(
    tiny_config: XGenMMConfig, tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    model = XGenMMForConditionalGeneration._from_config(tiny_config, attn_implementation="eager").train()
    train_only(model, ())
    settings = peft.LoraConfig(
        r=8, target_modules=r".*language_model\..*_proj", modules_to_save=["resampler"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    batch = make_batch(tiny_processor, checker_image)
    cost, trained = forward_cost(adapted), trained_parts(adapted)
    assert trained == TrainedParts(resampler=True, language_model=False, adapters=True)
    flops = step_flops(cost, counts_of_full_squares(batch, tiny_config), trained=trained)
    assert flops.model == pytest.approx(measure(adapted, batch), rel=1e-9)


def test_pairs_in_a_window_are_those_of_a_loop() -> None:
    def loop(length: int, window: int) -> int:
        return sum(1 for query in range(length) for key in range(query + 1) if query - key < window)

    assert [count_pairs(length, window=3) for length in range(8)] == [loop(length, 3) for length in range(8)]
    assert count_pairs(7) == loop(7, 7)


def test_tiles_are_counted_as_the_model_encodes_them(
    tiny_config: XGenMMConfig, tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> None:
    model = XGenMMForConditionalGeneration(tiny_config)
    images = [checker_image(20, 60), checker_image(56, 56)]
    inputs = dict(tiny_processor.image_processor(images, return_tensors="pt"))
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    counts = count_pictures(inputs, tiny_config)
    assert counts.pictures == 2
    assert counts.tiles == features.last_hidden_state.shape[0]
    assert counts.groups * 4 == sum(len(tokens) for tokens in features.pooler_output)


def test_stored_features_cost_no_tower(tiny_config: XGenMMConfig) -> None:
    model = XGenMMForConditionalGeneration(tiny_config)
    pixels, sizes = torch.zeros(1, 4, 3, 28, 28), torch.tensor([[20, 60]])
    features = model.get_image_features(pixels, sizes)
    counts = count_pictures({"mm_encoder_outputs": {"image": features}, "image_sizes": sizes}, tiny_config)
    assert (counts.tiles, counts.groups) == (0, 4)


def test_whole_picture_grouping_counts_one_group_and_its_content(tiny_config: XGenMMConfig) -> None:
    tiny_config.tile_grouping = "image"
    counts = count_tiled([(56, 56)], tiny_config)
    # Thumbnail of 4 x 4 cells and a full canvas of 8 x 8.
    assert (counts.groups, counts.cells) == (1, 16 + 64)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        pytest.param("NVIDIA H100 80GB HBM3", 989.4, id="h100-sxm"),
        pytest.param("NVIDIA H100 PCIe", 756, id="h100-pcie"),
        pytest.param("NVIDIA H200", 989.4, id="h200"),
        pytest.param("NVIDIA A100-SXM4-80GB", 312, id="a100"),
        pytest.param("NVIDIA L40S", 362, id="l40s"),
        pytest.param("NVIDIA L4", 121, id="l4"),
        pytest.param("NVIDIA GeForce RTX 4090", 165.2, id="rtx-4090"),
        pytest.param("NVIDIA B200", 2250, id="b200"),
    ],
)
def test_peak_of_known_device_is_the_dense_one(name: str, teraflops: float) -> None:
    assert published_peak(name, precision="bf16") == pytest.approx(teraflops * TERA)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "Some Other Device"])
def test_peak_of_unknown_device_is_left_out(name: str) -> None:
    assert published_peak(name, precision="bf16") is None


def test_unknown_kind_of_device_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert device_peak(torch.device("meta"), precision="bf16") is None
    assert "utilisation is left out" in caplog.text


def test_peak_of_cpu_is_measured_without_touching_random_state() -> None:
    before = torch.get_rng_state()
    # From the slowest emulator to the fastest server.
    assert 1e7 < measure_matmul("fp32") < 1e14
    assert torch.equal(before, torch.get_rng_state())


def train_only(model: XGenMMForConditionalGeneration, parts: tuple[str, ...]) -> None:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))


def measure(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return int(counter.get_total_flops())


def counts_of_full_squares(batch: dict[str, torch.Tensor], config: Any) -> BatchCounts:
    """Counts of a batch as eager attention computes it: padding and the masked half of the square too."""
    rows, length = batch["input_ids"].shape
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    text = BatchCounts(sequences=rows, tokens=rows * length, pairs=rows * length**2, labelled=labelled)
    return text + count_pictures(batch, config)


def test_connector_of_another_kind_is_counted_from_its_own_layers(tiny_config: XGenMMConfig) -> None:
    config = XGenMMConfig(
        **(tiny_config.to_dict() | {"resampler_config": {"model_type": "xgenmm_mlp"}, "tile_grouping": "tile"})
    )
    width, out = config.resampler_config.hidden_size, config.resampler_config.output_size
    cost = forward_cost(XGenMMForConditionalGeneration(config))
    assert (cost.group, cost.cell) == (0, 2 * (width * out + out * out))
    # Features for the first layer, its output for the derivative of GELU, and that of GELU for the second layer.
    kept = kept_by_connector(config.resampler_config, groups=3, cells=16, arithmetic=Arithmetic(dtype=torch.float32))
    assert kept.peak(checkpointing=True) == kept.whole == 4 * 3 * 16 * (width + 2 * out)


def test_connector_that_cannot_be_counted_is_named(
    tiny_model: XGenMMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_model.model.resampler), "forward", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(XGenMMError, match="the arithmetic of the connector `xgenmm_resampler` cannot be counted"):
        forward_cost(tiny_model)
