"""What is asked about pictures of numbers, and how questions share one view of the pictures.

A *task* is a function registered with `@task`: it gets the numbers of a set of pictures and returns one question with
its answer. A *conversation* is a tree of text: questions about one set of pictures are branches that all follow the
pictures but do not see one another, so the pictures are encoded once; turns of one chat follow each other on one path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

Number = tuple[int, ...]
ROOT = -1
BOS_SHARE = 0.1
CANONICAL_SHARE = 0.65
CHAIN_SHARE = 0.3
LATE_IMAGE_SHARE = 0.15
QUESTION_FIRST_SHARE = 0.05
# How people put pictures into a prompt: before the picture, and between the picture and what follows.
SINGLE_INTRODUCTIONS = ("", "Image 1: ", "Image 1:", "Image: ")
SINGLE_INTRODUCTION_WEIGHTS = (0.85, 0.06, 0.06, 0.03)
SET_INTRODUCTIONS = ("Image {}: ", "Image {}:", "Image {}:\n", "Image {} ", "")
SET_INTRODUCTION_WEIGHTS = (0.52, 0.30, 0.10, 0.03, 0.05)
SEPARATORS = ("\n", "", " ", "\n\n")
SEPARATOR_WEIGHTS = (0.76, 0.12, 0.10, 0.02)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer; `weight` scales the loss of the answer."""

    question: str
    answer: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a node; only pieces with a `weight` above 0 are learned."""

    text: str
    weight: float = 0.0


@dataclass(slots=True)
class Node:
    """Text that follows its parent's text; `<image>` stands for the next picture of the conversation."""

    parent: int
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of text, parents before children, whose pictures appear in the order of the nodes."""

    nodes: list[Node]

    def paths(self) -> Iterator[str]:
        """The full text along the path to each leaf: what a chat without the tree would look like."""
        texts: list[str] = []
        for node in self.nodes:
            before = texts[node.parent] if node.parent != ROOT else ""
            texts.append(before + "".join(piece.text for piece in node.pieces))
        parents = {node.parent for node in self.nodes}
        return (text for index, text in enumerate(texts) if index not in parents)


TaskFunction = Callable[[np.random.Generator, list[Number], bool], Exchange]
SINGLE_TASKS: dict[str, TaskFunction] = {}
SET_TASKS: dict[str, TaskFunction] = {}


def task(name: str, registry: dict[str, TaskFunction]) -> Callable[[TaskFunction], TaskFunction]:
    """Register a task under `name`, for single pictures or for sets of pictures."""

    def register(function: TaskFunction) -> TaskFunction:
        registry[name] = function
        return function

    return register


NUMBER_QUESTIONS = (
    "What number is in the image?",
    "Which number is shown in the image?",
    "Read the number in the image.",
    "What number is this?",
)
COUNT_QUESTIONS = (
    "How many digits are in the image?",
    "Count the digits in the image.",
    "How many digits does the number have?",
)
LARGEST_QUESTIONS = (
    "Which image shows the largest number?",
    "Which image has the largest number?",
)
LARGER_QUESTIONS = (
    *LARGEST_QUESTIONS,
    "Which image shows the larger number?",
    "Which image has the larger number?",
)
NUMBER_OF_IMAGE_QUESTIONS = (
    "What number is in image {}?",
    "Which number is shown in image {}?",
    "Read the number in image {}.",
)
COUNT_OF_IMAGE_QUESTIONS = (
    "How many digits are in image {}?",
    "Count the digits in image {}.",
)


@task("number", SINGLE_TASKS)
def ask_number(rng: np.random.Generator, numbers: list[Number], canonical: bool) -> Exchange:
    """Read the number of the only picture."""
    return Exchange(_wording(rng, NUMBER_QUESTIONS, canonical), spell(numbers[0]))


@task("count", SINGLE_TASKS)
def ask_count(rng: np.random.Generator, numbers: list[Number], canonical: bool) -> Exchange:
    """Count the digits of the only picture."""
    return Exchange(_wording(rng, COUNT_QUESTIONS, canonical), str(len(numbers[0])))


@task("largest", SET_TASKS)
def ask_largest(rng: np.random.Generator, numbers: list[Number], canonical: bool) -> Exchange:
    """Name the picture with the largest number; of two, also "the larger"."""
    wordings = LARGER_QUESTIONS if len(numbers) == 2 else LARGEST_QUESTIONS
    # Comparing is the hardest step and its answer has a single informative token.
    return Exchange(_wording(rng, wordings, canonical), f"Image {largest(numbers) + 1}", weight=2.0)


@task("number_of_image", SET_TASKS)
def ask_number_of_image(rng: np.random.Generator, numbers: list[Number], canonical: bool) -> Exchange:
    """Read the number of one picture of several."""
    index = int(rng.integers(len(numbers)))
    return number_of_image(rng, numbers, index, canonical)


@task("count_of_image", SET_TASKS)
def ask_count_of_image(rng: np.random.Generator, numbers: list[Number], canonical: bool) -> Exchange:
    """Count the digits in one picture of several."""
    index = int(rng.integers(len(numbers)))
    return Exchange(
        _wording(rng, COUNT_OF_IMAGE_QUESTIONS, canonical).format(index + 1),
        str(len(numbers[index])),
    )


def number_of_image(rng: np.random.Generator, numbers: list[Number], index: int, canonical: bool) -> Exchange:
    """Read the number of picture `index`, counted from 0."""
    question = _wording(rng, NUMBER_OF_IMAGE_QUESTIONS, canonical).format(index + 1)
    return Exchange(question, spell(numbers[index]))


def spell(number: Number) -> str:
    """The digits without gaps."""
    return "".join(map(str, number))


def largest(numbers: list[Number]) -> int:
    """Index of the largest number."""
    return max(range(len(numbers)), key=lambda index: int(spell(numbers[index])))


def ask_everything(rng: np.random.Generator, numbers: list[Number], *, canonical: bool = False) -> list[Exchange]:
    """All tasks that fit these pictures; in sets, the number of every picture is asked for."""
    if len(numbers) == 1:
        return [function(rng, numbers, canonical) for function in SINGLE_TASKS.values()]
    exchanges = [number_of_image(rng, numbers, index, canonical) for index in range(len(numbers))]
    others = [function for name, function in SET_TASKS.items() if name != "number_of_image"]
    return [function(rng, numbers, canonical) for function in others] + exchanges


def converse(rng: np.random.Generator, numbers: list[Number], *, canonical: bool = False) -> Conversation:
    """A conversation about pictures of `numbers`, in picture order.

    Args:
        rng: Chooses tasks, wording, separators and the shape of the conversation.
        numbers: One number per picture.
        canonical: Use the first wording of every question, plain separators and separate questions.
    """
    if canonical:
        return _separate_questions(rng, numbers, canonical=True)
    if len(numbers) > 1 and rng.random() < LATE_IMAGE_SHARE:
        return _late_images(rng, numbers)
    if len(numbers) == 1 and rng.random() < QUESTION_FIRST_SHARE:
        return _question_first(rng, numbers)
    return _separate_questions(rng, numbers, canonical=False)


def compare_texts(rng: np.random.Generator, sets: list[list[Number]]) -> Conversation:
    """Comparisons of written numbers, one branch per set: practice in comparing without the cost of pictures."""
    nodes = [Node(ROOT, [Piece("<|user|>")])]
    for numbers in sets:
        introduction, separator = _layout(rng, len(numbers))
        introduction = introduction or "Image {}: "
        shown = (separator or "\n").join(
            introduction.format(index + 1) + spell(number) for index, number in enumerate(numbers)
        )
        exchange = ask_largest(rng, numbers, False)
        nodes.append(Node(0, [Piece("\n" + shown), *_turn("\n", exchange)]))
    return Conversation(nodes)


def example_texts() -> list[str]:
    """Every wording once, for training the tokenizer."""
    questions = [*NUMBER_QUESTIONS, *COUNT_QUESTIONS, *LARGER_QUESTIONS]
    questions += [question.format(1) for question in (*NUMBER_OF_IMAGE_QUESTIONS, *COUNT_OF_IMAGE_QUESTIONS)]
    return [
        *questions,
        *(introduction.format(2) for introduction in SET_INTRODUCTIONS),
        "Image 3",
        "407",
        "\n",
    ]


def _separate_questions(rng: np.random.Generator, numbers: list[Number], *, canonical: bool) -> Conversation:
    """All pictures first, then one branch per question; some branches are chats of several turns."""
    introduction, separator = _layout(rng, len(numbers), canonical=canonical)
    shown = separator.join(introduction.format(index + 1) + "<image>" for index in range(len(numbers)))
    nodes = [Node(ROOT, [Piece(_opening(rng, canonical) + shown)])]
    exchanges = ask_everything(rng, numbers, canonical=canonical)
    for chat in _group_into_chats(rng, exchanges, canonical=canonical):
        nodes.append(Node(0, _chat(separator, chat)))
    return Conversation(nodes)


def _question_first(rng: np.random.Generator, numbers: list[Number]) -> Conversation:
    exchange = ask_everything(rng, numbers)[int(rng.integers(2))]
    separator = _choose(rng, SEPARATORS, SEPARATOR_WEIGHTS)
    nodes = [
        Node(
            ROOT,
            [Piece(_opening(rng, False) + exchange.question + separator + "<image>")],
        )
    ]
    nodes.append(Node(0, _turn("", Exchange("", exchange.answer))))
    return Conversation(nodes)


def _late_images(rng: np.random.Generator, numbers: list[Number]) -> Conversation:
    """The first picture opens the chat, the others join in later turns; the last picture is followed by branches."""
    introduction, separator = _layout(rng, len(numbers))
    nodes = [Node(ROOT, [Piece(_opening(rng, False) + introduction.format(1) + "<image>")])]
    for seen in range(1, len(numbers)):
        about = ask_everything(rng, numbers[:seen])
        exchange = about[int(rng.integers(len(about)))]
        following = f"\n<|user|>\n{introduction.format(seen + 1)}<image>"
        nodes.append(Node(len(nodes) - 1, [*_turn(separator, exchange), Piece(following)]))
    last = len(nodes) - 1
    nodes += [Node(last, _turn(separator, exchange)) for exchange in ask_everything(rng, numbers)]
    return Conversation(nodes)


def _group_into_chats(
    rng: np.random.Generator, exchanges: list[Exchange], *, canonical: bool
) -> Iterator[list[Exchange]]:
    if canonical or rng.random() > CHAIN_SHARE:
        yield from ([exchange] for exchange in exchanges)
        return
    shuffled = [exchanges[index] for index in rng.permutation(len(exchanges))]
    while shuffled:
        turns = int(rng.integers(1, 4))
        yield shuffled[:turns]
        shuffled = shuffled[turns:]


def _chat(separator: str, exchanges: list[Exchange]) -> list[Piece]:
    pieces = _turn(separator, exchanges[0])
    for exchange in exchanges[1:]:
        pieces += _turn("\n<|user|>\n", exchange)
    return pieces


def _turn(before: str, exchange: Exchange) -> list[Piece]:
    return [
        Piece(f"{before}{exchange.question}<|end|>\n<|assistant|>\n"),
        Piece(f"{exchange.answer}<|end|>", weight=exchange.weight),
    ]


def _opening(rng: np.random.Generator, canonical: bool) -> str:
    return "<s><|user|>\n" if not canonical and rng.random() < BOS_SHARE else "<|user|>\n"


def _layout(rng: np.random.Generator, num_images: int, *, canonical: bool = False) -> tuple[str, str]:
    """Introduction of every picture and separator after it."""
    introductions, weights = (SINGLE_INTRODUCTIONS, SINGLE_INTRODUCTION_WEIGHTS)
    if num_images > 1:
        introductions, weights = SET_INTRODUCTIONS, SET_INTRODUCTION_WEIGHTS
    if canonical:
        return introductions[0], SEPARATORS[0]
    return _choose(rng, introductions, weights), _choose(rng, SEPARATORS, SEPARATOR_WEIGHTS)


def _wording(rng: np.random.Generator, wordings: tuple[str, ...], canonical: bool) -> str:
    if canonical or rng.random() < CANONICAL_SHARE:
        return wordings[0]
    return wordings[int(rng.integers(len(wordings)))]


def _choose(rng: np.random.Generator, options: tuple[str, ...], weights: tuple[float, ...]) -> str:
    return options[int(rng.choice(len(options), p=weights))]
