"""Flow matching: straight paths from noise to data, followed in Euler steps.

Source: Flow Matching (arXiv:2210.02747); schedule and rounding as in `docs/blip3o.md`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

NUM_TRAIN_STEPS = 1000


def noise_levels(num_steps: int) -> torch.Tensor:
    """Share of noise before each step and after the last one, float32, shape (num_steps + 1,).

    >>> noise_levels(4)
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    if num_steps < 1:
        raise ValueError(f"The number of steps is {num_steps}; expected at least 1.")
    levels = torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64)
    return torch.cat([levels, levels.new_zeros(1)]).float()


def whole_timestep(noise_level: torch.Tensor) -> torch.Tensor:
    """Time that a share of noise stands for; cut off to a whole number, as models are trained on no others."""
    return (noise_level * NUM_TRAIN_STEPS).floor()


def euler_steps(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    *,
    num_steps: int,
    callback: Callable[[int, torch.Tensor], object] | None = None,
) -> torch.Tensor:
    """Follow a velocity from noise to data.

    Args:
        velocity: Predicts noise minus data from samples and a time from 0 to 1000, shape ().
        noise: Where to start, shape (batch, ...).
        num_steps: How many steps.
        callback: Called after each step with its number, from 0, and the samples.

    Returns:
        Samples in the shape and type of the noise. Steps are computed in float32 and rounded to that type each time.
    """
    levels = noise_levels(num_steps).tolist()
    samples = noise
    for step, (level, next_level) in enumerate(pairwise(levels)):
        timestep = whole_timestep(torch.tensor(level)).to(noise.device)
        change = (next_level - level) * velocity(samples, timestep).float()
        samples = (samples.float() + change).to(noise.dtype)
        if callback is not None:
            callback(step, samples)
    return samples


def guided(velocity: Callable[[torch.Tensor], torch.Tensor], samples: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Velocity with classifier-free guidance, in one call.

    Args:
        velocity: Takes twice as many samples: first those without, then those with the condition.
        samples: Samples, shape (batch, ...).
        scale: Weight of the condition.
    """
    without, with_condition = velocity(torch.cat([samples, samples])).float().chunk(2)
    return without + scale * (with_condition - without)


def draw_noise(
    shape: torch.Size,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Standard normal noise.

    Args:
        shape: Shape, (batch, ...).
        generator: Draws it, on the generator's own device; several draw one row each, `None` is the global generator.
        device: Where the result goes.
        dtype: Type of the result; the draw is in float32, so that a seed gives the same image in any type.

    Raises:
        ValueError: If there are several generators, but not one per row.
    """
    if generator is None or isinstance(generator, torch.Generator):
        place = torch.device("cpu") if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=place).to(device, dtype)
    if len(generator) != shape[0]:
        raise ValueError(f"`generator` holds {len(generator)} generators for {shape[0]} images; give one per image.")
    return torch.cat(
        [draw_noise(torch.Size((1, *shape[1:])), generator=one, device=device, dtype=dtype) for one in generator]
    )
