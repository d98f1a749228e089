"""Starting values of the tower."""

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from xgen_mm.tiny.architecture import vision_fields
from xgen_mm.tiny.initialisation import cosine_filters, initialise_tower, sine_cosine_positions
from xgen_mm.tiny.recipe import ModelRecipe


def _tower() -> SiglipVisionModel:
    torch.manual_seed(0)
    return SiglipVisionModel(SiglipVisionConfig(**vision_fields(ModelRecipe(vision_layers=1))))


def test_initialise_tower_same_seed_gives_the_same_values() -> None:
    first, second = _tower(), _tower()
    initialise_tower(first, seed=1)
    initialise_tower(second, seed=1)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_initialise_tower_attention_starts_near_a_positive_identity() -> None:
    tower = _tower()
    initialise_tower(tower, seed=0)
    attention = tower.encoder.layers[0].self_attn
    with torch.no_grad():
        meeting = attention.q_proj.weight[:32].T @ attention.k_proj.weight[:32]
        copied = attention.out_proj.weight @ attention.v_proj.weight
    for product in (meeting, copied):
        off_diagonal = product - torch.diag(product.diagonal())
        assert product.diagonal().mean() > 3 * off_diagonal.abs().mean()


def test_cosine_filters_are_independent_and_bounded_by_the_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    filters = cosine_filters(4, 16, generator=generator)
    assert torch.linalg.matrix_rank(filters.flatten(1)) == 16
    with pytest.raises(ValueError, match="only 16 basis functions"):
        cosine_filters(4, 17, generator=generator)


def test_sine_cosine_positions_neighbours_are_most_alike() -> None:
    positions = sine_cosine_positions(7, 128)
    assert positions.shape == (49, 128)
    likeness = positions[0] @ positions.T
    assert likeness.argmax() == 0
    assert likeness[1] > likeness[3]
    assert likeness[7] > likeness[21]
