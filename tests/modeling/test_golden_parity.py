"""Numbers of the original code, recorded on small random weights, come out of our model."""

import pytest
import torch

from .golden_cases import GOLDEN, GoldenCase, case_names, load_case
from .original_layout import load_original, rename

LAYOUT = "v1_5"
CASES = case_names(LAYOUT)
TRAIN_CASE = "train_labels_loss"
GENERATION_CASES = [name for name in CASES if name != TRAIN_CASE]
IMAGE_CASES = [name for name in CASES if not name.startswith("text_only")]


def build_model(case: GoldenCase) -> torch.nn.Module:
    """Model of the recorded checkpoint with the case's own settings."""
    window = {"sliding_window": case.meta["sliding_window"] + 1} if "sliding_window" in case.meta else {}
    model = load_original(GOLDEN / LAYOUT / "checkpoint", **window)
    if case.meta.get("anyres_patch_sampling") is False:
        model.config.tile_grouping = "image"
    return model


def inputs_of(case: GoldenCase, model: torch.nn.Module, *, padding_side: str) -> dict[str, torch.Tensor]:
    """The case in our input contract."""
    counts = [1] * len(case.image_names())
    if case.is_anyres() and model.config.tile_grouping != "image":
        counts = [len(case.tensors[name]) for name in case.image_names()]
    return case.model_inputs(
        num_latents=model.config.resampler_config.num_latents, tile_counts=counts, padding_side=padding_side
    )


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_image_features_of_recorded_case_match(name: str) -> None:
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
def test_logits_of_recorded_case_match(name: str) -> None:
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
def test_generated_ids_of_recorded_case_are_identical(name: str) -> None:
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


def test_loss_and_gradients_of_recorded_training_case_match() -> None:
    case = load_case(LAYOUT, TRAIN_CASE)
    model = build_model(case)
    model.model.vision_tower.requires_grad_(False)
    inputs = inputs_of(case, model, padding_side="right")
    specials = torch.tensor([case.meta["specials"][name] for name in ("<image>", "<image placeholder>", "<|endofchunk|>")])
    inputs["labels"][torch.isin(inputs["labels"], specials)] = -100
    loss = model(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss.detach().view(1), case.tensors["out.loss"], atol=1e-5, rtol=0)

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for key in case.meta["grad_keys"]:
        ours = recorded_view(key, gradients, model.config.image_token_id)
        theirs = case.tensors[f"grad.{key}"][: len(ours)]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    norm = torch.sqrt(sum(gradient.double().pow(2).sum() for gradient in gradients.values()))
    torch.testing.assert_close(norm.float().view(1), case.tensors["out.grad_global_norm"], atol=1e-5, rtol=1e-4)


def recorded_view(key: str, gradients: dict[str, torch.Tensor], first_added_row: int) -> torch.Tensor:
    """Our gradient cut to what the original stored under one key."""
    if key.endswith("to_kv.weight"):
        stem = rename(key).removesuffix("to_kv.weight")
        return torch.cat([gradients[stem + "k_proj.weight"], gradients[stem + "v_proj.weight"]])
    for part, owner in (("additional_embedding.", ""), ("additional_fc.", "")):
        if part in key:
            return gradients[rename(key.replace(part, owner))][first_added_row:]
    table = gradients[rename(key)]
    return table[:first_added_row] if "embed_tokens" in key or "lm_head" in key else table
