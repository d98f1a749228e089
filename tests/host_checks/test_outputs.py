"""What the model returns: forms, recorded layers, and equality across batching, padding and attention backends."""

import pytest
import torch

from xgen_mm import XGenMMForConditionalGeneration

from .outside_view import BOS, FORMS, LATENTS, make_batch, make_samples, outside_model, picture_inputs, single_sample

GROUPINGS = ("raster_chunks", "tile", "image")


def padded_on(batch: dict[str, torch.Tensor], *, columns: int) -> dict[str, torch.Tensor]:
    """The same batch with further padding on the left."""
    pad = torch.nn.functional.pad
    names = ("input_ids", "attention_mask")
    return batch | {name: pad(batch[name], (columns, 0)) for name in names}


@pytest.mark.parametrize("form", FORMS)
def test_picture_features_come_as_one_tensor_per_picture(model: XGenMMForConditionalGeneration, form: str) -> None:
    pictures = picture_inputs(make_batch(form))
    counts = [count for sample in make_samples(form) for count in sample.num_tiles]
    for part in (model, model.model):
        outputs = part.get_image_features(**pictures)
        assert [tuple(tokens.shape) for tokens in outputs.pooler_output] == [(LATENTS * n, 32) for n in counts]
        assert outputs.last_hidden_state.shape == (sum(counts), 16, 32)


def test_picture_features_as_tuple_hold_the_same(model: XGenMMForConditionalGeneration) -> None:
    pictures = picture_inputs(make_batch("tiles"))
    outputs = model.get_image_features(**pictures)
    as_tuple = model.get_image_features(**pictures, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs.last_hidden_state)
    assert all(torch.equal(ours, other) for ours, other in zip(as_tuple[1], outputs.pooler_output, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_tower_layers_are_recorded_when_asked_for(model: XGenMMForConditionalGeneration, form: str) -> None:
    pictures = picture_inputs(make_batch(form))
    num_tiles = sum(sum(sample.num_tiles) for sample in make_samples(form))
    plain = model.get_image_features(**pictures)
    assert plain.hidden_states is None
    assert plain.attentions is None
    model.set_attn_implementation("eager")
    try:
        outputs = model.get_image_features(**pictures, output_hidden_states=True, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    assert [tuple(layer.shape) for layer in outputs.hidden_states] == [(num_tiles, 16, 32)] * 3
    assert [tuple(layer.shape) for layer in outputs.attentions] == [(num_tiles, 4, 16, 16)] * 2
    torch.testing.assert_close(outputs.last_hidden_state, plain.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_layers_recorded_in_several_tower_calls_are_joined(model: XGenMMForConditionalGeneration) -> None:
    pictures = picture_inputs(make_batch("tiles"))
    expected = model.get_image_features(**pictures, output_hidden_states=True)
    model.config.max_tiles_per_call = 3
    try:
        outputs = model.get_image_features(**pictures, output_hidden_states=True)
    finally:
        model.config.max_tiles_per_call = None
    for ours, other in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_language_model_layers_are_recorded_when_asked_for(form: str) -> None:
    model = outside_model()
    model.set_attn_implementation("eager")
    batch = make_batch(form)
    rows, length = batch["input_ids"].shape
    for part in (model, model.model):
        with torch.no_grad():
            outputs = part(**batch, output_hidden_states=True, output_attentions=True)
        assert [tuple(layer.shape) for layer in outputs.hidden_states] == [(rows, length, 32)] * 3
        assert [tuple(layer.shape) for layer in outputs.attentions] == [(rows, 4, length, length)] * 2


def test_resampler_layers_are_recorded_when_asked_for() -> None:
    resampler = outside_model().model.resampler
    resampler.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = resampler(torch.randn(3, 16, 32), output_hidden_states=True, output_attentions=True)
    assert [tuple(layer.shape) for layer in outputs.hidden_states] == [(3, LATENTS, 32)] * 3
    assert [tuple(layer.shape) for layer in outputs.attentions] == [(3, 2, LATENTS, 16 + LATENTS)] * 2


def test_settings_of_the_configuration_ask_for_layers_too() -> None:
    model = outside_model()
    model.config.text_config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(**make_batch("tiles")).hidden_states) == 3


@pytest.mark.parametrize("form", FORMS)
def test_outputs_as_tuple_hold_the_same(model: XGenMMForConditionalGeneration, form: str) -> None:
    batch = make_batch(form) | {"use_cache": False, "output_hidden_states": True}
    with torch.no_grad():
        outputs, as_tuple = model(**batch), model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs.logits)
    assert [tuple(layer.shape) for layer in as_tuple[1]] == [tuple(layer.shape) for layer in outputs.hidden_states]
    assert torch.equal(as_tuple[-1], outputs.image_hidden_states)


@pytest.mark.parametrize("form", FORMS)
def test_equal_inputs_give_equal_outputs(model: XGenMMForConditionalGeneration, form: str) -> None:
    batch = make_batch(form)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
def test_each_row_of_a_batch_equals_the_row_alone(
    model: XGenMMForConditionalGeneration, form: str, padding_side: str
) -> None:
    batch = make_batch(form, padding_side=padding_side)
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(3):
            alone = model(**single_sample(batch, row, form=form)).logits[0]
            torch.testing.assert_close(together[row, batch["attention_mask"][row].bool()], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_further_padding_on_the_left_changes_no_answer(model: XGenMMForConditionalGeneration, form: str) -> None:
    batch = make_batch(form)
    padded = padded_on(batch, columns=9)
    with torch.no_grad():
        expected = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, -5:]
        assert torch.equal(model.generate(**padded, max_new_tokens=5, do_sample=False)[:, -5:], expected)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_attention_backends_agree_on_padded_prompts_and_pictures(grouping: str, padding_side: str) -> None:
    model = outside_model(tile_grouping=grouping)
    batch = make_batch("tiles", padding_side=padding_side)
    samples = make_samples("tiles")
    tokens_per_picture = {"image": 1}.get(grouping)
    is_image = batch["input_ids"] == model.config.image_token_id
    needed = [LATENTS * sum(tokens_per_picture or count for count in sample.num_tiles) for sample in samples]
    # Placeholders beyond what this grouping needs become plain text.
    surplus = is_image & (is_image.cumsum(-1) > torch.tensor(needed)[:, None])
    batch["input_ids"][surplus] = 9
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits[implementation] = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], atol=1e-4, rtol=1e-4)


