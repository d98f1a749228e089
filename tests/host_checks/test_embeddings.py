"""Token tables: resizing, ties, embeddings as inputs, and the number of placeholders."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.v1.small_v1 import build as build_v1
from xgen_mm import XGenMMForConditionalGeneration

from .outside_view import FORMS, VOCABULARY, make_batch, outside_config, outside_model, picture_inputs


@pytest.mark.parametrize("tied", [False, True], ids=["own-head", "tied-head"])
@pytest.mark.parametrize("new_size", [VOCABULARY + 10, VOCABULARY - 15], ids=["more-rows", "fewer-rows"])
def test_resized_token_tables_keep_the_logits_of_common_tokens(tied: bool, new_size: int) -> None:
    model = outside_model(tie_word_embeddings=tied)
    common = min(new_size, VOCABULARY)
    batch = make_batch("tiles")
    with torch.no_grad():
        expected = model(**batch).logits[..., :common]
        model.resize_token_embeddings(new_size)
        logits = model(**batch).logits
    assert model.config.text_config.vocab_size == logits.shape[-1] == new_size
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.bias.shape[0] == new_size
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits[..., :common], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("new_size", [VOCABULARY + 10, VOCABULARY - 15], ids=["more-rows", "fewer-rows"])
@pytest.mark.parametrize(
    "build",
    [outside_model, lambda: outside_model(tie_word_embeddings=True), build_v1],
    ids=["own-head", "tied-head", "v1"],
)
def test_resized_token_tables_survive_another_initialisation(
    build: Callable[[], XGenMMForConditionalGeneration], new_size: int
) -> None:
    model = build()
    model.resize_token_embeddings(new_size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.post_init()
    model.init_weights()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []


def test_rows_padded_to_a_multiple_are_counted_in_the_configuration() -> None:
    model = outside_model()
    model.resize_token_embeddings(VOCABULARY + 1, pad_to_multiple_of=64)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 64


def test_token_tables_can_be_replaced() -> None:
    model = XGenMMForConditionalGeneration(outside_config())
    table, head = nn.Embedding(10, 32), nn.Linear(32, 10)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens is table
    assert model.get_output_embeddings() is model.lm_head is head


def test_tied_head_is_saved_once_and_tied_again(tmp_path: Path) -> None:
    model = outside_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded, info = XGenMMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("with_head", [True, False], ids=["with-head", "without-head"])
@pytest.mark.parametrize("form", FORMS)
def test_embeddings_equal_token_ids(model: XGenMMForConditionalGeneration, form: str, with_head: bool) -> None:
    batch = make_batch(form)
    part = model if with_head else model.model
    with torch.no_grad():
        expected = part(**batch)[0]
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        torch.testing.assert_close(part(inputs_embeds=embeds, **batch)[0], expected)


@pytest.mark.parametrize("with_head", [True, False], ids=["with-head", "without-head"])
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_too_few_or_too_many_is_refused(
    model: XGenMMForConditionalGeneration, form: str, with_head: bool
) -> None:
    part = model if with_head else model.model
    batch = make_batch(form)
    fewer = {name: value[1:] for name, value in picture_inputs(batch).items()}
    more = {name: torch.cat([value, value[:1]]) for name, value in picture_inputs(batch).items()}
    for pictures in (fewer, more):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            part(**(batch | pictures))


def test_forward_pass_leaves_its_inputs_alone(model: XGenMMForConditionalGeneration) -> None:
    batch = make_batch("tiles")
    before = copy.deepcopy(batch)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    embeds_before = embeds.clone()
    with torch.no_grad():
        model(**batch)
        model(inputs_embeds=embeds, **{name: value for name, value in batch.items() if name != "input_ids"})
    assert torch.equal(embeds, embeds_before)
    assert all(torch.equal(batch[name], before[name]) for name in before)
