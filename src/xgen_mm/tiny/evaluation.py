"""Held-out figures of the small model: new pictures of test digits, asked for through `generate`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
from ..processing.processing_xgen_mm import XGenMMProcessor
from .conversations import (
    COUNT_QUESTIONS,
    LARGEST_QUESTIONS,
    NUMBER_OF_IMAGE_QUESTIONS,
    NUMBER_QUESTIONS,
    Number,
    largest,
    spell,
)
from .digits import GlyphBank, draw_picture, random_distinct_numbers, random_number

MAX_NEW_TOKENS = 8
SET_LENGTHS = [1 / 3, 1 / 3, 1 / 3]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt: pictures, the question about them and the right answer."""

    images: list[Image.Image]
    text: str
    answer: str

    def message(self) -> Message:
        """User turn: a single picture before the question, several each introduced by "Image i: "."""
        content: list[Message] = []
        for index, image in enumerate(self.images, start=1):
            if len(self.images) > 1:
                content.append({"type": "text", "text": f"Image {index}: "})
            content.append({"type": "image", "image": image})
        return {"role": "user", "content": [*content, {"type": "text", "text": self.text}]}


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """A kind of question; `draw` makes the i-th one."""

    name: str
    draw: Callable[[np.random.Generator, GlyphBank, int], Question]


@dataclass(frozen=True, slots=True)
class Score:
    """Exact matches of one task with the Wilson 95 % interval, both as shares."""

    task: str
    num_right: int
    num_questions: int
    share: float
    low: float
    high: float


def read_number(num_digits: int) -> Callable[[np.random.Generator, GlyphBank, int], Question]:
    """Questions for the number in one picture."""

    def draw(rng: np.random.Generator, bank: GlyphBank, index: int) -> Question:
        number = random_number(rng, num_digits)
        return Question(_pictures(rng, bank, [number]), NUMBER_QUESTIONS[0], spell(number))

    return draw


def count_digits(rng: np.random.Generator, bank: GlyphBank, index: int) -> Question:
    """How many digits there are; one to five in turn."""
    number = random_number(rng, 1 + index % 5)
    return Question(_pictures(rng, bank, [number]), COUNT_QUESTIONS[0], str(len(number)))


def find_largest(num_images: int) -> Callable[[np.random.Generator, GlyphBank, int], Question]:
    """Which of several pictures shows the largest number of one to three digits; half of the sets share the length."""

    def draw(rng: np.random.Generator, bank: GlyphBank, index: int) -> Question:
        numbers = random_distinct_numbers(rng, num_images, length_weights=SET_LENGTHS)
        return Question(_pictures(rng, bank, numbers), LARGEST_QUESTIONS[0], f"Image {largest(numbers) + 1}")

    return draw


def read_one_of_several(rng: np.random.Generator, bank: GlyphBank, index: int) -> Question:
    """The number in picture i of two to four."""
    numbers = random_distinct_numbers(rng, 2 + index % 3, length_weights=SET_LENGTHS)
    asked = int(rng.integers(len(numbers)))
    text = NUMBER_OF_IMAGE_QUESTIONS[0].format(asked + 1)
    return Question(_pictures(rng, bank, numbers), text, spell(numbers[asked]))


TASKS = (
    EvaluationTask("one digit", read_number(1)),
    EvaluationTask("three digits", read_number(3)),
    EvaluationTask("count of 1-5 digits", count_digits),
    EvaluationTask("largest of 2", find_largest(2)),
    EvaluationTask("largest of 4", find_largest(4)),
    EvaluationTask("number in image i of 2-4", read_one_of_several),
)


@torch.inference_mode()
def evaluate(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    bank: GlyphBank,
    *,
    num_questions: int,
    seed: int = 0,
    batch_size: int = 25,
    tasks: tuple[EvaluationTask, ...] = TASKS,
) -> list[Score]:
    """Ask `num_questions` of every task and count exact answers.

    Args:
        model: Answers greedily.
        processor: Prepares prompts; its chat template is part of what is measured.
        bank: Digits to write with; take them from the test split.
        num_questions: Questions per task, at least 1.
        seed: Questions are the same for the same seed.
        batch_size: Prompts per `generate` call.
        tasks: What to ask.

    Returns:
        One score per task.
    """
    model.eval()
    scores = []
    with tqdm(total=num_questions * len(tasks), unit="question") as progress:
        for number, task in enumerate(tasks):
            progress.set_description(task.name)
            rng = np.random.default_rng([seed, number])
            num_right = 0
            for start in range(0, num_questions, batch_size):
                indices = range(start, min(start + batch_size, num_questions))
                questions = [task.draw(rng, bank, index) for index in indices]
                answers = answer(model, processor, questions)
                num_right += sum(given == question.answer for given, question in zip(answers, questions, strict=True))
                progress.update(len(questions))
            low, high = wilson_interval(num_right, num_questions)
            scores.append(Score(task.name, num_right, num_questions, num_right / num_questions, low, high))
    return scores


def answer(model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, questions: list[Question]) -> list[str]:
    """Greedy answers to a batch of questions, without special tokens and surrounding white space."""
    inputs = processor.apply_chat_template(
        [[question.message()] for question in questions],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]


def wilson_interval(num_right: int, num_questions: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share.

    >>> [round(bound, 3) for bound in wilson_interval(90, 100)]
    [0.826, 0.945]
    """
    share = num_right / num_questions
    centre = share + z**2 / (2 * num_questions)
    spread = z * math.sqrt(share * (1 - share) / num_questions + z**2 / (4 * num_questions**2))
    scale = 1 + z**2 / num_questions
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def format_scores(scores: list[Score]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| task | right | n | 95 % interval |"
    yield "|---|---|---|---|"
    for score in scores:
        interval = f"{100 * score.low:.1f}-{100 * score.high:.1f}"
        yield f"| {score.task} | {100 * score.share:.1f} % | {score.num_questions} | {interval} |"


def scores_to_json(scores: list[Score], *, checkpoint: str, seed: int) -> dict[str, Any]:
    """Scores with what they depend on, ready for `json.dump`."""
    return {
        "checkpoint": checkpoint,
        "split": "MNIST test",
        "seed": seed,
        "scores": [asdict(score) for score in scores],
    }


def _pictures(rng: np.random.Generator, bank: GlyphBank, numbers: list[Number]) -> list[Image.Image]:
    return [draw_picture(rng, bank, number).to_image() for number in numbers]
