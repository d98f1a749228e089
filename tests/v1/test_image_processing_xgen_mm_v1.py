"""Image settings of the v1 release."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from xgen_mm import XGenMMV1Config, XGenMMV1ImageProcessor, XGenMMV1ImageProcessorPil

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing"


def test_pil_processor_defaults_give_the_released_bits_of_v1() -> None:
    recorded = json.loads((GOLDEN / "preprocessing.json").read_text())["images"]["coffee_wide"]["v1"]["anyres"]
    with Image.open(GOLDEN / "coffee_wide.png") as photo:
        values = XGenMMV1ImageProcessorPil()(photo, return_tensors="np")["pixel_values"][0]
    assert list(values.shape) == recorded["shape"]
    assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == recorded["sha256_f32"]


@pytest.mark.parametrize("cls", [XGenMMV1ImageProcessor, XGenMMV1ImageProcessorPil])
def test_defaults_fit_the_default_model_and_survive_saving(cls: type, tmp_path: Path) -> None:
    processor = cls()
    config = XGenMMV1Config()
    assert processor.size == {"height": config.tile_size, "width": config.tile_size}
    assert processor.image_grid_pinpoints == config.image_grid_pinpoints
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=processor.backend)
    assert type(loaded) is cls
    assert loaded.to_dict() == processor.to_dict()
