"""Numbers of the original v1 code, recorded on small random weights, come out of our model.

In a batch the original fills shorter pictures up inside the sequence, with masked filler. `generate` skips the filler
when it counts positions, as our sequence without filler does by itself; `forward` counts it, which the tests imitate.
"""

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.modeling.golden_cases import GOLDEN, GoldenCase, case_names, load_case
from xgen_mm import XGenMMV1ForConditionalGeneration

LAYOUT = "v1"
CASES = case_names(LAYOUT)
TRAIN_CASE = "train_labels_loss"
GENERATION_CASES = [name for name in CASES if name != TRAIN_CASE]
IMAGE_CASES = [name for name in CASES if name != "text_only"]
# Original name of a parameter -> ours; parts of one original tensor are listed in order.
GRADIENT_NAMES = {
    "vlm.vision_tokenizer.latents": ["model.resampler.latents"],
    "vlm.vision_tokenizer.projection.weight": ["model.resampler.projection.weight"],
    "vlm.vision_tokenizer.projection.bias": ["model.resampler.projection.bias"],
    "vlm.vision_tokenizer.layers.0.0.to_kv.weight": [
        "model.resampler.layers.0.attention.k_proj.weight",
        "model.resampler.layers.0.attention.v_proj.weight",
    ],
    "vlm.vision_tokenizer.layers.1.1.1.weight": ["model.resampler.layers.1.mlp.up_proj.weight"],
    "vlm.vision_tokenizer.layers.0.0.norm_media.weight": ["model.resampler.layers.0.attention.norm_media.weight"],
    "vlm.vision_tokenizer.text_projection.0.weight": ["model.resampler.text_projection.linear_1.weight"],
    "vlm.lang_model.model.layers.0.self_attn.qkv_proj.weight": [
        "model.language_model.layers.0.self_attn.qkv_proj.weight"
    ],
    "vlm.lang_model.model.layers.1.mlp.down_proj.weight": ["model.language_model.layers.1.mlp.down_proj.weight"],
}
# Our joined tables, and the two original ones whose rows they hold.
TABLES = {
    "model.language_model.embed_tokens.weight": (
        "vlm.lang_model.model.embed_tokens.weight",
        "vlm.lang_model.model.embed_tokens.additional_embedding.weight",
    ),
    "lm_head.weight": ("vlm.lang_model.lm_head.weight", "vlm.lang_model.lm_head.additional_fc.weight"),
    "lm_head.bias": ("vlm.lang_model.lm_head.bias", "vlm.lang_model.lm_head.additional_fc.bias"),
}


@pytest.fixture(scope="module")
def model() -> XGenMMV1ForConditionalGeneration:
    loaded = AutoModelForImageTextToText.from_pretrained(GOLDEN / LAYOUT / "checkpoint")
    assert type(loaded) is XGenMMV1ForConditionalGeneration
    return loaded.eval()


def inputs_of(case: GoldenCase, *, padding_side: str) -> dict[str, torch.Tensor]:
    """The case in our input contract."""
    counts = case.tile_counts(tile_grouping="raster_chunks")
    return case.model_inputs(num_latents=8, tile_counts=counts, padding_side=padding_side)


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_image_features_of_recorded_case_match(model: XGenMMV1ForConditionalGeneration, name: str) -> None:
    case = load_case(LAYOUT, name)
    inputs = inputs_of(case, padding_side="right")
    inputs.pop("labels")
    prompts: list[torch.Tensor] = []
    handle = model.model.resampler.register_forward_hook(lambda _, args, __: prompts.append(args[1]))
    with torch.no_grad():
        outputs = model.get_image_features(**inputs)
    handle.remove()
    close: dict[str, Any] = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(outputs.last_hidden_state, case.tensors["out.vision_features"], **close)
    tokens = torch.cat(outputs.pooler_output)
    torch.testing.assert_close(tokens, case.tensors["out.vision_tokens"].flatten(0, 1), **close)
    # The recorded batch is padded on the left; the resampler does not see where a token stands.
    recorded = case.tensors["out.resampler_text_embeds"]
    torch.testing.assert_close(torch.cat(prompts).sort(1).values, recorded.sort(1).values, atol=0, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_logits_of_recorded_case_match(model: XGenMMV1ForConditionalGeneration, name: str) -> None:
    case = load_case(LAYOUT, name)
    inputs = inputs_of(case, padding_side="right")
    inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs, **case.position_arguments(inputs)).logits
    recorded_mask = case.tensors["out.lm_attention_mask"].bool()
    torch.testing.assert_close(
        logits[inputs["attention_mask"].bool()], case.tensors["out.logits"][recorded_mask], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", GENERATION_CASES)
def test_generated_ids_of_recorded_case_are_identical(model: XGenMMV1ForConditionalGeneration, name: str) -> None:
    case = load_case(LAYOUT, name)
    inputs = inputs_of(case, padding_side="left")
    inputs.pop("labels")
    for settings in case.meta["generate"]:
        settings = dict(settings)
        expected = case.tensors[f"out.generated.{settings.pop('name')}"]
        ids = model.generate(**inputs, **settings)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        assert new_ids.tolist() == expected[:, -new_ids.shape[1] :].tolist()


def test_loss_and_gradients_of_recorded_training_case_match() -> None:
    case = load_case(LAYOUT, TRAIN_CASE)
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN / LAYOUT / "checkpoint")
    model.model.vision_tower.requires_grad_(False)
    inputs = inputs_of(case, padding_side="right")
    names = ("<image>", "<image placeholder>", "<|endofchunk|>")
    specials = torch.tensor([case.meta["specials"][name] for name in names])
    inputs["labels"][torch.isin(inputs["labels"], specials)] = -100
    loss = model(**inputs, **case.position_arguments(inputs)).loss
    loss.backward()
    torch.testing.assert_close(loss.detach().view(1), case.tensors["out.loss"], atol=1e-5, rtol=0)

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    first_added_row = model.config.image_token_id
    compared = {key: torch.cat([gradients[part] for part in parts]) for key, parts in GRADIENT_NAMES.items()}
    for ours, (table, added) in TABLES.items():
        compared |= {table: gradients[ours][:first_added_row], added: gradients[ours][first_added_row:]}
    assert set(compared) == set(case.meta["grad_keys"])
    for key, ours in compared.items():
        theirs = case.tensors[f"grad.{key}"][: len(ours)]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    norm = torch.sqrt(sum(gradient.double().pow(2).sum() for gradient in gradients.values()))
    torch.testing.assert_close(norm.float().view(1), case.tensors["out.grad_global_norm"], atol=1e-5, rtol=1e-4)
