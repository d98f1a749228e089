"""Faults of the original, and of a reimplementation that loads its weights without an error: none is ours.

What the other files of this folder test is not repeated: prompts and mask (`test_processing_blip3o.py`), the width of
the feed-forward layer (`test_configuration_blip3o.py`), the loop that is run for nothing and batches
(`test_modeling_blip3o.py`).
"""

import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.blip3o.small_blip3o import diffusion_transformer, generators, golden, prompt, small_model, text_processor
from xgen_mm import Blip3oForConditionalGeneration
from xgen_mm.blip3o import diffusion_transformer as module
from xgen_mm.blip3o.diffusion_transformer import Blip3oDiffusionLayer, Blip3oDiffusionTransformer, rotate


@pytest.fixture(scope="module")
def model() -> Blip3oForConditionalGeneration:
    return small_model()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def draw(model: Blip3oForConditionalGeneration, **arguments: Any) -> torch.Tensor:
    return model.generate(**prompt("a"), generation_mode="image", generator=generators(1), **arguments)


def test_image_does_not_depend_on_what_was_drawn_before(model: Blip3oForConditionalGeneration) -> None:
    """The original samples the features of the empty prompt once, from whatever the seed is then, and keeps them."""
    first = draw(model)
    torch.manual_seed(123)
    model.generate(**prompt("something else"), generation_mode="image", num_inference_steps=1)
    assert torch.equal(draw(model), first)
    assert torch.equal(draw(small_model()), first)


def test_negative_features_are_those_of_the_empty_prompt(model: Blip3oForConditionalGeneration) -> None:
    given: list[torch.Tensor] = []

    class Decoder:
        def decode(self, features: torch.Tensor, **settings: Any) -> torch.Tensor:
            given.append(settings["negative_features"])
            return features

    draw(model, pixel_decoder=Decoder())
    draw(model, pixel_decoder=Decoder(), decoder_guidance_scale=1.0)
    noise = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    arguments = {"generation_mode": "image", "return_dict_in_generate": True, "noise": noise}
    assert torch.equal(given[0], model.generate(**prompt(" "), **arguments).features)
    assert given[1] is None


def test_both_guidance_scales_reach_their_models(model: Blip3oForConditionalGeneration) -> None:
    """The original gives what the user asks for to the pixel decoder only."""
    plain = draw(model, return_dict_in_generate=True)
    steered = draw(model, return_dict_in_generate=True, guidance_scale=7.0)
    assert not torch.equal(steered.features, plain.features)
    decoded = draw(model, return_dict_in_generate=True, decoder_guidance_scale=7.0)
    assert torch.equal(decoded.features, plain.features)
    assert not torch.equal(decoded.pixel_values, plain.pixel_values)


@pytest.mark.parametrize("model_type", ["phi3", "llama"])
def test_text_without_images_and_drawing_work_with_any_language_model(model_type: str) -> None:
    """The original's forward pass and text generation fail without images, and its Llama path has an unknown name."""
    model = small_model(model_type)
    ids = torch.tensor([[65, 66]])
    assert model(input_ids=ids).logits.shape == (1, 2, 512)
    assert model.generate(ids, max_new_tokens=1).shape == (1, 3)
    assert draw(model).shape == (1, 3, 16, 16)


def test_attention_without_a_fused_kernel_takes_the_mask(model: Blip3oForConditionalGeneration) -> None:
    """The original's mask is one short, which plain attention refuses."""
    plain = small_model()
    plain.language_model.set_attn_implementation("eager")
    expected, found = (
        which.generate(**prompt("a", "longer"), generation_mode="image", generator=generators(1, 2))
        for which in (model, plain)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("no_network")
def test_drawing_needs_neither_the_network_nor_the_tower() -> None:
    """The original fetches the tower when it is imported, and a scheduler's settings at every call."""
    model = small_model(feature_config=None)
    assert model.feature_tower is None
    assert draw(model).shape == (1, 3, 16, 16)
    assert text_processor()(text="a", generation_mode="image")["input_ids"].shape[0] == 1


def test_training_step_writes_nothing(
    model: Blip3oForConditionalGeneration, capfd: pytest.CaptureFixture[str]
) -> None:
    """The original prints the loss of every step."""
    capfd.readouterr()
    model(**prompt("a"), target_features=torch.randn(1, 8, 4, 4)).loss.backward()
    assert capfd.readouterr() == ("", "")


def test_package_pins_no_version() -> None:
    """The original asks for single versions of its libraries and for a kernel that has to be compiled."""
    settings = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(name for names in extras.values() for name in names)]
    assert "diffusers" in " ".join(extras["images"])
    assert not [name for name in asked if "==" in name or "flash" in name]


