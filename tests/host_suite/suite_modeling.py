"""transformers' own common model tests, run on the classes of this package: `make test-host-suite`.

The target copies this file into the tests of a source release of transformers, whose mixins it uses.
"""

import unittest

import torch
from transformers import Phi3Config, SiglipVisionConfig

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMModel

from ...test_modeling_common import GenerationTesterMixin, ModelTesterMixin

TILE, PATCH, LATENTS, VOCABULARY, IMAGE = 16, 4, 4, 99, 5
SIZES = [(32, 32), (12, 40), (50, 12)]  # height, width: 5, 4 and 4 tiles with the thumbnail
NUM_TILES = [5, 4, 4]


class XGenMMModelTester:
    """Builds what the mixins ask for: a small model and one batch."""

    config_class, base_model_class, all_model_classes = XGenMMConfig, XGenMMModel, None
    causal_lm_class = conditional_generation_class = XGenMMForConditionalGeneration

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        self.batch_size, self.is_training = len(SIZES), True
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.vocab_size = VOCABULARY
        self.seq_length = LATENTS * max(NUM_TILES) + 4
        self.encoder_seq_length = self.key_length = self.seq_length

    def get_config(self) -> XGenMMConfig:
        width = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        return XGenMMConfig(
            vision_config=SiglipVisionConfig(image_size=TILE, patch_size=PATCH, vision_use_head=False, **width),
            text_config=Phi3Config(
                vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_key_value_heads=2, **width
            ),
            resampler_config={
                "num_latents": LATENTS,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "head_dim": 8,
            },
            image_token_id=IMAGE,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[XGenMMConfig, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(len(SIZES), max(NUM_TILES), 3, TILE, TILE, generator=generator)
        ids = torch.randint(10, VOCABULARY, (len(SIZES), self.seq_length), generator=generator)
        mask = torch.ones_like(ids)
        for row, count in enumerate(NUM_TILES):
            pixels[row, count:] = 0
            start = LATENTS * (max(NUM_TILES) - count)
            ids[row, :start], mask[row, :start] = 0, 0
            ids[row, start : start + LATENTS * count] = IMAGE
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": torch.tensor(SIZES)}
        return self.get_config(), inputs


class XGenMMModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """The host's common tests."""

    all_model_classes = (XGenMMModel, XGenMMForConditionalGeneration)
    _is_composite = True
    # Features come one row per tile, as LLaVA-NeXT's do, whose own tests set this too.
    skip_test_image_features_output_shape = True

    def setUp(self) -> None:
        self.model_tester = XGenMMModelTester(self)
