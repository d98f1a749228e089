"""The MLP connector: recorded numbers of the originals, and a whole model around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMMLPConfig, XGenMMMLPConnector, XGenMMProcessor
from xgen_mm.training.planning.flops import BatchCounts, TrainedParts, forward_cost, step_flops
from xgen_mm.training.planning.kept_activations import Arithmetic, kept_by_connector

GOLDEN = Path(__file__).parents[1] / "golden" / "connectors"
# Patches of a tile of `tiny_config`: 28 pixels in patches of 7.
PATCHES = 16


@pytest.mark.parametrize(
    ("case", "num_layers"), [("projector_linear", 1), ("projector_mlp2x_gelu", 2), ("projector_mlp3x_gelu", 3)]
)
def test_tokens_and_gradients_equal_the_recorded_ones(case: str, num_layers: int) -> None:
    recorded = load_file(GOLDEN / f"{case}.safetensors")
    prefix = "proj." if num_layers > 1 else "proj"
    stored = {name.removeprefix("weights."): tensor for name, tensor in recorded.items() if "weights." in name}
    # Nothing but names changes; the single layer has no number.
    ours = {name.replace(prefix, "layers." if num_layers > 1 else "layers.0"): name for name in stored}
    output_size, hidden_size = next(tensor.shape for name, tensor in stored.items() if name.endswith("weight"))
    connector = XGenMMMLPConnector(
        XGenMMMLPConfig(hidden_size=hidden_size, output_size=output_size, num_hidden_layers=num_layers)
    )
    connector.load_state_dict({name: stored[theirs] for name, theirs in ours.items()})

    features = recorded["inputs.features"].flatten(0, 1).flatten(1, 2).requires_grad_()
    tokens = connector(features, torch.ones(features.shape[:2], dtype=torch.bool)).last_hidden_state
    expected = recorded["outputs.tokens"].flatten(0, 1)
    assert tokens.shape[1] == connector.config.num_tokens(features.shape[1])
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    (tokens * recorded["cotangent"].flatten(0, 1)).sum().backward()
    gradients = {f"grads.{theirs}": connector.get_parameter(name).grad for name, theirs in ours.items()}
    gradients["grads_inputs.features"] = features.grad
    for name, gradient in gradients.items():
        assert gradient is not None
        reference = recorded[name].reshape(gradient.shape)
        assert (gradient - reference).norm() <= 1e-5 * reference.norm(), name


@pytest.fixture
def mlp_config(tiny_config: XGenMMConfig) -> XGenMMConfig:
    fields = tiny_config.to_dict() | {"resampler_config": {"model_type": "xgenmm_mlp"}}
    return XGenMMConfig(**fields)


@pytest.fixture
def mlp_model(mlp_config: XGenMMConfig) -> XGenMMForConditionalGeneration:
    torch.manual_seed(0)
    return XGenMMForConditionalGeneration(mlp_config).eval()


@pytest.fixture
def mlp_processor(mlp_config: XGenMMConfig, tiny_processor: XGenMMProcessor) -> XGenMMProcessor:
    return XGenMMProcessor(
        tiny_processor.image_processor, tiny_processor.tokenizer, num_latents=mlp_config.tokens_per_group
    )


def prepare(processor: XGenMMProcessor, images: list[Image.Image], **kwargs: Any) -> Any:
    texts = [f"<image>\nWhat is it? {index}" for index, _ in enumerate(images)]
    return processor(text=texts, images=[[image] for image in images], return_tensors="pt", padding=True, **kwargs)


def test_dict_of_another_type_gives_that_connector_with_widths_filled_in(mlp_config: XGenMMConfig) -> None:
    connector = mlp_config.resampler_config
    assert isinstance(connector, XGenMMMLPConfig)
    assert (connector.hidden_size, connector.output_size, connector.num_hidden_layers) == (32, 32, 2)
    assert mlp_config.tokens_per_group == PATCHES
    assert "num_latents" not in connector.to_dict()


def test_a_patch_is_a_token_in_prompt_and_model(
    mlp_model: XGenMMForConditionalGeneration,
    mlp_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
) -> None:
    inputs = prepare(mlp_processor, [checker_image(40, 60)])
    num_tiles = inputs["pixel_values"].shape[1]
    assert int((inputs["input_ids"] == mlp_model.config.image_token_id).sum()) == num_tiles * PATCHES
    features = mlp_model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    assert [tuple(tokens.shape) for tokens in features] == [(num_tiles * PATCHES, 32)]


@torch.no_grad()
def test_batch_equals_single_samples_and_saving_changes_nothing(
    mlp_model: XGenMMForConditionalGeneration,
    mlp_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
    tmp_path: Path,
) -> None:
    images = [checker_image(40, 60), checker_image(30, 30), checker_image(20, 80)]
    inputs = prepare(mlp_processor, images)
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    answers = mlp_model.generate(**inputs, **settings)[:, -4:]
    logits = mlp_model(**inputs).logits[:, -1]
    for index, image in enumerate(images):
        text = f"<image>\nWhat is it? {index}"
        single = mlp_processor(text=text, images=image, return_tensors="pt")
        torch.testing.assert_close(mlp_model(**single).logits[0, -1], logits[index], atol=1e-5, rtol=1e-4)
        assert torch.equal(mlp_model.generate(**single, **settings)[0, -4:], answers[index])

    mlp_model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded.model.resampler) is XGenMMMLPConnector
    assert torch.equal(loaded(**inputs).logits[:, -1], logits)


def test_cache_of_an_earlier_turn_leaves_out_its_image(
    mlp_model: XGenMMForConditionalGeneration,
    mlp_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
) -> None:
    images = [checker_image(40, 60), checker_image(30, 30)]
    first = mlp_processor(text="<image>\nOne", images=images[:1], return_tensors="pt")
    both = mlp_processor(text="<image>\nOne<image>\nTwo", images=images, return_tensors="pt")
    settings: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    cache = mlp_model(**first, use_cache=True)[1]
    encoded: list[int] = []
    handle = mlp_model.model.vision_tower.register_forward_hook(lambda _, args, __: encoded.append(len(args[0])))
    found = mlp_model.generate(**both, cache=cache, **settings)
    handle.remove()
    assert sum(encoded) < both["pixel_values"].shape[1] * 2
    assert torch.equal(found, mlp_model.generate(**both, **settings))


def test_trainer_step_changes_the_connector(
    mlp_model: XGenMMForConditionalGeneration,
    mlp_processor: XGenMMProcessor,
    checker_image: Callable[[int, int], Image.Image],
    tmp_path: Path,
) -> None:
    before = {name: weight.clone() for name, weight in mlp_model.model.resampler.named_parameters()}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = dict(prepare(mlp_processor, [row["image"] for row in rows], padding_side="right"))
        return inputs | {"labels": inputs["input_ids"]}

    rows = [{"image": checker_image(40, 60)}, {"image": checker_image(30, 30)}]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        gradient_checkpointing=True,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(mlp_model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    for name, weight in mlp_model.model.resampler.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_raster_chunks_give_the_tokens_of_tiles_in_another_order(
    mlp_model: XGenMMForConditionalGeneration, checker_image: Callable[[int, int], Image.Image], mlp_processor: Any
) -> None:
    # No patch sees another one, so any grouping gives the same tokens.
    inputs = prepare(mlp_processor, [checker_image(60, 60)])
    found = {}
    for grouping in ("tile", "raster_chunks"):
        mlp_model.config.tile_grouping = grouping
        (tokens,) = mlp_model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        found[grouping] = sorted(tokens.tolist())
    torch.testing.assert_close(torch.tensor(found["tile"]), torch.tensor(found["raster_chunks"]))


def test_joined_tiles_are_refused(mlp_config: XGenMMConfig) -> None:
    with pytest.raises(
        ValueError, match=r"`tile_grouping` is 'image'.*'xgenmm_mlp' makes more tokens of more patches"
    ):
        XGenMMConfig(**(mlp_config.to_dict() | {"tile_grouping": "image"}))


def test_mlp_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`resampler_config\.num_hidden_layers` is 0"):
        XGenMMMLPConfig(num_hidden_layers=0)


def test_planning_counts_one_pass_per_patch(mlp_model: XGenMMForConditionalGeneration) -> None:
    cost = forward_cost(mlp_model)
    assert (cost.group, cost.cell) == (0, 2 * (32 * 32 + 32 * 32))
    flops = step_flops(cost, BatchCounts(groups=3, cells=3 * PATCHES), trained=TrainedParts(vision_tower=False))
    assert flops.parts["resampler"] == 3 * cost.cell * 3 * PATCHES
    kept = kept_by_connector(
        mlp_model.config.resampler_config, groups=3, cells=PATCHES, arithmetic=Arithmetic(dtype=torch.float32)
    )
    # Input of the first layer, input of the activation, input of the second layer; each 32 wide.
    assert kept.peak(checkpointing=False) == 3 * PATCHES * 3 * 32 * 4
