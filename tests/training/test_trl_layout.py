"""TRL's own collators with texts that name the places of images: each image goes there, in every kind of data."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from xgen_mm import XGenMMProcessor

Draw = Callable[[int, int], Image.Image]
QUESTION = [{"role": "user", "content": "First <image> then <image>: which is larger?"}]
WRITTEN = "<|user|>\nFirst <image> then <image>\n: which is larger?<|end|>\n<|assistant|>\n"


def good() -> list[dict[str, str]]:
    return [{"role": "assistant", "content": "B"}]


def collators() -> dict[str, Any]:
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from trl.trainer.kto_trainer import DataCollatorForVisionUnpairedPreference
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    return {
        "messages": DataCollatorForVisionLanguageModeling,
        "completion": DataCollatorForVisionLanguageModeling,
        "pair": DataCollatorForVisionPreference,
        "unpaired": DataCollatorForVisionUnpairedPreference,
    }


def rows(question: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    return {
        "messages": {"messages": question + good()},
        "completion": {"prompt": question, "completion": good()},
        "pair": {"prompt": question, "chosen": good(), "rejected": [{"role": "assistant", "content": "A"}]},
        "unpaired": {"prompt": question, "completion": good(), "label": True},
    }


@pytest.mark.parametrize("kind", ["messages", "completion", "pair", "unpaired"])
def test_images_go_where_texts_name_them(tiny_processor: XGenMMProcessor, checker_image: Draw, kind: str) -> None:
    collator = collators()[kind](tiny_processor, max_length=None)
    images = [checker_image(28, 56), checker_image(56, 28)]
    batch = collator([rows(QUESTION)[kind] | {"images": images}])
    expected = tiny_processor(text=[WRITTEN], images=[images], return_tensors="pt")
    length = expected["input_ids"].shape[1]
    assert batch["input_ids"][0, :length].tolist() == expected["input_ids"][0].tolist()
    assert batch["image_sizes"][:2].tolist() == [[28, 56], [56, 28]]


@pytest.mark.parametrize("kind", ["messages", "completion", "pair", "unpaired"])
def test_another_number_of_places_than_images_is_refused(
    tiny_processor: XGenMMProcessor, checker_image: Draw, kind: str
) -> None:
    collator = collators()[kind](tiny_processor, max_length=None)
    question = [{"role": "user", "content": "Only <image>?"}]
    with pytest.raises(ValueError, match="1 `<image>` for 2 images"):
        collator([rows(question)[kind] | {"images": [checker_image(28, 56), checker_image(56, 28)]}])
