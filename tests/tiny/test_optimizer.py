"""Muon and AdamW: who gets which parameter, and what one step does."""

import copy

import torch
from torch import nn

from xgen_mm.tiny.joint_stage import XGenMMWithPatchHead
from xgen_mm.tiny.optimizer import MuonAdamW, orthogonalise, split_parameters


def test_split_parameters_every_parameter_lands_in_one_group(model: XGenMMWithPatchHead) -> None:
    hidden, matrices, vectors = split_parameters(model)
    everything = [*hidden, *matrices, *vectors]
    assert len({id(parameter) for parameter in everything}) == len(everything) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(".layers." in names[id(parameter)] for parameter in hidden)
    others = {names[id(parameter)] for parameter in matrices}
    assert "model.language_model.embed_tokens.weight" in others
    assert "model.resampler.latents" in others
    assert "patch_head.weight" in others
    assert all(parameter.ndim == 1 for parameter in vectors)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        result = orthogonalise(torch.randn(shape))
        assert result.shape == shape
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_adamw_first_step_of_a_vector_is_the_step_size() -> None:
    layer = nn.LayerNorm(4)
    optimizer = MuonAdamW(layer, muon_learning_rate=0.1, adam_learning_rate=0.01, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.zeros(4)
    optimizer.step()
    # Adam's first step is the sign of the gradient; vectors do not decay.
    torch.testing.assert_close(layer.weight.data, torch.tensor([0.99, 1.01, 0.99, 1.01]))
    torch.testing.assert_close(layer.bias.data, torch.zeros(4))


def test_muon_adamw_lowers_a_quadratic_loss() -> None:
    torch.manual_seed(0)
    stack = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])})
    wrapped = nn.ModuleDict({"body": stack})
    optimizer = MuonAdamW(wrapped, muon_learning_rate=0.02, adam_learning_rate=0.01, weight_decay=0.0)
    inputs, targets = torch.randn(64, 6), torch.randn(64, 6)

    def loss() -> torch.Tensor:
        hidden = stack["layers"][1](stack["layers"][0](inputs).relu())
        return (hidden - targets).square().mean()

    before = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["is_muon"]
    assert loss().item() < 0.8 * before


def test_muon_adamw_state_survives_saving() -> None:
    def build() -> tuple[nn.Module, MuonAdamW]:
        torch.manual_seed(0)
        network = nn.ModuleDict({"m": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})})
        return network, MuonAdamW(network, muon_learning_rate=0.1, adam_learning_rate=0.1, weight_decay=0.1)

    def step(network: nn.Module, optimizer: MuonAdamW) -> None:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()

    network, optimizer = build()
    step(network, optimizer)
    other, restored = build()
    other.load_state_dict(network.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(network, optimizer)
    step(other, restored)
    for first, second in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second)
