"""Scores of short answers against reference texts: ANLS, relaxed accuracy, OCRBench and equality.

Sources: lmms-eval 0.7.3 (`api/metrics.py`, `tasks/chartqa`, `tasks/ocrbench`) and VLMEvalKit
(`dataset/utils/vqa_eval.py`, `dataset/image_vqa.py`).
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

Harness: TypeAlias = Literal["lmms_eval", "vlmevalkit"]

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
HANDWRITTEN_MATHS = "Handwritten Mathematical Expression Recognition"
# U+3000 and the forms of ASCII that fill the width of a Chinese character.
_FULL_WIDTH = {0x3000: 0x20} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


# Python refuses to read longer numbers.
_MOST_DIGITS = 4000


def whole_number(text: str) -> int | None:
    """The whole number that a text of plain digits states; `None` for any other text.

    >>> whole_number("12"), whole_number("\u00b2"), whole_number("-1")
    (12, None, None)
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn one text into the other.

    The rows of the usual table are kept as bits of integers (Myers 1999, in the form of Hyyrö 2001), so a long reply
    costs one step per character and not one per pair of characters.

    >>> edit_distance("kitten", "sitting")
    3
    """
    if not first or not second:
        return len(first) + len(second)
    pattern, text = (first, second) if len(first) <= len(second) else (second, first)
    places: dict[str, int] = {}
    for i, character in enumerate(pattern):
        places[character] = places.get(character, 0) | 1 << i
    everything, last = (1 << len(pattern)) - 1, 1 << (len(pattern) - 1)
    rises, falls, distance = everything, 0, len(pattern)
    for character in text:
        match = places.get(character, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        down, up = falls | ~(diagonal | rises) & everything, diagonal & rises
        distance += bool(down & last) - bool(up & last)
        down, up = (down << 1 | 1) & everything, (up << 1) & everything
        rises, falls = up | ~(diagonal | down) & everything, down & diagonal
    return distance


def anls(prediction: str, answers: Sequence[str], *, threshold: float = ANLS_THRESHOLD) -> float:
    """Average normalised Levenshtein similarity of one reply: one minus the smallest normalised distance.

    Lengths are those of the texts as given; distances those of lower-cased texts with white space collapsed. lmms-eval
    and VLMEvalKit agree.

    Args:
        prediction: The reply.
        answers: Accepted answers; the closest counts.
        threshold: Similarities below it become 0; one that equals it stays.

    Returns:
        Similarity between 0 and 1.

    Raises:
        ValueError: If there are no answers.

    >>> anls("abcx", ["abcd"])
    0.75
    """
    if not answers:
        raise ValueError("`answers` is empty; ANLS needs at least one accepted answer.")
    similarity = max(_similarity(prediction, answer, threshold=threshold) for answer in answers)
    return similarity if similarity >= threshold else 0.0


def _similarity(prediction: str, answer: str, *, threshold: float) -> float:
    # A capital letter may be longer than the small one: the originals measure upper-cased texts.
    length = max(len(prediction.upper()), len(answer.upper()))
    if length == 0:
        return 1.0
    given, expected = (" ".join(text.strip().lower().split()) for text in (prediction, answer))
    fewest_edits = abs(len(given) - len(expected))
    if 1 - fewest_edits / length < threshold:
        return 0.0
    return 1 - edit_distance(given, expected) / length


def relaxed_accuracy(
    prediction: str, target: str, *, harness: Harness = "vlmevalkit", tolerance: float = RELATIVE_TOLERANCE
) -> bool:
    """Whether a reply is right as ChartQA counts it: a number within 5 % of the target, or the same text.

    Args:
        prediction: The reply.
        target: The right answer. "25%" means 0.25; a target of zero is compared as text.
        harness: VLMEvalKit strips white space around the reply, lmms-eval does not.
        tolerance: Largest relative deviation that is still right.

    Returns:
        Whether it is right.

    >>> relaxed_accuracy("105", "100"), relaxed_accuracy("1,200", "1200")
    (True, False)
    """
    given = prediction.strip() if harness == "vlmevalkit" else prediction
    number, expected = _to_number(given), _to_number(target)
    if number is not None and expected:
        return abs(number - expected) / abs(expected) <= tolerance
    return given.lower() == target.lower()


def _to_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def ocrbench_is_right(
    prediction: str, answers: Sequence[str], *, question_type: str = "", harness: Harness = "vlmevalkit"
) -> bool:
    """Whether any accepted answer stands somewhere in the reply.

    Args:
        prediction: The reply.
        answers: Accepted answers.
        question_type: Kind of the question. For `HANDWRITTEN_MATHS`, spaces vanish and case counts; for all others
            case does not count.
        harness: lmms-eval reads full-width ASCII as plain ASCII, VLMEvalKit does not.

    Returns:
        Whether it is right. OCRBench's score is the number of right replies; a tenth of it is the percentage, as there
        are 1,000 questions.

    >>> ocrbench_is_right("The sign says STOP.", ["stop"])
    True
    """
    if question_type == HANDWRITTEN_MATHS:
        given = _without_spaces(prediction)
        return any(_without_spaces(answer) in given for answer in answers)
    given = _folded(prediction, harness=harness)
    return any(_folded(answer, harness=harness) in given for answer in answers)


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _folded(text: str, *, harness: Harness) -> str:
    if harness == "lmms_eval":
        text = text.translate(_FULL_WIDTH)
    return text.lower().strip().replace("\n", " ")


def is_same_text(prediction: str, answer: str) -> bool:
    """Whether a reply is the answer, apart from case and white space around it (GQA and OCR-VQA in VLMEvalKit)."""
    return prediction.strip().lower() == answer.strip().lower()
