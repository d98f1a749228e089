from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, pipeline

from tests.blip3o.small_blip3o import (
    NUM_QUERIES,
    generators,
    golden_config,
    golden_model,
    prompt,
    released_model_weights,
    small_config,
    small_model,
    text_processor,
    tower_weights,
)
from xgen_mm import Blip3oForConditionalGeneration
from xgen_mm.blip3o.modeling_blip3o import Blip3oImageOutput
from xgen_mm.errors import ConversionError, PlaceholderMismatchError

TEXTS = ("seven", "a red 4 on blue", "x")


@pytest.fixture(scope="module")
def model() -> Blip3oForConditionalGeneration:
    return small_model()


def draw(model: Blip3oForConditionalGeneration, *texts: str, **arguments: Any) -> Blip3oImageOutput:
    return model.generate(**prompt(*texts), generation_mode="image", return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_condition_of_a_batch_is_that_of_its_prompts(model: Blip3oForConditionalGeneration, padding_side: str) -> None:
    batch = model.encode_condition(**prompt(*TEXTS, padding_side=padding_side))
    assert batch.shape == (3, NUM_QUERIES, 32)
    for found, text in zip(batch, TEXTS, strict=True):
        torch.testing.assert_close(found, model.encode_condition(**prompt(text))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_condition_other_number_of_placeholders_is_refused(model: Blip3oForConditionalGeneration, count: int) -> None:
    with pytest.raises(PlaceholderMismatchError, match=rf"holds \[4, {count}\] query placeholders .*; expected 4"):
        model.encode_condition(torch.tensor([[1] * 5 + [509] * 4, [1] * (9 - count) + [509] * count]))


def test_batch_is_its_single_images(model: Blip3oForConditionalGeneration) -> None:
    both = draw(model, *TEXTS, generator=generators(1, 2, 3))
    for i, text in enumerate(TEXTS):
        one = draw(model, text, generator=generators(i + 1))
        torch.testing.assert_close(both.features[i : i + 1], one.features, rtol=0, atol=3e-5)
        torch.testing.assert_close(both.pixel_values[i : i + 1], one.pixel_values, rtol=0, atol=1e-4)


def test_images_of_one_prompt_stand_next_to_each_other(model: Blip3oForConditionalGeneration) -> None:
    several = draw(model, *TEXTS[:2], generator=generators(1, 2, 3, 4), num_images_per_prompt=2)
    assert several.features.shape == (4, 8, 4, 4)
    for i, text in enumerate([TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]):
        one = draw(model, text, generator=generators(i + 1))
        torch.testing.assert_close(several.features[i : i + 1], one.features, rtol=0, atol=3e-5)
    assert not torch.equal(several.features[0], several.features[1])


def test_same_seed_gives_the_same_image(model: Blip3oForConditionalGeneration) -> None:
    first, again, other = (draw(model, "a", generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert not torch.equal(first.pixel_values, other.pixel_values)
    torch.manual_seed(5)
    unseeded = draw(model, "a")
    torch.manual_seed(5)
    assert torch.equal(unseeded.pixel_values, draw(model, "a").pixel_values)


def test_sampling_computes_the_condition_once_and_gives_the_numbers_of_the_plain_loop(
    model: Blip3oForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = model.diffusion_transformer
    prepare = Mock(wraps=transformer.prepare_condition)
    monkeypatch.setattr(transformer, "prepare_condition", prepare)
    condition, noise = torch.randn(2, NUM_QUERIES, 32), torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        found = model.sample_features(condition, noise, num_steps=5, guidance_scale=3.0)
        assert prepare.call_count == 1
        samples = noise
        for level, next_level in zip((1, 0.8, 0.6, 0.4, 0.2), (0.8, 0.6, 0.4, 0.2, 0), strict=True):
            timestep = torch.full((4,), round(1000 * level))
            inputs = torch.cat([samples, samples])
            without, with_condition = transformer(
                inputs, timestep, torch.cat([torch.zeros_like(condition), condition])
            ).chunk(2)
            samples = samples + (next_level - level) * (without + 3 * (with_condition - without))
    assert prepare.call_count == 6
    torch.testing.assert_close(found, samples, rtol=0, atol=1e-5)


def test_guidance_of_one_is_the_condition_alone_at_half_the_work(model: Blip3oForConditionalGeneration) -> None:
    sizes: list[int] = []
    handle = model.diffusion_transformer.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    condition, noise = torch.randn(1, NUM_QUERIES, 32), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        found = [model.sample_features(condition, noise, num_steps=2, guidance_scale=s) for s in (1.0, 1.0 + 1e-6)]
    handle.remove()
    assert sizes == [1, 1, 2, 2]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_what_generate_returns_depends_on_the_pixel_decoder(model: Blip3oForConditionalGeneration) -> None:
    pixels = model.generate(**prompt("a", "b"), generation_mode="image")
    assert pixels.shape == (2, 3, 16, 16)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    bare = small_model(pixel_decoder_config=None)
    assert bare.generate(**prompt("a", "b"), generation_mode="image").shape == (2, 8, 4, 4)
    # Another decoder with the same interface takes the features.
    lent = bare.generate(**prompt("a"), generation_mode="image", pixel_decoder=model.pixel_decoder)
    assert lent.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generation_mode": "audio"}, "`generation_mode` is 'audio'"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
        ({"num_inference_steps": 0}, "number of steps is 0"),
        ({"generator": generators(1, 2)}, "holds 2 generators for 1 images"),
        ({"noise": torch.zeros(2, 8, 4, 4)}, r"`noise` has the shape \(2, 8, 4, 4\); expected \(1, 8, 4, 4\)"),
    ],
)
def test_unusable_request_is_refused(
    model: Blip3oForConditionalGeneration, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(**prompt("a"), **{"generation_mode": "image"} | arguments)


def test_argument_that_is_none_of_these_is_refused(model: Blip3oForConditionalGeneration) -> None:
    with pytest.raises(TypeError, match="Unknown arguments to draw images: guidence_scale, seed; see"):
        draw(model, "a", guidence_scale=7.0, seed=1)
    # Settings of text generation come from pipelines.
    draw(model, "a", max_new_tokens=5, generation_config=model.generation_config, num_inference_steps=1)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 5}])
def test_text_generation_is_that_of_the_language_model(
    model: Blip3oForConditionalGeneration, settings: dict[str, Any]
) -> None:
    ids = torch.tensor([[65, 66, 67], [68, 69, 70]])
    torch.manual_seed(3)
    expected = model.language_model.generate(ids, max_new_tokens=5, min_new_tokens=5, **settings)
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, max_new_tokens=5, min_new_tokens=5, **settings), expected)
    torch.manual_seed(3)
    named = model.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, return_dict_in_generate=True, **settings)
    assert torch.equal(named.sequences, expected)


