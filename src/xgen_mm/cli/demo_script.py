"""What the demo asks, and how its answers are judged."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from PIL import Image

_IMAGE_REFERENCE = re.compile(r"\bimage\s+(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One turn of the user.

    Attributes:
        question: What is asked.
        expected: The right answer: a number, or `Image` and a number.
        new_numbers: Numbers on the pictures that arrive with this turn; each names a file of `demo_images`.
    """

    question: str
    expected: str
    new_numbers: tuple[int, ...] = ()


SCRIPT = (
    Step(question="What number is in the image?", expected="407", new_numbers=(407,)),
    Step(question="Which image shows the largest number?", expected="Image 1", new_numbers=(392,)),
    Step(question="What number is in image 3?", expected="86", new_numbers=(86,)),
    Step(question="Which image shows the largest number?", expected="Image 4", new_numbers=(9254,)),
    Step(question="How many digits are in image 2?", expected="3"),
    Step(question="What number is in image 2?", expected="392"),
)


@cache
def load_picture(number: int) -> Image.Image:
    """Packaged picture of a number."""
    with files(__package__).joinpath(f"demo_images/{number}.png").open("rb") as file:
        picture = Image.open(file)
        picture.load()
    return picture


def is_right(text: str, *, expected: str) -> bool:
    """Whether an answer gives the expected value and no other, whatever the words around it.

    >>> is_right("The largest number is in image 2.", expected="Image 2")
    True
    >>> is_right("Image 1 or image 2", expected="Image 2")
    False
    >>> is_right("Image 3 shows 86.", expected="86")
    True
    """
    wanted = _IMAGE_REFERENCE.fullmatch(expected)
    if wanted:
        return set(_IMAGE_REFERENCE.findall(text)) == {wanted[1]}
    return set(re.findall(r"\d+", _IMAGE_REFERENCE.sub("", text))) == {expected}
