"""What the demo asks: the packaged pictures, the known answers, and how replies are judged."""

import pytest

from xgen_mm.cli.demo_pictures import PICTURES
from xgen_mm.cli.demo_script import SCRIPT, is_right, load_picture


def numbers_seen_by(step_index: int) -> list[int]:
    return [number for step in SCRIPT[: step_index + 1] for number in step.new_numbers]


def test_script_expected_largest_picture_is_the_largest_so_far() -> None:
    comparisons = [(index, step) for index, step in enumerate(SCRIPT) if "largest" in step.question]
    assert len(comparisons) == 2
    for index, step in comparisons:
        seen = numbers_seen_by(index)
        assert step.expected == f"Image {seen.index(max(seen)) + 1}"


def test_script_expected_numbers_are_those_on_the_pictures() -> None:
    seen = numbers_seen_by(len(SCRIPT))
    by_question = {step.question: step.expected for step in SCRIPT}
    assert by_question["What number is in the image?"] == str(seen[0])
    assert by_question["What number is in image 3?"] == str(seen[2])
    assert by_question["What number is in image 2?"] == str(seen[1])
    assert by_question["How many digits are in image 2?"] == str(len(str(seen[1])))


def test_script_shows_every_packaged_picture_in_different_turns() -> None:
    assert numbers_seen_by(len(SCRIPT)) == [number for number, _ in PICTURES]
    assert sum(bool(step.new_numbers) for step in SCRIPT) >= 3


@pytest.mark.parametrize("number", [number for number, _ in PICTURES])
def test_packaged_picture_is_a_grey_picture_of_trained_size(number: int) -> None:
    picture = load_picture(number)
    assert picture.mode == "L"
    assert all(64 <= side <= 224 for side in picture.size)
    darkest, lightest = picture.getextrema()
    assert lightest - darkest > 80


@pytest.mark.parametrize(
    ("text", "expected", "verdict"),
    [
        pytest.param("407", "407", True, id="exact"),
        pytest.param("The number is 407.", "407", True, id="sentence"),
        pytest.param("Image 2 shows 407.", "407", True, id="names-the-image-too"),
        pytest.param("4071", "407", False, id="longer-number"),
        pytest.param("407 or 401", "407", False, id="two-numbers"),
        pytest.param("", "407", False, id="nothing"),
        pytest.param("image 4", "Image 4", True, id="lower-case"),
        pytest.param("4", "Image 4", False, id="bare-digit"),
        pytest.param("Image 14", "Image 4", False, id="other-image"),
        pytest.param("Image 1 or Image 4", "Image 4", False, id="two-images"),
    ],
)
def test_is_right_accepts_only_the_expected_value(text: str, expected: str, verdict: bool) -> None:
    assert is_right(text, expected=expected) is verdict