def test_text_generation_follows_the_models_own_settings(model: Blip3oForConditionalGeneration) -> None:
    model.generation_config.max_new_tokens = 2
    assert model.generate(torch.tensor([[65, 66]])).shape[1] <= 4
    model.generation_config.max_new_tokens = None


def test_text_forward_is_that_of_the_language_model(model: Blip3oForConditionalGeneration) -> None:
    ids = torch.tensor([[65, 66, 67]])
    outputs = model(input_ids=ids, labels=ids)
    expected = model.language_model(input_ids=ids, labels=ids)
    assert type(outputs) is type(expected)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.loss, expected.loss)


def test_understanding_sees_the_image_and_drawing_too() -> None:
    model = golden_model()
    images = {"pixel_values": torch.randn(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    ids = torch.tensor([[65, 151652, *[151655] * 4, 151653, 66]])
    types = (ids == 151655).long()
    expected = model.language_model.generate(ids, max_new_tokens=3, mm_token_type_ids=types, **images)
    assert torch.equal(model.generate(ids, max_new_tokens=3, mm_token_type_ids=types, **images), expected)
    ids = torch.cat([ids, torch.tensor([[151665, *[151667] * 64]])], dim=1)
    arguments = {"noise": torch.randn(1, 64, 8, 8), "num_inference_steps": 1, "generation_mode": "image"}
    first, other = (
        model.generate(ids, **arguments, **images | {"pixel_values": pixels})
        for pixels in (images["pixel_values"], -images["pixel_values"])
    )
    assert not torch.equal(first, other)


def training_inputs(**fields: Any) -> dict[str, Any]:
    return prompt("one", "three") | {"target_features": torch.randn(2, 8, 4, 4)} | fields


def test_training_step_reaches_queries_and_transformer_through_a_frozen_language_model() -> None:
    model = small_model().train()
    model.language_model.requires_grad_(False)
    model.feature_tower.requires_grad_(False)
    model.pixel_decoder.requires_grad_(False)
    outputs = model(**training_inputs(), generator=torch.Generator().manual_seed(0))
    assert outputs.loss.dtype == torch.float32
    outputs.loss.backward()
    without = {name for name, found in model.named_parameters() if found.requires_grad and found.grad is None}
    assert without == set()
    assert model.latent_queries.grad.abs().max() > 0
    assert all(found.grad is None for found in model.language_model.parameters())


def test_training_draws_are_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(condition_dropout=0.5)
    compute = Mock(wraps=model.flow_matching_loss)
    monkeypatch.setattr(model, "flow_matching_loss", compute)
    inputs = prompt(*"abcdefgh" * 8) | {"target_features": torch.randn(64, 8, 4, 4)}
    losses = [model.train()(**inputs, generator=torch.Generator().manual_seed(1)).loss for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    timesteps, dropped = (compute.call_args.kwargs[name] for name in ("timesteps", "dropped"))
    assert torch.equal(timesteps, timesteps.round())
    assert 1 <= int(timesteps.min()) < 100
    assert 900 < int(timesteps.max()) <= 1000
    assert 15 < int(dropped.sum()) < 49
    model.eval()(**inputs)
    assert not compute.call_args.kwargs["dropped"].any()


def test_training_targets_come_from_the_tower_once(model: Blip3oForConditionalGeneration) -> None:
    """The original also runs a loop over all pairs of features, whose result it drops."""
    calls: list[int] = []
    handle = model.feature_tower.register_forward_hook(lambda *_: calls.append(1))
    pixels = torch.randn(2, 3, 32, 32)
    arguments = training_inputs()
    del arguments["target_features"]
    found = model(**arguments, target_pixel_values=pixels, generator=torch.Generator().manual_seed(1))
    assert len(calls) == 1
    handle.remove()
    features = model.feature_tower.feature_map(pixels)
    expected = model(**arguments, target_features=features, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.loss, expected.loss)
    assert not found.velocity.isnan().any()


def test_training_contradicting_targets_are_refused(model: Blip3oForConditionalGeneration) -> None:
    pixels = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match="both given"):
        model(**training_inputs(), target_pixel_values=pixels)
    for shape in ((1, 8, 4, 4), (2, 8, 4, 2), (2, 7, 4, 4)):
        with pytest.raises(ValueError, match=r"Targets are of shape .*; expected one map per prompt, \(2, 8, 4, 4\)"):
            model(**training_inputs(target_features=torch.zeros(shape)))
    with pytest.raises(ValueError, match="has no feature tower"):
        small_model(feature_config=None)(**prompt("a"), target_pixel_values=pixels)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for is_on in (False, True):
        model = small_model().train()
        if is_on:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert all(layer.gradient_checkpointing for layer in model.diffusion_transformer.layers)
        torch.manual_seed(0)
        inputs = training_inputs()
        model(**inputs, generator=torch.Generator().manual_seed(1)).loss.backward()
        gradients.append([model.latent_queries.grad, model.diffusion_transformer.patch_embedding.weight.grad])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, plain, rtol=0, atol=1e-6)


def test_bfloat16_draws_close_to_float32(model: Blip3oForConditionalGeneration) -> None:
    half = small_model().to(torch.bfloat16)
    found, expected = (draw(which, "a", generator=generators(1), guidance_scale=1.0) for which in (half, model))
    assert found.features.dtype == torch.bfloat16
    assert found.pixel_values.dtype == torch.float32
    assert float((found.features - expected.features).abs().max()) < 0.1
    outputs = half.train()(**training_inputs(target_features=torch.randn(2, 8, 4, 4).bfloat16()))
    assert outputs.loss.dtype == torch.float32
    assert bool(outputs.loss.isfinite())


def test_new_weights_start_as_pytorch_has_them() -> None:
    torch.manual_seed(0)
    model = Blip3oForConditionalGeneration(small_config())
    assert 0.7 < float(model.latent_queries.detach().std()) < 1.3
    transformer = model.diffusion_transformer
    for linear in (transformer.output_linear, transformer.layers[0].modulation, transformer.condition_linear_1):
        bound = linear.in_features**-0.5
        assert 0.8 * bound < float(linear.weight.detach().abs().max()) <= bound
        assert float(linear.bias.detach().abs().max()) > 0
    assert not transformer.layers[0].cross_gate.any()
    assert torch.equal(transformer.layers[0].attention_norm.weight, torch.ones(32))


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_class_loads_what_was_saved(
    model: Blip3oForConditionalGeneration, tmp_path: Path, auto_class: Any
) -> None:
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is Blip3oForConditionalGeneration
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    arguments = {**prompt("a"), "generation_mode": "image", "generator": generators(1)}
    expected = model.generate(**arguments | {"generator": generators(1)})
    assert torch.equal(loaded.eval().generate(**arguments), expected)


@pytest.mark.parametrize(
    ("asked", "taken"), [("eager", "eager"), ("sdpa", "sdpa"), ({"text_config": "eager"}, "eager")]
)
def test_attention_of_the_language_model_can_be_chosen(
    model: Blip3oForConditionalGeneration, tmp_path: Path, asked: Any, taken: str
) -> None:
    model.save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=asked)
    assert loaded.language_model.config._attn_implementation == taken
    expected, found = (draw(which, "a", generator=generators(1)).features for which in (model, loaded))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_tower", [False, True])
