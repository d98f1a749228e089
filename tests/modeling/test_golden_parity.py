"""Numbers of the original code, recorded on small random weights, come out of our model."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from xgen_mm.conversion.convert_checkpoint import ConversionOptions, convert_checkpoint
from xgen_mm.conversion.inventory import build_inventory
from xgen_mm.conversion.key_rules import V1_5

from .golden_cases import GOLDEN, GoldenCase, case_names, load_case

LAYOUT = "v1_5"
RELEASED = GOLDEN / LAYOUT / "checkpoint"
CASES = case_names(LAYOUT)
TRAIN_CASE = "train_labels_loss"
GENERATION_CASES = [name for name in CASES if name != TRAIN_CASE]
IMAGE_CASES = [name for name in CASES if not name.startswith("text_only")]

BuildModel = Callable[[GoldenCase], torch.nn.Module]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(RELEASED, destination, options=ConversionOptions(max_shard_bytes=200_000))
    return destination


@pytest.fixture(params=["released-files", "converted"])
def checkpoint(request: pytest.FixtureRequest, converted: Path) -> Path:
    """The recorded checkpoint as it was released, and converted."""
    return {"released-files": RELEASED, "converted": converted}[request.param]


@pytest.fixture
def build_model(checkpoint: Path) -> BuildModel:
    """Loads the recorded checkpoint with a case's own settings, as a user would."""

    def load(case: GoldenCase) -> torch.nn.Module:
        config = AutoConfig.from_pretrained(checkpoint)
        if "sliding_window" in case.meta:
            config.text_config.sliding_window = case.meta["sliding_window"] + 1
        if case.meta.get("anyres_patch_sampling") is False:
            config.tile_grouping = "image"
        return AutoModelForImageTextToText.from_pretrained(checkpoint, config=config).eval()

    return load


def inputs_of(case: GoldenCase, model: torch.nn.Module, *, padding_side: str) -> dict[str, torch.Tensor]:
    """The case in our input contract."""
    return case.model_inputs(
        num_latents=model.config.resampler_config.num_latents,
        tile_counts=case.tile_counts(tile_grouping=model.config.tile_grouping),
        padding_side=padding_side,
    )


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_image_features_of_recorded_case_match(build_model: BuildModel, name: str) -> None:
    case = load_case(LAYOUT, name)
    model = build_model(case)
    inputs = inputs_of(case, model, padding_side="right")
    with torch.no_grad():
        outputs = model.get_image_features(inputs["pixel_values"], inputs.get("image_sizes"))
    features, tokens = outputs.last_hidden_state, torch.cat(outputs.pooler_output)
    recorded_tokens = case.tensors["out.vision_tokens"].flatten(0, 1)
    # Pictures that no `<image>` refers to were encoded by the original too; they come last.
    torch.testing.assert_close(features, case.tensors["out.vision_features"][: len(features)], atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens, recorded_tokens[: len(tokens)], atol=2e-5, rtol=0)
    assert len(recorded_tokens) - len(tokens) in (0, model.config.resampler_config.num_latents)


@pytest.mark.parametrize("name", CASES)
def test_logits_of_recorded_case_match(build_model: BuildModel, name: str) -> None:
    case = load_case(LAYOUT, name)
    model = build_model(case)
    inputs = inputs_of(case, model, padding_side="right")
    inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits
    recorded_mask = case.tensors["out.lm_attention_mask"].bool()
    # Text-only cases keep their left padding in the original; valid positions are the same ones in order.
    torch.testing.assert_close(
        logits[inputs["attention_mask"].bool()], case.tensors["out.logits"][recorded_mask], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", GENERATION_CASES)
def test_generated_ids_of_recorded_case_are_identical(build_model: BuildModel, name: str) -> None:
    case = load_case(LAYOUT, name)
    model = build_model(case)
    inputs = inputs_of(case, model, padding_side="left")
    inputs.pop("labels")
    for settings in case.meta["generate"]:
        settings = dict(settings)
        expected = case.tensors[f"out.generated.{settings.pop('name')}"]
        ids = model.generate(**inputs, **settings)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        assert new_ids.tolist() == expected[:, -new_ids.shape[1] :].tolist()


def test_loss_and_gradients_of_recorded_training_case_match(build_model: BuildModel) -> None:
    case = load_case(LAYOUT, TRAIN_CASE)
    model = build_model(case)
    model.model.vision_tower.requires_grad_(False)
    inputs = inputs_of(case, model, padding_side="right")
    specials = torch.tensor(
        [case.meta["specials"][name] for name in ("<image>", "<image placeholder>", "<|endofchunk|>")]
    )
    inputs["labels"][torch.isin(inputs["labels"], specials)] = -100
    loss = model(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss.detach().view(1), case.tensors["out.loss"], atol=1e-5, rtol=0)

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    by_released = build_inventory(copy.deepcopy(model.config), V1_5).copies_by_released
    for key in case.meta["grad_keys"]:
        rows = [
            gradients[c.ours][c.ours_start : c.ours_start + c.num_rows] for c in by_released[key.removeprefix("vlm.")]
        ]
        ours = torch.cat(rows)
        theirs = case.tensors[f"grad.{key}"][: len(ours)]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    norm = torch.sqrt(sum(gradient.double().pow(2).sum() for gradient in gradients.values()))
    torch.testing.assert_close(norm.float().view(1), case.tensors["out.grad_global_norm"], atol=1e-5, rtol=1e-4)
