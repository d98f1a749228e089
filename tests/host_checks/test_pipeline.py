"""The host's pipeline for pictures and text, with the model that is packaged."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from xgen_mm import tiny_checkpoint

Draw = Callable[[int, int], Image.Image]


@pytest.fixture(scope="module")
def answer() -> Any:
    return pipeline("image-text-to-text", model=str(tiny_checkpoint()), device="cpu")


def test_pipeline_answers_a_text_with_a_picture(answer: Any, checker_image: Draw) -> None:
    outputs = answer(images=checker_image(60, 60), text="<image> What is this?", max_new_tokens=3)
    assert set(outputs[0]) == {"input_text", "generated_text"}
    assert isinstance(outputs[0]["generated_text"], str)


def test_pipeline_continues_a_conversation(answer: Any, checker_image: Draw) -> None:
    content = [{"type": "image", "image": checker_image(60, 60)}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    outputs = answer(text=messages, max_new_tokens=3)
    last = outputs[0]["generated_text"][-1]
    assert last["role"] == "assistant"
    assert isinstance(last["content"], str)


def test_pipeline_answers_a_batch_as_it_answers_its_parts(answer: Any, checker_image: Draw) -> None:
    pictures = [checker_image(60, 60), checker_image(30, 90)]
    texts = ["<image> What is this?", "Which number is written here? <image>"]
    settings = {"generate_kwargs": {"max_new_tokens": 4, "do_sample": False}}
    together = answer(images=[[picture] for picture in pictures], text=texts, batch_size=2, **settings)
    alone = [answer(images=picture, text=text, **settings)[0] for picture, text in zip(pictures, texts, strict=True)]
    assert [output["generated_text"] for output in together] == [output["generated_text"] for output in alone]


def test_pipeline_returns_the_new_text_alone(answer: Any, checker_image: Draw) -> None:
    outputs = answer(
        images=checker_image(60, 60), text="<image> What is this?", max_new_tokens=3, return_full_text=False
    )
    assert "What is this?" not in outputs[0]["generated_text"]
