"""Loop-written oracle of the perceiver resampler, straight from its description, in whatever dtype the weights
have."""

import math

import torch

LAYER_NORM_EPS = 1e-5


def layer_norm(rows: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Normalise the last axis; shape (rows, width)."""
    mean = rows.mean(-1, keepdim=True)
    variance = ((rows - mean) ** 2).mean(-1, keepdim=True)
    scaled = (rows - mean) / torch.sqrt(variance + LAYER_NORM_EPS)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, num_heads: int, visible: torch.Tensor
) -> torch.Tensor:
    """One query, one head at a time; shapes (tokens, heads * head_dim)."""
    head_dim = queries.shape[-1] // num_heads
    output = torch.zeros_like(queries)
    for row in range(len(queries)):
        for head in range(num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = [
                float(queries[row, part] @ keys[index, part]) / math.sqrt(head_dim)
                for index in range(len(keys))
                if visible[index]
            ]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            seen = [index for index in range(len(keys)) if visible[index]]
            for weight, index in zip(weights, seen, strict=True):
                output[row, part] += weight / sum(weights) * values[index, part]
    return output


def resample_tile(
    features: torch.Tensor, visible: torch.Tensor, weights: dict[str, torch.Tensor], *, num_layers: int, num_heads: int
) -> torch.Tensor:
    """Image tokens of one tile.

    Args:
        features: Shape (cells, hidden_size).
        visible: Bool, shape (cells,), `False` on padding.
        weights: State dict of the resampler.
        num_layers: Number of layers.
        num_heads: Heads per layer.

    Returns:
        Shape (num_latents, output_size).
    """
    latents = weights["latents"]
    everything = torch.cat([visible, torch.ones(len(latents), dtype=torch.bool)])
    for index in range(num_layers):
        stem = f"layers.{index}.attention"
        queries_in = layer_norm(latents, weights, f"{stem}.norm_latents")
        media = torch.cat([layer_norm(features, weights, f"{stem}.norm_media"), queries_in])
        attended = attend(
            queries_in @ weights[f"{stem}.q_proj.weight"].T,
            media @ weights[f"{stem}.k_proj.weight"].T,
            media @ weights[f"{stem}.v_proj.weight"].T,
            num_heads=num_heads,
            visible=everything,
        )
        latents = latents + attended @ weights[f"{stem}.o_proj.weight"].T
        stem = f"layers.{index}.mlp"
        hidden = layer_norm(latents, weights, f"{stem}.norm") @ weights[f"{stem}.up_proj.weight"].T
        activated = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        latents = latents + activated @ weights[f"{stem}.down_proj.weight"].T
    return layer_norm(latents, weights, "norm") @ weights["projection.weight"].T + weights["projection.bias"]
