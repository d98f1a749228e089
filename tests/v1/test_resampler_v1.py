"""The prompt-reading resampler against the loop-written oracle, and what the prompt does to it."""

import math

import pytest
import torch

from tests.reference.perceiver_loops import resample_tile
from xgen_mm import XGenMMResamplerConfig
from xgen_mm.v1.resampler_v1 import XGenMMV1PerceiverResampler


@pytest.fixture
def resampler() -> XGenMMV1PerceiverResampler:
    torch.manual_seed(3)
    config = XGenMMResamplerConfig(
        hidden_size=24,
        output_size=20,
        num_latents=3,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=10,
        intermediate_size=36,
    )
    model = XGenMMV1PerceiverResampler(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def tiles() -> torch.Tensor:
    return torch.randn(2, 6, 24, dtype=torch.float64)


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.randn(2, 5, 20, dtype=torch.float64)


def project(prompt: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    stem = "text_projection.linear"
    hidden = prompt @ weights[f"{stem}_1.weight"].T + weights[f"{stem}_1.bias"]
    activated = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return activated @ weights[f"{stem}_2.weight"].T + weights[f"{stem}_2.bias"]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_resampler_equals_loop_oracle_with_the_prompt_behind_the_latents(
    resampler: XGenMMV1PerceiverResampler, tiles: torch.Tensor, prompts: torch.Tensor, implementation: str
) -> None:
    resampler.set_attn_implementation(implementation)
    with torch.no_grad():
        tokens = resampler(tiles, prompts).last_hidden_state
        weights = dict(resampler.state_dict())
        expected = []
        for tile, prompt in zip(tiles, prompts, strict=True):
            queries = torch.cat([weights["latents"], project(prompt, weights)])
            visible = torch.ones(len(tile), dtype=torch.bool)
            output = resample_tile(tile, visible, weights | {"latents": queries}, num_layers=2, num_heads=2)
            expected.append(output[:3])
    torch.testing.assert_close(tokens, torch.stack(expected), atol=1e-10, rtol=0)


def test_resampler_other_prompt_gives_other_image_tokens(
    resampler: XGenMMV1PerceiverResampler, tiles: torch.Tensor, prompts: torch.Tensor
) -> None:
    with torch.no_grad():
        tokens = resampler(tiles, prompts).last_hidden_state
        others = resampler(tiles, prompts + 1).last_hidden_state
    assert (tokens - others).abs().max() > 0.1


def test_resampler_masked_prompt_tokens_change_nothing(
    resampler: XGenMMV1PerceiverResampler, tiles: torch.Tensor, prompts: torch.Tensor
) -> None:
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    other = prompts.clone()
    other[1, :2] = 100.0
    with torch.no_grad():
        masked = resampler(tiles, prompts, mask).last_hidden_state
        assert torch.equal(resampler(tiles, other, mask).last_hidden_state, masked)
        shorter = resampler(tiles[1:], prompts[1:, 2:]).last_hidden_state
    torch.testing.assert_close(masked[1:], shorter, atol=1e-12, rtol=0)


def test_resampler_gradients_reach_every_parameter_and_the_prompt(
    resampler: XGenMMV1PerceiverResampler, tiles: torch.Tensor, prompts: torch.Tensor
) -> None:
    prompts.requires_grad_()
    resampler(tiles, prompts).last_hidden_state.pow(2).sum().backward()
    without = [name for name, parameter in resampler.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []
    assert prompts.grad.abs().sum() > 0
