"""Pictures of handwritten numbers: digits in one row on plain paper, with the box of every digit."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

MIN_SIDE, MAX_SIDE = 64, 224
MIN_DIGIT_HEIGHT, MAX_DIGIT_HEIGHT = 20, 48
BACKGROUND = 10
# Whoever crops a digit picks an ink threshold and whoever scales it a filter; the model should not care.
INK_THRESHOLDS = (0, 40)
SCALING_FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)
DARKEST_RANGE, LIGHTEST_RANGE = (0, 81), (170, 256)
_EDGE = 3


@dataclass(frozen=True, slots=True)
class DigitPicture:
    """A picture of a number.

    Attributes:
        pixels: Grey levels, uint8 of shape (height, width).
        boxes: Half-open digit boxes (top, left, bottom, right) in pixels, float32 of shape (digits, 4).
        digits: The digits from left to right.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    digits: tuple[int, ...]

    @property
    def number(self) -> str:
        """The number as it is read."""
        return "".join(map(str, self.digits))

    def to_image(self) -> Image.Image:
        """The picture as an RGB image."""
        return Image.fromarray(self.pixels).convert("RGB")


class GlyphBank:
    """Single digits cropped to their ink, grouped by class."""

    def __init__(self, pixels: np.ndarray, classes: np.ndarray) -> None:
        """Find the ink boxes.

        Args:
            pixels: Light ink on black, uint8 of shape (digits, side, side).
            classes: Class of each digit, 0-9, shape (digits,).

        Raises:
            ValueError: If a class has no digit.
        """
        self._pixels = pixels
        self._boxes = [ink_boxes(pixels, threshold) for threshold in INK_THRESHOLDS]
        self._members = [np.flatnonzero(classes == digit) for digit in range(10)]
        absent = [digit for digit, members in enumerate(self._members) if not len(members)]
        if absent:
            raise ValueError(f"`classes` has no example of {absent}; every digit 0-9 needs at least one.")

    def draw(self, rng: np.random.Generator, digit: int) -> Image.Image:
        """A random example of `digit`, cropped to its ink."""
        index = rng.choice(self._members[digit])
        top, left, bottom, right = self._boxes[rng.integers(len(self._boxes))][index]
        return Image.fromarray(np.ascontiguousarray(self._pixels[index, top:bottom, left:right]))


def ink_boxes(pixels: np.ndarray, threshold: int) -> np.ndarray:
    """Half-open boxes (top, left, bottom, right) around values above `threshold`, int of shape (digits, 4)."""
    ink = pixels > threshold
    rows, cols = ink.any(axis=2), ink.any(axis=1)
    height, width = pixels.shape[1:]
    return np.stack(
        [
            rows.argmax(axis=1),
            cols.argmax(axis=1),
            height - rows[:, ::-1].argmax(axis=1),
            width - cols[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    )


def random_number(rng: np.random.Generator, num_digits: int) -> tuple[int, ...]:
    """Uniform digits; a number of several digits does not start with zero."""
    digits = rng.integers(0, 10, num_digits)
    if num_digits > 1:
        digits[0] = rng.integers(1, 10)
    return tuple(int(digit) for digit in digits)


def random_distinct_numbers(
    rng: np.random.Generator, count: int, *, length_weights: list[float]
) -> list[tuple[int, ...]]:
    """Draw `count` numbers that all differ; half of the sets share one digit count.

    Args:
        rng: Source of randomness.
        count: How many numbers.
        length_weights: Probability of 1, 2, ... digits, summing to 1.
    """
    lengths = np.arange(1, len(length_weights) + 1)
    while True:
        if rng.random() < 0.5:
            drawn = np.full(count, rng.choice(lengths, p=length_weights))
        else:
            drawn = rng.choice(lengths, size=count, p=length_weights)
        numbers = [random_number(rng, int(length)) for length in drawn]
        if len(set(numbers)) == count:
            return numbers


def draw_picture(rng: np.random.Generator, bank: GlyphBank, digits: tuple[int, ...]) -> DigitPicture:
    """Write `digits` in one row at a random place of a picture of random size and polarity.

    Every digit is scaled to one common height of 20-48 pixels (less if the row were too wide, but never below 20),
    with gaps of 1/12 to 1/3 of that height and up to 2 pixels of vertical jitter; both sides of the picture are
    64-224 pixels.

    Args:
        rng: Source of randomness.
        bank: Where the digits come from.
        digits: One to five digits.
    """
    glyphs = [bank.draw(rng, digit) for digit in digits]
    height = int(rng.integers(MIN_DIGIT_HEIGHT, MAX_DIGIT_HEIGHT + 1))
    widths, gaps = _fit_row(rng, glyphs, height)
    longest = MAX_SIDE - 2 * _EDGE
    while sum(widths) + sum(gaps) > longest and height > MIN_DIGIT_HEIGHT:
        height = max(MIN_DIGIT_HEIGHT, int(height * (longest - 2) / (sum(widths) + sum(gaps))))
        widths, gaps = _fit_row(rng, glyphs, height)
    row_width = sum(widths) + sum(gaps)
    picture_height = int(rng.integers(max(MIN_SIDE, height + 2 * _EDGE), MAX_SIDE + 1))
    picture_width = int(rng.integers(max(MIN_SIDE, row_width + 2 * _EDGE), MAX_SIDE + 1))
    left = int(rng.integers(_EDGE - 1, picture_width - row_width - 1))
    row_top = int(rng.integers(_EDGE - 1, picture_height - height - 1))

    ink = np.zeros((picture_height, picture_width), np.uint8)
    scaling = SCALING_FILTERS[rng.integers(len(SCALING_FILTERS))]
    boxes = []
    for glyph, width, gap in zip(glyphs, widths, [*gaps, 0], strict=True):
        jitter = int(rng.integers(-2, 3)) if len(digits) > 1 else 0
        top = min(max(row_top + jitter, 0), picture_height - height)
        ink[top : top + height, left : left + width] = np.asarray(glyph.resize((width, height), scaling))
        boxes.append((top, left, top + height, left + width))
        left += width + gap
    return DigitPicture(colour(rng, ink), np.asarray(boxes, np.float32), digits)


def colour(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Turn ink density (0-255) into grey levels with random paper and ink, dark on light or light on dark."""
    paper, full = int(rng.integers(*DARKEST_RANGE)), int(rng.integers(*LIGHTEST_RANGE))
    if rng.random() < 0.5:
        paper, full = full, paper
    levels = paper + (full - paper) * np.arange(256) / 255.0
    return levels.astype(np.uint8)[ink]


def _fit_row(rng: np.random.Generator, glyphs: list[Image.Image], height: int) -> tuple[list[int], list[int]]:
    widths = [max(3, round(glyph.width * height / glyph.height)) for glyph in glyphs]
    widths = [min(width, int(1.5 * height)) for width in widths]
    narrowest, widest = max(1, height // 12), max(3, height // 3)
    return widths, [int(rng.integers(narrowest, widest + 1)) for _ in glyphs[1:]]
