"""The small random model, larger weights so that its loss depends on the pictures, and a batch with labels."""

import pytest
import torch

from tests.picture_batch import Draw, make_batch
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor


@pytest.fixture
def batch(tiny_processor: XGenMMProcessor, checker_image: Draw) -> dict[str, torch.Tensor]:
    return make_batch(tiny_processor, checker_image)


@pytest.fixture
def model(tiny_model: XGenMMForConditionalGeneration) -> XGenMMForConditionalGeneration:
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return tiny_model.train()
