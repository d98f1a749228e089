"""The released pixel decoder: its schedule without, the networks with `diffusers`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.blip3o.small_blip3o import golden, meta
from xgen_mm.blip3o.sdxl_decoder import Blip3oSdxlDecoder, noise_schedule


@pytest.fixture(scope="module")
def decoder() -> Blip3oSdxlDecoder:
    diffusers = pytest.importorskip("diffusers", reason="the networks come from the extra `images`")
    sizes, weights = meta()["pixel_decoder"], golden("pixel_decoder_weights")
    parts = {}
    for name, part in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        parts[name] = part(**sizes[name]).eval()
        found = {key.removeprefix(f"{name}."): tensor.float() for key, tensor in weights.items() if name in key[:4]}
        missing, unexpected = parts[name].load_state_dict(found, strict=False)
        assert not unexpected
        # Drawing needs no encoder.
        assert all(key.startswith(("encoder.", "quant_conv.")) for key in missing)
    return Blip3oSdxlDecoder(parts["unet"], parts["vae"], image_size=sizes["height"])


def as_map(states: torch.Tensor) -> torch.Tensor:
    return states.transpose(1, 2).unflatten(2, (8, 8))


def start(case: str) -> torch.Tensor:
    values = golden("pixel_decoder")
    return values[f"{case}.initial_latents"] / values[f"{case}.init_noise_sigma"]


def test_noise_schedule_is_the_golden_one() -> None:
    values = golden("pixel_decoder")
    timesteps, levels = noise_schedule(meta()["pixel_decoder"]["steps"])
    torch.testing.assert_close(torch.tensor(timesteps), values["cfg3.timesteps"], rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.tensor(levels), values["cfg3.sigmas"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_noise_schedule_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"number of steps is {num_steps}; expected 1 to 1000"):
        noise_schedule(num_steps)


@pytest.mark.parametrize("case", ["cfg3", "no_cfg"])
def test_decoder_draws_the_golden_pixels(decoder: Blip3oSdxlDecoder, case: str) -> None:
    values, settings = golden("pixel_decoder"), meta()["pixel_decoder"]
    pixels = decoder.decode(
        as_map(values["condition"]),
        negative_features=as_map(values["negative"]),
        guidance_scale=settings["guidance"][case],
        num_inference_steps=settings["steps"],
        noise=start(case),
    )
    torch.testing.assert_close(pixels, values[f"{case}.pixels"], rtol=0, atol=5e-5)


def test_decoder_batch_is_its_single_images(decoder: Blip3oSdxlDecoder) -> None:
    """The original concatenates the sizes of all images to one vector, so that two images fail."""
    values = golden("pixel_decoder")
    features = as_map(torch.cat([values["condition"], values["negative"].flip(1)]))
    settings: dict[str, Any] = {
        "negative_features": as_map(values["negative"]),
        "guidance_scale": 3.0,
        "num_inference_steps": 3,
    }
    both = decoder.decode(features, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)], **settings)
    for i, seed in enumerate((1, 2)):
        one = decoder.decode(features[i : i + 1], generator=torch.Generator().manual_seed(seed), **settings)
        torch.testing.assert_close(both[i : i + 1], one, rtol=0, atol=1e-5)


def test_decoder_loads_by_parts_from_a_folder_with_a_broken_index(decoder: Blip3oSdxlDecoder, tmp_path: Path) -> None:
    decoder.unet.save_pretrained(tmp_path / "unet")
    decoder.vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"tokenizer": [null, null], "multimodal_encoder": [null, null]}')
    loaded = Blip3oSdxlDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.unet.conv_in.weight, decoder.unet.conv_in.weight)
    assert loaded.vae.dtype == torch.float32


def test_decoder_without_diffusers_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'xgen-mm\[images\]'"):
        Blip3oSdxlDecoder.from_pretrained(tmp_path)
