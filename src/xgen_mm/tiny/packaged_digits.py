"""Questions about handwritten numbers that need no download: digits of MNIST's test split, packaged as one picture.

`python -m xgen_mm.tiny.packaged_digits MNIST_DIR` writes the picture again.
"""

import functools
import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .digits import GlyphBank
from .evaluation import TASKS, EvaluationTask, Question
from .mnist import DEFAULT_DIR, IMAGE_SIDE, read_mnist

SHEET = Path(__file__).parent / "test_digits.png"
# One row of the sheet per class, in the order in which the test split has them.
DIGITS_PER_CLASS = 16
QUESTIONS_PER_TASK = 40
# Names of the benchmarks, in the order of `evaluation.TASKS`.
GENERATOR_NAMES = (
    "digits_one",
    "digits_three",
    "digits_count",
    "digits_largest_of_2",
    "digits_largest_of_4",
    "digits_number_in_image",
)


@functools.cache
def packaged_bank() -> GlyphBank:
    """The packaged digits."""
    with Image.open(SHEET, formats=("PNG",)) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    rows = pixels.reshape(10, IMAGE_SIDE, DIGITS_PER_CLASS, IMAGE_SIDE).swapaxes(1, 2)
    return GlyphBank(rows.reshape(-1, IMAGE_SIDE, IMAGE_SIDE), np.repeat(np.arange(10), DIGITS_PER_CLASS))


def digit_generators(
    *, num_questions: int = QUESTIONS_PER_TASK, seed: int = 0
) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Rows of the digit benchmarks by name: `id`, `question`, `answer`, and `images` as PNG files.

    Args:
        num_questions: Questions per benchmark.
        seed: Questions are the same for the same seed.
    """
    return {
        name: partial(_draw_rows, task, num_questions=num_questions, seed=[seed, number])
        for number, (name, task) in enumerate(zip(GENERATOR_NAMES, TASKS, strict=True))
    }


def write_sheet(mnist: Path, target: Path = SHEET) -> None:
    """Write the first digits of each class of the test split side by side, one class per row."""
    pixels, classes = read_mnist(mnist, "test")
    chosen = [pixels[np.flatnonzero(classes == digit)[:DIGITS_PER_CLASS]] for digit in range(10)]
    rows = [np.concatenate(list(digits), axis=1) for digits in chosen]
    Image.fromarray(np.concatenate(rows, axis=0)).save(target, optimize=True)


def _draw_rows(task: EvaluationTask, *, num_questions: int, seed: list[int]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for index in range(num_questions):
        yield _row(task.draw(rng, packaged_bank(), index), id=f"{index:04d}")


def _row(question: Question, *, id: str) -> dict[str, Any]:
    images = [_encode(image) for image in question.images]
    return {"id": id, "question": question.text, "answer": question.answer, "images": images}


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.convert("L").save(stream, format="PNG")
    return stream.getvalue()


if __name__ == "__main__":
    write_sheet(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIR)
