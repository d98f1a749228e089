"""The perceiver resampler against a loop-written oracle, and its masking."""

import pytest
import torch

from tests.reference.perceiver_loops import resample_tile
from xgen_mm import XGenMMPerceiverResampler, XGenMMResamplerConfig


@pytest.fixture
def resampler() -> XGenMMPerceiverResampler:
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
    model = XGenMMPerceiverResampler(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_resampler_masked_tiles_equal_loop_oracle(resampler: XGenMMPerceiverResampler, implementation: str) -> None:
    resampler.set_attn_implementation(implementation)
    features = torch.randn(3, 7, 24, dtype=torch.float64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    mask[2, :] = False
    with torch.no_grad():
        tokens = resampler(features, mask).last_hidden_state
        weights = dict(resampler.state_dict())
        expected = [
            resample_tile(tile, visible, weights, num_layers=2, num_heads=2)
            for tile, visible in zip(features, mask, strict=True)
        ]
    torch.testing.assert_close(tokens, torch.stack(expected), atol=1e-10, rtol=0)


def test_resampler_padding_cells_change_nothing(resampler: XGenMMPerceiverResampler) -> None:
    features = torch.randn(1, 6, 24, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False, False]])
    other = features.clone()
    other[:, 4:] = 100.0
    with torch.no_grad():
        assert torch.equal(resampler(features, mask).last_hidden_state, resampler(other, mask).last_hidden_state)


def test_resampler_without_mask_equals_full_mask(resampler: XGenMMPerceiverResampler) -> None:
    features = torch.randn(2, 6, 24, dtype=torch.float64)
    with torch.no_grad():
        unmasked = resampler(features).last_hidden_state
        masked = resampler(features, torch.ones(2, 6, dtype=torch.bool)).last_hidden_state
    torch.testing.assert_close(unmasked, masked, atol=1e-12, rtol=0)


def test_resampler_records_hidden_states_and_attentions(resampler: XGenMMPerceiverResampler) -> None:
    resampler.set_attn_implementation("eager")
    outputs = resampler(torch.randn(2, 6, 24, dtype=torch.float64), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 3, 24)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 3, 9)] * 2


def test_resampler_gradients_reach_every_parameter(resampler: XGenMMPerceiverResampler) -> None:
    resampler(torch.randn(2, 6, 24, dtype=torch.float64)).last_hidden_state.pow(2).sum().backward()
    without = [name for name, parameter in resampler.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []
