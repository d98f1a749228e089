"""The released pixel decoder: a latent diffusion network with the layout of SDXL, conditioned on image features.

The two networks come from `diffusers` (extra `images`); the sampler is a few lines and its own.

Source: `docs/blip3o.md` has the equations.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .flow_matching import draw_noise, guided

NUM_TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
NUM_INFERENCE_STEPS = 50
IMAGE_SIZE = 1024


class Blip3oSdxlDecoder:
    """Draws pixels from feature maps; give it to `generate` as `pixel_decoder`.

    Args:
        unet: A `UNet2DConditionModel` that takes the features as text states and their mean as pooled text.
        vae: An `AutoencoderKL`; it stays in its own type, which should be float32.
        image_size: Edge of the images in pixels.
    """

    def __init__(self, unet: Any, vae: Any, *, image_size: int = IMAGE_SIZE) -> None:
        """Store the parts; see the class for the arguments."""
        self.unet = unet
        self.vae = vae
        self.image_size = image_size

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> "Blip3oSdxlDecoder":
        """Load a released folder (`diffusion-decoder`) by its parts; what else its index lists is not needed.

        Args:
            directory: Folder with `unet` and `vae`, or a repository that has them there.
            dtype: Type of the UNet.
            **kwargs: Passed on to `diffusers`, for example `subfolder` or `revision`.

        Raises:
            ImportError: If `diffusers` is missing.
        """
        try:
            from diffusers import AutoencoderKL, UNet2DConditionModel
        except ImportError as error:
            raise ImportError("The SDXL pixel decoder needs `diffusers`: pip install 'xgen-mm[images]'.") from error
        folder = kwargs.pop("subfolder", "")
        unet, vae = (
            diffusers_class.from_pretrained(
                directory, subfolder=os.path.join(folder, name), torch_dtype=part_dtype, **kwargs
            )
            for diffusers_class, name, part_dtype in (
                (UNet2DConditionModel, "unet", dtype),
                (AutoencoderKL, "vae", torch.float32),
            )
        )
        return cls(unet.eval(), vae.eval())

    def to(self, device: torch.device | str) -> "Blip3oSdxlDecoder":
        """Move both networks."""
        self.unet.to(device)
        self.vae.to(device)
        return self

    @torch.no_grad()
    def decode(
        self,
        features: torch.Tensor,
        *,
        negative_features: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw pixels; see `PixelDecoder.decode` for the other arguments and the result.

        Args:
            features: Feature maps, shape (batch, channels, height, width).
            negative_features: One feature map, shape (1, channels, height, width).
            guidance_scale: Weight of the features against the negative ones.
            num_inference_steps: Steps; `None` is 50.
            generator: Draws the noise.
            noise: Standard normal noise instead, shape (batch, latent channels, latent height, latent width).
        """
        unet, num_images = self.unet, len(features)
        timesteps, levels = noise_schedule(NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps)
        is_guided = negative_features is not None and guidance_scale != 1
        maps = torch.cat([negative_features.expand_as(features), features]) if is_guided else features
        states = maps.flatten(2).transpose(1, 2).to(unet.device, unet.dtype)
        # Original size, crop and target size of every image.
        size = [self.image_size, self.image_size, 0, 0, self.image_size, self.image_size]
        added = {
            "text_embeds": states.mean(1),
            "time_ids": torch.tensor([size], device=unet.device, dtype=unet.dtype).expand(len(states), -1),
        }
        if noise is None:
            edge = self.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
            shape = torch.Size((num_images, unet.config.in_channels, edge, edge))
            noise = draw_noise(shape, generator=generator, device=unet.device, dtype=unet.dtype)
        latents = noise * (levels[0] ** 2 + 1) ** 0.5
        for timestep, level, next_level in zip(timesteps, levels, levels[1:], strict=False):

            def predict(inputs: torch.Tensor, timestep: float = timestep) -> torch.Tensor:
                return unet(inputs, timestep, encoder_hidden_states=states, added_cond_kwargs=added).sample

            scaled = latents / (level**2 + 1) ** 0.5
            predicted = guided(predict, scaled, scale=guidance_scale) if is_guided else predict(scaled).float()
            latents = (latents.float() + (next_level - level) * predicted).to(noise.dtype)
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        # One at a time, which bounds memory.
        pixels = torch.cat([self.vae.decode(latent.unsqueeze(0)).sample for latent in latents])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)


def noise_schedule(num_steps: int) -> tuple[list[float], list[float]]:
    """Times and noise levels of the Euler steps; the levels end in 0 and are one more.

    >>> noise_schedule(4)[0]
    [751.0, 501.0, 251.0, 1.0]
    """
    if not 1 <= num_steps <= NUM_TRAIN_STEPS:
        raise ValueError(f"The number of steps is {num_steps}; expected 1 to {NUM_TRAIN_STEPS}.")
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_STEPS) ** 2
    kept = (1 - betas).cumprod(0).double().numpy()
    timesteps = np.arange(num_steps)[::-1] * (NUM_TRAIN_STEPS // num_steps) + 1.0
    levels = np.interp(timesteps, np.arange(NUM_TRAIN_STEPS), ((1 - kept) / kept) ** 0.5)
    return timesteps.tolist(), [*levels.tolist(), 0.0]
