import pytest
import torch

from tests.blip3o.small_blip3o import generators
from xgen_mm.blip3o.configuration_blip3o import Blip3oPixelDecoderConfig
from xgen_mm.blip3o.pixel_decoder import Blip3oPixelDecoder


@pytest.fixture(scope="module")
def decoder() -> Blip3oPixelDecoder:
    torch.manual_seed(0)
    return Blip3oPixelDecoder(Blip3oPixelDecoderConfig(image_size=16, feature_channels=4, hidden_size=8)).eval()


def test_decoder_gives_pixels_and_a_batch_is_its_single_images(decoder: Blip3oPixelDecoder) -> None:
    features, negative = torch.randn(2, 4, 2, 2), torch.randn(1, 4, 2, 2)
    settings = {"negative_features": negative, "guidance_scale": 2.0, "num_inference_steps": 3}
    both = decoder.decode(features, generator=generators(1, 2), **settings)
    assert both.shape == (2, 3, 16, 16)
    assert 0 <= float(both.min()) < float(both.max()) <= 1
    for i in range(2):
        one = decoder.decode(features[i : i + 1], generator=generators(i + 1), **settings)
        torch.testing.assert_close(both[i : i + 1], one, rtol=0, atol=1e-5)


def test_decoder_guidance_weighs_the_features_against_the_negative_ones(decoder: Blip3oPixelDecoder) -> None:
    features, negative = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)

    def drawn(scale: float, given: torch.Tensor = features, against: torch.Tensor | None = negative) -> torch.Tensor:
        return decoder.decode(
            given, negative_features=against, guidance_scale=scale, num_inference_steps=2, generator=generators(1)
        )

    torch.testing.assert_close(drawn(0.0), drawn(1.0, negative), rtol=0, atol=1e-5)
    assert torch.equal(drawn(1.0), drawn(3.0, against=None))
    assert not torch.equal(drawn(1.0), drawn(3.0))


def test_decoder_learns_to_draw_what_the_features_say() -> None:
    torch.manual_seed(0)
    config = Blip3oPixelDecoderConfig(image_size=8, num_channels=1, feature_channels=2, hidden_size=8)
    decoder = Blip3oPixelDecoder(config)
    # One feature map for black images, one for white ones.
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, :, None, None].expand(2, 2, 2, 2)
    pixels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 8, 8)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        optimizer.zero_grad()
        decoder.flow_matching_loss(
            pixels.repeat(8, 1, 1, 1), features.repeat(8, 1, 1, 1), generator=generator
        ).backward()
        optimizer.step()
    drawn = decoder.eval().decode(features, num_inference_steps=8, generator=generator)
    assert float(drawn[0].mean()) < 0.15
    assert float(drawn[1].mean()) > 0.85


def test_decoder_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`image_size` is 18 and `hidden_size` 32; expected multiples of 4 and 8"):
        Blip3oPixelDecoderConfig(image_size=18)
