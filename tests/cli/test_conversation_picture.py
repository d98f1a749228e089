"""Drawing of conversations: size, places of bubbles, and unreasonable texts and pictures."""

import numpy as np
import pytest
from PIL import Image

from xgen_mm.cli.conversation_picture import (
    BACKGROUND,
    BAD,
    GOOD,
    MARGIN,
    MAX_LINES,
    MODEL_FILL,
    SCALE,
    THUMBNAIL_BOX,
    USER_FILL,
    WIDTH,
    Turn,
    draw_conversation,
    thumbnail_size,
    wrap_text,
)

RED = (200, 30, 30)


def question(text: str = "What is this?", *images: Image.Image) -> Turn:
    pictures = tuple((f"Image {index}", image) for index, image in enumerate(images, start=1))
    return Turn(is_user=True, speaker="You", text=text, pictures=pictures)


def reply(text: str = "A picture.", is_correct: bool | None = None) -> Turn:
    return Turn(is_user=False, speaker="Model", text=text, is_correct=is_correct)


def draw(*turns: Turn) -> np.ndarray:
    drawing = draw_conversation(turns, title="Title", subtitle="Subtitle", footer=["Footer"])
    assert drawing.mode == "RGB"
    return np.asarray(drawing)


def columns_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.flatnonzero((pixels == colour).all(axis=2).any(axis=0))


def test_draw_conversation_puts_user_right_and_model_left() -> None:
    pixels = draw(question(), reply())
    user, model = columns_of(pixels, USER_FILL), columns_of(pixels, MODEL_FILL)
    assert user.max() > SCALE * (WIDTH - MARGIN) - 4
    assert user.min() > SCALE * WIDTH // 2
    assert model.min() < SCALE * MARGIN + 4
    assert model.max() < SCALE * WIDTH // 2


def test_draw_conversation_keeps_the_margins_empty() -> None:
    pictures = [Image.new("RGB", (400, 300), RED)] * 5
    pixels = draw(question("word " * 500, *pictures), reply("x" * 900, is_correct=False))
    margin = SCALE * MARGIN - 1
    edges = [pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]]
    assert all((edge == BACKGROUND).all() for edge in edges)


def test_draw_conversation_has_fixed_width_and_grows_with_turns() -> None:
    short, long = draw(question(), reply()), draw(*[question(), reply()] * 3)
    assert short.shape[1] == long.shape[1] == SCALE * WIDTH
    assert SCALE * 200 < short.shape[0] < long.shape[0]


def test_draw_conversation_shows_title_and_footer() -> None:
    pixels = draw(question(), reply())
    title, footer = pixels[: SCALE * (MARGIN + 30)], pixels[-SCALE * (MARGIN + 18) :]
    assert (title != BACKGROUND).any()
    assert (footer != BACKGROUND).any()


def test_draw_conversation_shows_each_picture_at_its_thumbnail_size() -> None:
    pixels = draw(question("Both?", Image.new("RGB", (100, 50), RED), Image.new("RGB", (100, 50), RED)), reply())
    height, width = thumbnail_size((50, 100))
    num_red = int((pixels == RED).all(axis=2).sum())
    assert num_red == 2 * height * width * SCALE**2


@pytest.mark.parametrize(("is_correct", "colour"), [(True, GOOD), (False, BAD)], ids=["right", "wrong"])
def test_draw_conversation_marks_judged_answers(is_correct: bool, colour: tuple[int, int, int]) -> None:
    assert len(columns_of(draw(question(), reply(is_correct=is_correct)), colour)) > 10
    assert len(columns_of(draw(question(), reply()), colour)) == 0


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1, 1), id="one-pixel"),
        pytest.param((5000, 1), id="one-pixel-high"),
        pytest.param((1, 5000), id="one-pixel-wide"),
        pytest.param((3000, 3000), id="large"),
    ],
)
def test_draw_conversation_copes_with_picture_of_any_size(size: tuple[int, int]) -> None:
    pixels = draw(question("Hm?", Image.new("RGB", size, RED)), reply())
    assert len(columns_of(pixels, RED)) >= 1
    assert pixels.shape[0] < SCALE * 600


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_draw_conversation_copes_with_picture_modes(mode: str) -> None:
    pixels = draw(question("Hm?", Image.new(mode, (40, 40))), reply())
    assert len(columns_of(pixels, USER_FILL)) > 40


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("w" * 5000, id="one-long-word"),
        pytest.param("word " * 20000, id="very-long-text"),
        pytest.param("line\n" * 300, id="many-lines"),
        pytest.param("caf\u00e9 \u65e5\u672c \U0001f600 \ufffd \x00\x1b[31m", id="unusual-characters"),
    ],
)
def test_draw_conversation_copes_with_any_text(text: str) -> None:
    pixels = draw(question(text), reply(text))
    assert pixels.shape[0] < SCALE * 2 * (MAX_LINES + 5) * 25
    assert len(columns_of(pixels, USER_FILL)) > 20


def test_wrap_text_breaks_at_spaces_and_keeps_line_breaks() -> None:
    assert wrap_text("one two\nthree", size=17, width=400) == ["one two", "three"]
    narrow = wrap_text("one two three", size=17, width=46)
    assert narrow == ["one", "two", "three"]


def test_wrap_text_long_word_loses_no_character() -> None:
    lines = wrap_text("x" + "abcdefghij" * 30, size=17, width=100)
    assert len(lines) > 5
    assert "".join(lines) == "x" + "abcdefghij" * 30


def test_wrap_text_too_long_ends_in_an_ellipsis() -> None:
    lines = wrap_text("word " * 5000, size=17, width=200, max_lines=7)
    assert len(lines) == 7
    assert lines[-1].endswith("…")


def test_wrap_text_replaces_what_the_font_lacks() -> None:
    assert wrap_text("caf\u00e9 \u2013 \x1b3\u00d74", size=17, width=400) == ["cafe - 3x4"]


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (64, 224), (4000, 3000)])
def test_thumbnail_size_stays_in_the_box(size: tuple[int, int]) -> None:
    height, width = thumbnail_size(size)
    assert 1 <= height <= THUMBNAIL_BOX[0]
    assert 1 <= width <= THUMBNAIL_BOX[1]
