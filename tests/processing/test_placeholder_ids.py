"""Repeated ids equal what the tokenizer makes of the written-out text, and the tokenizer never sees that text."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers.processing_utils import ProcessorMixin

from xgen_mm import XGenMMProcessor
from xgen_mm.processing.placeholder_ids import repeats_of

Draw = Callable[[int, int], Image.Image]

# 3 x 1, 2 x 2 and 1 x 3 tiles.
SIZES = [(84, 20), (40, 40), (20, 60)]
ONE = ["Read <image> this"]
UNEVEN = ["<image> and <image>!", "no picture", "Look: <image>"]


def pictures(draw: Draw, count: int) -> list[Image.Image]:
    return [draw(*SIZES[index % 3]) for index in range(count)]


def written_out(processor: XGenMMProcessor, **arguments: Any) -> dict[str, Any]:
    """The host's own way, which repeats the placeholder in the text."""
    return dict(ProcessorMixin.__call__(processor, **arguments))


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        assert plain(found[name]) == plain(value), name


def plain(value: Any) -> Any:
    """Lists and numbers whatever the kind of array."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("texts", "arguments"),
    [
        pytest.param(ONE, {"return_tensors": "pt"}, id="one"),
        pytest.param(ONE, {"return_tensors": "np"}, id="numpy"),
        pytest.param(UNEVEN, {}, id="lists"),
        pytest.param(UNEVEN, {"padding": True, "return_tensors": "pt"}, id="padded-left"),
        pytest.param(UNEVEN, {"padding": True}, id="padded-lists"),
        pytest.param(
            UNEVEN, {"padding": "longest", "padding_side": "right", "return_tensors": "pt"}, id="padded-right"
        ),
        pytest.param(UNEVEN, {"padding": True, "pad_to_multiple_of": 16, "return_tensors": "pt"}, id="multiple"),
        pytest.param(UNEVEN, {"padding": "max_length", "max_length": 90, "return_tensors": "pt"}, id="max-length"),
        pytest.param(
            UNEVEN, {"padding": True, "truncation": True, "max_length": 90, "return_tensors": "pt"}, id="nothing-cut"
        ),
        pytest.param(UNEVEN, {"padding": True, "return_offsets_mapping": True}, id="offsets"),
        pytest.param(ONE, {"return_offsets_mapping": True, "return_tensors": "pt"}, id="offset-tensors"),
        pytest.param(UNEVEN, {"return_text_replacement_offsets": True}, id="replacements"),
        pytest.param(UNEVEN, {"padding": True, "return_mm_token_type_ids": True, "return_tensors": "pt"}, id="types"),
        pytest.param(UNEVEN, {"padding": True, "return_special_tokens_mask": True}, id="special-tokens"),
        pytest.param(UNEVEN, {"padding": True, "return_token_type_ids": True}, id="token-types"),
        pytest.param(UNEVEN, {"return_attention_mask": False, "add_special_tokens": False}, id="ids-alone"),
        pytest.param(UNEVEN, {"text_kwargs": {"padding": True}, "return_tensors": "pt"}, id="nested"),
        pytest.param(ONE, {"image_aspect_ratio": "pad", "return_tensors": "pt"}, id="one-tile"),
        pytest.param(ONE, {"return_length": True}, id="length"),
    ],
)
def test_repeated_ids_equal_written_out_text(
    tiny_processor: XGenMMProcessor, checker_image: Draw, texts: list[str], arguments: dict[str, Any]
) -> None:
    images = [pictures(checker_image, text.count("<image>")) for text in texts]
    expected = written_out(tiny_processor, text=texts, images=images, **arguments)
    assert_equal(dict(tiny_processor(text=texts, images=images, **arguments)), expected)


@pytest.mark.parametrize("takes_blanks", [False, True], ids=["plain", "takes-blanks"])
def test_offsets_follow_a_placeholder_that_swallows_blanks(
    tiny_processor: XGenMMProcessor, checker_image: Draw, takes_blanks: bool
) -> None:
    own = copy.deepcopy(tiny_processor.tokenizer)
    own.add_tokens([AddedToken("<picture>", special=True, rstrip=takes_blanks)], special_tokens=True)
    processor = XGenMMProcessor(
        tiny_processor.image_processor, own, num_latents=4, image_token="<picture>", chat_template="-"
    )
    texts = ["a <picture>  b <picture>", "<picture> c"]
    arguments = {
        "text": texts,
        "images": [pictures(checker_image, 2), pictures(checker_image, 1)],
        "padding": True,
        "return_offsets_mapping": True,
    }
    assert_equal(dict(processor(**arguments)), written_out(processor, **arguments))


def test_tokenizer_sees_each_placeholder_once_whatever_the_pictures_cost(
    tiny_processor: XGenMMProcessor, checker_image: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    tokenize = type(tiny_processor.tokenizer).__call__

    def record(self: Any, text: list[str], **kwargs: Any) -> Any:
        seen.append(text)
        return tokenize(self, text, **kwargs)

    monkeypatch.setattr(type(tiny_processor.tokenizer), "__call__", record)
    tiny_processor.num_latents = 640
    text = " ".join(["<image>"] * 16)
    inputs = tiny_processor(text=text, images=pictures(checker_image, 16), return_tensors="pt")
    assert seen == [[text]]
    assert (inputs["input_ids"] == tiny_processor.image_token_id).sum() == 640 * (6 * 4 + 5 * 5 + 5 * 4)


def test_truncation_that_cuts_is_left_to_the_written_out_text(
    tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    arguments = {
        "text": ["<image> and a tail that is cut off"],
        "images": pictures(checker_image, 1),
        "truncation": True,
        "max_length": 22,
    }
    inputs = tiny_processor(**arguments)
    assert len(inputs["input_ids"][0]) == 22
    assert_equal(dict(inputs), written_out(tiny_processor, **arguments))


def test_assistant_mask_covers_the_answers_behind_pictures(
    tiny_processor: XGenMMProcessor, checker_image: Draw
) -> None:
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}<image>{{ message.content[1].text }}"
        "{% else %}{% generation %}{{ message.content[0].text }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    image = checker_image(40, 40)
    turn = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "number "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
    ]
    outputs = tiny_processor.apply_chat_template(
        [*turn, *turn],
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
    )
    ids, mask = outputs["input_ids"][0], outputs["assistant_masks"][0].bool()
    assert tiny_processor.decode(ids[mask]).replace(" ", "") == "sevenseven"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_of_the_tokenizer_is_kept(
    tiny_processor: XGenMMProcessor, checker_image: Draw, side: str
) -> None:
    before = tiny_processor.tokenizer.padding_side
    tiny_processor.tokenizer.padding_side = side
    try:
        inputs = tiny_processor(
            text=["<image>", "x"], images=[pictures(checker_image, 1), []], padding=True, return_tensors="pt"
        )
    finally:
        tiny_processor.tokenizer.padding_side = before
    padding = inputs["attention_mask"][1] == 0
    assert padding[{"left": 0, "right": -1}[side]]
    assert torch.equal(inputs["input_ids"][1] == tiny_processor.tokenizer.pad_token_id, padding)


def test_offsets_of_tokens_added_at_both_ends_stay_zero(tiny_processor: XGenMMProcessor, checker_image: Draw) -> None:
    own = copy.deepcopy(tiny_processor.tokenizer)
    start, end = ((own.convert_ids_to_tokens(token), token) for token in (own.bos_token_id, own.eos_token_id))
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    processor = XGenMMProcessor(tiny_processor.image_processor, own, num_latents=4)
    arguments = {"text": ONE, "images": pictures(checker_image, 1), "return_offsets_mapping": True}
    found = dict(processor(**arguments))
    assert [found["input_ids"][0][place] for place in (0, -1)] == [start[1], end[1]]
    assert [found["offset_mapping"][0][place] for place in (0, -1)] == [(0, 0), (0, 0)]
    assert_equal(found, written_out(processor, **arguments))


def test_repeats_need_as_many_placeholders_as_pictures() -> None:
    ids = [[1, 9, 2], [9, 3]]
    found = repeats_of(ids, image_token_id=9, counts=[4, 5])
    assert found is not None
    assert [row.tolist() for row in found] == [[1, 4, 1], [5, 1]]
    assert repeats_of(ids, image_token_id=9, counts=[4, 5, 6]) is None
    assert repeats_of(ids, image_token_id=9, counts=[4]) is None
