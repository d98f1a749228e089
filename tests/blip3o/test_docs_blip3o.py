import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.blip3o.small_blip3o import golden_config, text_processor
from xgen_mm import Blip3oForConditionalGeneration

PAGE = Path(__file__).parents[2] / "docs" / "blip3o.md"


def test_first_example_of_the_page_draws_four_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    decoder = {"image_size": 16, "feature_channels": 64, "hidden_size": 8, "num_inference_steps": 1}
    torch.manual_seed(0)
    Blip3oForConditionalGeneration(golden_config(pixel_decoder_config=decoder)).save_pretrained("blip3o-8b")
    text_processor().save_pretrained("blip3o-8b")
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert [image.size for image in names["images"]] == [(16, 16)] * 4