def test_released_files_load_as_they_are(tmp_path: Path, has_tower: bool) -> None:
    """Files of training hold the tower, files for drawing do not; the model that draws needs none."""
    weights = released_model_weights("dit") | (tower_weights() if has_tower else {})
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    golden_config().save_pretrained(tmp_path)
    model, info = Blip3oForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in golden_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    # It is saved in our layout.
    model.save_pretrained(tmp_path / "ours")
    again, info = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(again.latent_queries, model.latent_queries)


def test_released_files_that_are_incomplete_are_refused(tmp_path: Path) -> None:
    weights = released_model_weights("dit")
    stranger = {"model.stranger": weights.pop("model.dit.model.layers.1.gate")}
    save_file(weights | stranger, tmp_path / "model.safetensors")
    golden_config().save_pretrained(tmp_path)
    expected = r"lacks diffusion_transformer\.layers\.1\.cross_gate; and has no place for model\.stranger"
    with pytest.raises(ConversionError, match=expected):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path)


def test_truncated_files_are_refused(model: Blip3oForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConversionError, match="truncated"):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path)


def test_prepared_condition_takes_no_mask(model: Blip3oForConditionalGeneration) -> None:
    transformer = model.diffusion_transformer
    prepared = transformer.prepare_condition(torch.randn(1, 4, 32))
    with pytest.raises(ValueError, match="with a prepared condition"):
        transformer(torch.randn(1, 8, 4, 4), torch.ones(1), prepared, torch.ones(1, 4))


