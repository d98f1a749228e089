"""Pictures of numbers: sizes, boxes and numbers keep their promises."""

import numpy as np
import pytest

from xgen_mm.tiny.digits import (
    GlyphBank,
    colour,
    draw_picture,
    ink_boxes,
    random_distinct_numbers,
    random_number,
)


@pytest.mark.parametrize("num_digits", [1, 2, 3, 4, 5])
def test_draw_picture_any_number_keeps_sides_heights_and_order(bank: GlyphBank, num_digits: int) -> None:
    rng = np.random.default_rng(num_digits)
    for _ in range(40):
        picture = draw_picture(rng, bank, random_number(rng, num_digits))
        height, width = picture.pixels.shape
        assert 64 <= height <= 224
        assert 64 <= width <= 224
        top, left, bottom, right = picture.boxes.T
        assert ((top >= 0) & (left >= 0) & (bottom <= height) & (right <= width)).all()
        assert len(set(bottom - top)) == 1
        assert 20 <= bottom[0] - top[0] <= 48
        assert top.max() - top.min() <= 4
        gaps = left[1:] - right[:-1]
        assert (gaps >= 1).all()


def test_draw_picture_digit_boxes_hold_all_the_ink(bank: GlyphBank) -> None:
    picture = draw_picture(np.random.default_rng(0), bank, (4, 0, 7))
    outside = np.ones(picture.pixels.shape, dtype=bool)
    for top, left, bottom, right in picture.boxes.astype(int):
        assert len(np.unique(picture.pixels[top:bottom, left:right])) > 2
        outside[top:bottom, left:right] = False
    assert len(np.unique(picture.pixels[outside])) == 1


def test_draw_picture_same_seed_gives_same_pixels(bank: GlyphBank) -> None:
    first, second = (draw_picture(np.random.default_rng(5), bank, (1, 2)) for _ in range(2))
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_colour_both_polarities_occur_with_clear_contrast() -> None:
    rng = np.random.default_rng(0)
    pairs = [colour(rng, np.array([[0, 255]], np.uint8))[0].astype(int) for _ in range(100)]
    assert {bool(paper < ink) for paper, ink in pairs} == {True, False}
    assert min(abs(paper - ink) for paper, ink in pairs) >= 85


def test_random_number_several_digits_has_no_leading_zero() -> None:
    rng = np.random.default_rng(0)
    assert all(random_number(rng, 3)[0] != 0 for _ in range(200))
    assert any(random_number(rng, 1) == (0,) for _ in range(200))


def test_random_distinct_numbers_differ_and_often_share_a_length() -> None:
    rng = np.random.default_rng(0)
    sets = [random_distinct_numbers(rng, 4, length_weights=[0.4, 0.3, 0.3]) for _ in range(300)]
    assert all(len(set(numbers)) == 4 for numbers in sets)
    shared = np.mean([len({len(number) for number in numbers}) == 1 for numbers in sets])
    assert 0.4 < shared < 0.65


def test_ink_boxes_find_the_outermost_pixels() -> None:
    pixels = np.zeros((1, 8, 8), np.uint8)
    pixels[0, 2, 3] = pixels[0, 5, 6] = 100
    assert ink_boxes(pixels, 30).tolist() == [[2, 3, 6, 7]]


def test_glyph_bank_missing_class_raises() -> None:
    with pytest.raises(ValueError, match=r"no example of \[1, 2"):
        GlyphBank(np.full((1, 28, 28), 255, np.uint8), np.array([0]))
