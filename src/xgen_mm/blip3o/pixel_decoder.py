"""A small pixel decoder: image features to pixels by flow matching, in a convolutional network."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from .configuration_blip3o import Blip3oPixelDecoderConfig
from .flow_matching import NUM_TRAIN_STEPS, draw_noise, euler_steps, guided

NUM_GROUPS = 8
NUM_FREQUENCIES = 32
MAX_PERIOD = 10000


class Blip3oPixelBlock(nn.Module):
    """Residual block of two convolutions that is told time and features."""

    def __init__(self, in_channels: int, out_channels: int, *, feature_channels: int) -> None:
        """Build the layers."""
        super().__init__()
        self.norm_1 = nn.GroupNorm(NUM_GROUPS, in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_linear = nn.Linear(2 * NUM_FREQUENCIES, out_channels)
        self.feature_conv = nn.Conv2d(feature_channels, out_channels, kernel_size=1)
        self.norm_2 = nn.GroupNorm(NUM_GROUPS, out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, states: torch.Tensor, waves: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Run the block over (batch, in_channels, height, width)."""
        hidden = self.conv_1(F.silu(self.norm_1(states)))
        told = F.interpolate(self.feature_conv(features), size=hidden.shape[-2:], mode="bilinear")
        hidden = hidden + told + self.time_linear(waves)[:, :, None, None]
        return self.skip(states) + self.conv_2(F.silu(self.norm_2(hidden)))


class Blip3oPixelDecoder(PreTrainedModel):
    """Three resolutions down and up again, each told the features; predicts the velocity from pixels to noise."""

    config: Blip3oPixelDecoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # It has no attention; the host asks every part.
    _supports_sdpa = True
    _no_split_modules = ["Blip3oPixelBlock"]

    def __init__(self, config: Blip3oPixelDecoderConfig) -> None:
        """Build the network."""
        super().__init__(config)
        fine, middle, coarse = (config.hidden_size * factor for factor in (1, 2, 4))
        told = {"feature_channels": config.feature_channels}
        self.conv_in = nn.Conv2d(config.num_channels, fine, kernel_size=3, padding=1)
        self.down = nn.ModuleList([Blip3oPixelBlock(fine, fine, **told), Blip3oPixelBlock(fine, middle, **told)])
        self.bottom = Blip3oPixelBlock(middle, coarse, **told)
        self.up = nn.ModuleList(
            [
                Blip3oPixelBlock(coarse + middle, middle, **told),
                Blip3oPixelBlock(middle + fine, fine, **told),
            ]
        )
        self.norm_out = nn.GroupNorm(NUM_GROUPS, fine)
        self.conv_out = nn.Conv2d(fine, config.num_channels, kernel_size=3, padding=1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # As PyTorch has it.
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm)):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, timestep: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Predict the velocity.

        Args:
            pixel_values: Noisy pixels, clean ones from -1 to 1, shape (batch, channels, height, width).
            timestep: Share of noise times 1000, shape (batch,).
            features: Feature maps, shape (batch, feature_channels, map_height, map_width).

        Returns:
            Noise minus pixels, shape of `pixel_values`.
        """
        waves = self._waves(timestep).to(pixel_values.dtype)
        states = self.conv_in(pixel_values)
        kept = []
        for block in self.down:
            states = block(states, waves, features)
            kept.append(states)
            states = F.avg_pool2d(states, 2)
        states = self.bottom(states, waves, features)
        for block in self.up:
            states = F.interpolate(states, scale_factor=2, mode="nearest")
            states = block(torch.cat([states, kept.pop()], dim=1), waves, features)
        return self.conv_out(F.silu(self.norm_out(states)))

    def flow_matching_loss(
        self, pixel_values: torch.Tensor, features: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Mean squared error of the velocity, at times and noise that are drawn.

        Args:
            pixel_values: Pixels from 0 to 1, shape (batch, channels, image_size, image_size).
            features: Their feature maps, shape (batch, feature_channels, map_height, map_width).
            generator: Draws times and noise, on the CPU.
        """
        pixels = 2 * pixel_values.float() - 1
        noise = draw_noise(pixels.shape, generator=generator, device=pixels.device, dtype=torch.float32)
        level = torch.rand(len(pixels), generator=generator).to(pixels.device)
        mix = level.view(-1, 1, 1, 1)
        noisy = (1 - mix) * pixels + mix * noise
        velocity = self(noisy.to(self.dtype), NUM_TRAIN_STEPS * level, features.to(self.dtype))
        return F.mse_loss(velocity.float(), noise - pixels)

    @torch.no_grad()
    def decode(
        self,
        features: torch.Tensor,
        *,
        negative_features: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Draw pixels; see `PixelDecoder.decode` for arguments and result."""
        config = self.config
        num_steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        is_guided = negative_features is not None and guidance_scale != 1
        features = features.to(self.dtype)
        told = torch.cat([negative_features.to(self.dtype).expand_as(features), features]) if is_guided else features

        def velocity(samples: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            def predict(inputs: torch.Tensor) -> torch.Tensor:
                return self(inputs, timestep.expand(len(inputs)), told)

            return guided(predict, samples, scale=guidance_scale) if is_guided else predict(samples)

        shape = torch.Size((len(features), config.num_channels, config.image_size, config.image_size))
        noise = draw_noise(shape, generator=generator, device=features.device, dtype=self.dtype)
        pixels = euler_steps(velocity, noise, num_steps=num_steps)
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _waves(self, timestep: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(NUM_FREQUENCIES, device=timestep.device) / NUM_FREQUENCIES
        angles = timestep.float().unsqueeze(-1) * torch.exp(-math.log(MAX_PERIOD) * exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