def test_attention_backend_reaches_every_part(model: XGenMMForConditionalGeneration) -> None:
    parts = (model, model.model.vision_tower, model.model.resampler, model.model.language_model)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    model.set_attn_implementation("eager")
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    model.set_attn_implementation({"resampler_config": "sdpa"})
    assert model.model.resampler.config._attn_implementation == "sdpa"
    assert model.model.language_model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")


def test_sizes_of_pictures_may_be_plain_integers(model: XGenMMForConditionalGeneration) -> None:
    batch = make_batch("tiles")
    with torch.no_grad():
        expected = model(**batch).logits
        sizes = [tuple(size) for size in batch["image_sizes"].tolist()]
        torch.testing.assert_close(model(**(batch | {"image_sizes": sizes})).logits, expected)


def test_outputs_answer_the_host_s_names_of_image_tokens(model: XGenMMForConditionalGeneration) -> None:
    batch = make_batch("tiles")
    with torch.no_grad():
        outputs = model(**batch)
        words = model(input_ids=torch.tensor([[BOS, 10, 11]]))
        per_image = model.get_image_features(**picture_inputs(batch)).pooler_output
    assert len(outputs.image_outputs.pooler_output) == len(per_image) == 3
    torch.testing.assert_close(torch.cat(outputs.image_outputs.pooler_output), outputs.image_hidden_states)
    assert outputs.image_outputs.last_hidden_state is None  # the tower's features, which would fill memory
    assert words.image_outputs is words.image_hidden_states is None
