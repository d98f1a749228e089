"""Starting values that let a small tower learn within minutes; the modules themselves stay as the host defines them.

Three ideas, all applied to the values only: patch filters form a randomly rotated 2-D cosine basis, positions are 2-D
sine-cosine vectors, and attention starts near a positive multiple of the identity ("mimetic" initialisation, after
Trockman and Kolter, arXiv:2305.09828).
"""

import math

import torch
from torch import nn
from transformers import SiglipVisionModel

POSITION_AMPLITUDE = 0.7
POSITION_TEMPERATURE = 30.0
POSITION_FREQUENCY = 1.2
PATCH_GAIN = 1 / 3


@torch.no_grad()
def initialise_tower(tower: SiglipVisionModel, *, seed: int) -> None:
    """Overwrite the starting values of a SigLIP tower in place.

    Args:
        tower: Freshly built tower; its width must be a multiple of 4.
        seed: Seed of the random rotations.
    """
    generator = torch.Generator().manual_seed(seed)
    config = tower.config
    embeddings = tower.embeddings
    filters = cosine_filters(config.patch_size, config.hidden_size, generator=generator)
    embeddings.patch_embedding.weight.copy_(filters.unsqueeze(1).expand(-1, config.num_channels, -1, -1))
    embeddings.patch_embedding.bias.zero_()
    cells = config.image_size // config.patch_size
    embeddings.position_embedding.weight.copy_(sine_cosine_positions(cells, config.hidden_size) * POSITION_AMPLITUDE)
    for layer in tower.encoder.layers:
        _initialise_attention(layer.self_attn, config.num_attention_heads, generator)


def cosine_filters(patch_size: int, num_filters: int, *, generator: torch.Generator) -> torch.Tensor:
    """Randomly rotated 2-D cosine filters, low frequencies first and strongest: shape (num_filters, patch, patch).

    Raises:
        ValueError: If there are fewer basis functions than filters.
    """
    if num_filters > patch_size**2:
        raise ValueError(
            f"`num_filters` is {num_filters} but a {patch_size}-pixel patch has only {patch_size**2} basis functions; "
            "use larger patches or fewer filters."
        )
    place = torch.arange(patch_size, dtype=torch.float32)
    basis = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / patch_size)
    basis = basis / basis.norm(dim=1, keepdim=True)
    frequencies = sorted((i * i + j * j, i, j) for i in range(patch_size) for j in range(patch_size))[:num_filters]
    # Pictures hold little energy at high frequencies; the gain evens that out.
    filters = torch.stack(
        [torch.outer(basis[i], basis[j]) * (1 + radius) ** 0.5 / patch_size for radius, i, j in frequencies]
    )
    filters[0] *= 0.7
    rotation = torch.linalg.qr(torch.randn(num_filters, num_filters, generator=generator))[0]
    return (rotation @ filters.flatten(1)).view(num_filters, patch_size, patch_size) * PATCH_GAIN


def sine_cosine_positions(cells: int, width: int) -> torch.Tensor:
    """Position vectors of a square map in raster order, shape (cells * cells, width), values in [-1, 1]."""
    quarter = width // 4
    frequency = POSITION_FREQUENCY / POSITION_TEMPERATURE ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    place = torch.arange(cells, dtype=torch.float32)
    y, x = torch.meshgrid(place, place, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat(
        [function(angle) for angle in angles for function in (torch.sin, torch.cos)],
        dim=1,
    )


def _initialise_attention(attention: nn.Module, num_heads: int, generator: torch.Generator) -> None:
    """Queries meet their own keys, and the output is a damped copy of the input."""
    width = attention.q_proj.in_features
    head_dim = width // num_heads
    queries, keys = [], []
    for _ in range(num_heads):
        left, strength, right = _near_identity(width, 0.7, 0.7, generator)
        scale = strength[:head_dim].sqrt()
        queries.append((left[:, :head_dim] * scale).T)
        keys.append(right[:head_dim] * scale[:, None])
    attention.q_proj.weight.copy_(torch.cat(queries))
    attention.k_proj.weight.copy_(torch.cat(keys))
    left, strength, right = _near_identity(width, 0.4, 0.4, generator)
    attention.v_proj.weight.copy_(strength.sqrt()[:, None] * right)
    attention.out_proj.weight.copy_(left * strength.sqrt())


def _near_identity(
    width: int, noise: float, identity: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular value decomposition of a multiple of the identity plus noise."""
    matrix = noise * torch.randn(width, width, generator=generator) / width**0.5 + identity * torch.eye(width)
    return torch.linalg.svd(matrix)