def wrong_layer(turn: str) -> Any:
    """Forward pass of a layer with one wrong turn; none if there is no such."""

    def forward(
        self: Blip3oDiffusionLayer,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        rotation: Any,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        scale_a, gate_a, scale_m, gate_m = self.modulation(embedding).unsqueeze(1).chunk(4, dim=-1)
        normed = self.attention_norm(hidden_states) * (1 + scale_a)
        if turn == "shift":
            normed = normed + gate_a
        own_keys, own_values = self.self_attn.keys_and_values(normed)
        queries = rotate(self.self_attn.queries(normed), rotation)
        attended = self.self_attn(queries, rotate(own_keys, rotation), own_values)
        asked = self.attention_norm(hidden_states) if turn == "residual" else normed
        crossed = self.cross_attn(rotate(self.cross_attn.queries(asked), rotation), keys, values, mask=mask)
        crossed = self.cross_gate.tanh().view(1, -1, 1, 1) * crossed
        if turn != "residual":
            attended = attended + crossed
        projected = self.attention_output_norm(self.o_proj(attended.transpose(1, 2).flatten(2)))
        hidden_states = hidden_states + gate_a.tanh() * projected
        if turn == "residual":
            hidden_states = hidden_states + self.o_proj(crossed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(hidden_states) * (1 + scale_m)
        if turn == "double-norm":
            normed = self.mlp_norm(normed)
        return hidden_states + gate_m.tanh() * self.mlp_output_norm(self.mlp(normed))

    return forward


def take(turn: str, transformer: Blip3oDiffusionTransformer, patch: pytest.MonkeyPatch) -> None:
    if turn == "sigmoid":
        patch.setattr(torch.Tensor, "tanh", torch.Tensor.sigmoid)
    elif turn == "sine-first":
        weight = transformer.embedding.time_linear_1.weight
        weight.data = weight.data.roll(weight.shape[1] // 2, dims=1)
    elif turn == "silu-in-projection":
        patch.setattr(F, "gelu", lambda states, **_: F.silu(states))
    elif turn == "no-rotary":
        patch.setattr(module, "rotate", lambda states, _: states)
    elif turn == "layer-norm":
        patch.setattr(
            nn.RMSNorm, "forward", lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, eps=self.eps)
        )
    else:
        patch.setattr(Blip3oDiffusionLayer, "forward", wrong_layer(turn))


@pytest.fixture
def fresh_transformer() -> Blip3oDiffusionTransformer:
    return diffusion_transformer()


@pytest.mark.parametrize(
    "turn",
    [
        "sigmoid",
        "residual",
        "sine-first",
        "silu-in-projection",
        "no-rotary",
        "layer-norm",
        "shift",
        "double-norm",
        "none",
    ],
)
def test_golden_velocity_tells_a_wrong_turn(
    fresh_transformer: Blip3oDiffusionTransformer, monkeypatch: pytest.MonkeyPatch, turn: str
) -> None:
    """Each of these loads the released weights without an error; only numbers tell."""
    take(turn, fresh_transformer, monkeypatch)
    values = golden("dit")
    with torch.no_grad():
        found = fresh_transformer(values["dit.b2.x"], values["dit.b2.timestep"], values["dit.b2.z"])
    distance = float((found - values["dit.b2.out"]).abs().max())
    assert (distance < 1e-5) == (turn == "none")
    assert turn == "none" or distance > 1e-3