def test_language_model_and_transformer_may_differ_in_type() -> None:
    model = small_model()
    model.language_model.bfloat16()
    assert model(**training_inputs()).velocity.dtype == torch.float32
    assert draw(model, "a").features.dtype == torch.float32


def test_pipeline_draws_one_image_per_prompt() -> None:
    vocabulary = {"vocab_size": 151668, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
    model = Blip3oForConditionalGeneration(
        small_config(
            text_config={"model_type": "phi3", **vocabulary, **sizes},
            image_start_token_id=151665,
            query_token_id=151667,
            num_image_steps=1,
        )
    )
    processor = text_processor(num_queries=NUM_QUERIES)
    drawing = pipeline("any-to-any", model=model, processor=processor)
    arguments: dict[str, Any] = {"generation_mode": "image", "processor_kwargs": {"generation_mode": "image"}}
    found = drawing(["a cat", "two dogs"], **arguments)
    assert [record["input_text"] for record in found] == ["a cat", "two dogs"]
    assert [record["generated_image"].size for record in found] == [(16, 16)] * 2


def test_only_a_language_model_with_images_says_that_it_takes_them(model: Blip3oForConditionalGeneration) -> None:
    assert "image" not in model.input_modalities
    assert "image" in golden_model().input_modalities
    assert model.output_modalities == ("image", "text")
