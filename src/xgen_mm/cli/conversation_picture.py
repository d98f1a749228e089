"""Draw a conversation about pictures as chat bubbles, with Pillow alone.

All lengths are in points; the picture has `SCALE` pixels per point, so that it stays sharp on dense screens.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from .console import UserError

SCALE = 2
WIDTH = 660
MARGIN = 32
BUBBLE_WIDTH = 430
PADDING = 14
GAP = 12
ANSWER_GAP, QUESTION_GAP = 10, 22
SECTION_GAP = 18
THUMBNAIL_BOX = (112, 208)  # height, width
CAPTION_GAP = 4
MAX_ENLARGEMENT = 1.5
RADIUS = 16
MAX_LINES = 40
MAX_CHARACTERS = 6000

BACKGROUND = (244, 246, 249)
INK, MUTED, RULE = (28, 33, 43), (108, 117, 132), (218, 223, 231)
USER_FILL, USER_EDGE = (217, 231, 255), (190, 212, 250)
MODEL_FILL, MODEL_EDGE = (255, 255, 255), (218, 223, 231)
GOOD, BAD = (26, 142, 84), (203, 52, 52)

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 26, 17, 13
# The bundled font has no dashes of these kinds; accents are dropped for the same reason.
_REPLACEMENTS = str.maketrans(
    {"\t": "    ", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "x", "\u2022": "\u00b7"}
)
_SUPERSAMPLING = 4

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One bubble.

    Attributes:
        is_user: Whether the bubble stands on the right.
        speaker: Name above the bubble; empty for none.
        text: What was said.
        pictures: Caption and picture of each image, shown before the text.
        is_correct: Adds a check mark or a cross after the bubble; `None` adds nothing.
        remark: Small text after the mark.
    """

    is_user: bool
    speaker: str
    text: str
    pictures: tuple[tuple[str, Image.Image], ...] = ()
    is_correct: bool | None = None
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Measured turn; `rows` holds thumbnails with captions, line by line."""

    turn: Turn
    lines: list[str]
    rows: list[list[tuple[str, Image.Image]]]
    height: int
    width: int

    @property
    def label_height(self) -> int:
        """Room for the speaker's name above the bubble."""
        return _line_height(SMALL_SIZE) + 3 if self.turn.speaker else 0

    @property
    def total_height(self) -> int:
        """Label, bubble and the gap to what follows."""
        return self.label_height + self.height + (ANSWER_GAP if self.turn.is_user else QUESTION_GAP)


def draw_conversation(
    turns: Sequence[Turn], *, title: str, subtitle: str = "", footer: Sequence[str] = ()
) -> Image.Image:
    """Draw a whole conversation.

    Args:
        turns: Bubbles from top to bottom.
        title: Headline.
        subtitle: Smaller line below it.
        footer: Small lines at the bottom: who answered, where the pictures come from.

    Returns:
        RGB picture, `SCALE * WIDTH` pixels wide and as high as it takes. Texts of more than `MAX_LINES` lines are cut.
    """
    layouts = [_lay_out(turn) for turn in turns]
    heading = _header_lines(title, subtitle)
    footer_lines = [line for text in footer for line in wrap_text(text, size=SMALL_SIZE, width=WIDTH - 2 * MARGIN)]
    header_height = sum(_line_height(size) for _, size, _ in heading) + 2 * SECTION_GAP
    body_height = sum(layout.total_height for layout in layouts)
    footer_height = SECTION_GAP + len(footer_lines) * _line_height(SMALL_SIZE)

    canvas = _Canvas(MARGIN + header_height + body_height + footer_height + MARGIN)
    top = MARGIN
    for text, size, colour in heading:
        canvas.write(text, top=top, left=MARGIN, size=size, colour=colour)
        top += _line_height(size)
    canvas.rule(top + SECTION_GAP)
    top += 2 * SECTION_GAP
    for layout in layouts:
        _draw_turn(canvas, layout, top)
        top += layout.total_height
    canvas.rule(top)
    top += SECTION_GAP
    for line in footer_lines:
        canvas.write(line, top=top, left=MARGIN, size=SMALL_SIZE, colour=MUTED)
        top += _line_height(SMALL_SIZE)
    return canvas.image


def wrap_text(text: str, *, size: int, width: int, max_lines: int = MAX_LINES) -> list[str]:
    """Break text into lines.

    Args:
        text: Any text; line breaks are kept, words wider than a line are broken.
        size: Font size in points.
        width: Widest line in points.
        max_lines: Longest result; the last line of cut text ends in an ellipsis.

    Returns:
        At least one line.
    """
    is_cut = len(text) > MAX_CHARACTERS
    lines: list[str] = []
    for paragraph in _to_printable(text[:MAX_CHARACTERS]).split("\n"):
        lines.extend(_wrap_paragraph(paragraph, size=size, width=width))
    if is_cut or len(lines) > max_lines:
        lines = lines[:max_lines]
        lines[-1] = lines[-1][: max(0, len(lines[-1]) - 2)].rstrip() + "…"
    return lines


def thumbnail_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Size in points at which a picture of `(height, width)` pixels is shown: in `THUMBNAIL_BOX`, never below 1."""
    height, width = image_size
    factor = min(THUMBNAIL_BOX[0] / height, THUMBNAIL_BOX[1] / width, MAX_ENLARGEMENT)
    return max(1, round(height * factor)), max(1, round(width * factor))


class _Canvas:
    """The picture under construction; takes points, draws pixels."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (SCALE * WIDTH, SCALE * height), BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def write(self, text: str, *, top: float, left: float, size: int, colour: Colour) -> None:
        self._draw.text((SCALE * left, SCALE * top), text, font=_font(size), fill=colour)

    def rule(self, top: int) -> None:
        line = (SCALE * MARGIN, SCALE * top, SCALE * (WIDTH - MARGIN) - 1, SCALE * top + 1)
        self._draw.rectangle(line, fill=RULE)

    def box(self, *, top: int, left: int, height: int, width: int, fill: Colour, edge: Colour) -> None:
        """Rounded box with a one-pixel edge."""
        for inset, colour in ((0, edge), (1, fill)):
            size = (SCALE * width - 2 * inset, SCALE * height - 2 * inset)
            place = (SCALE * left + inset, SCALE * top + inset)
            self.image.paste(colour, place, _rounded_mask(size, SCALE * RADIUS - inset))

    def picture(self, image: Image.Image, *, top: int, left: int) -> None:
        """Thumbnail with a thin frame around it."""
        height, width = thumbnail_size((image.height, image.width))
        scaled = image.convert("RGB").resize((SCALE * width, SCALE * height), Image.Resampling.LANCZOS)
        x, y = SCALE * left, SCALE * top
        self._draw.rectangle((x - 1, y - 1, x + scaled.width, y + scaled.height), fill=USER_EDGE)
        self.image.paste(scaled, (x, y))

    def mark(self, *, is_correct: bool, top: int, left: int, size: int) -> None:
        """Disc with a check mark or a cross."""
        side = SCALE * size * _SUPERSAMPLING
        disc = Image.new("RGB", (side, side), GOOD if is_correct else BAD)
        strokes = ((0.27, 0.53), (0.44, 0.69), (0.74, 0.34)) if is_correct else ((0.32, 0.32), (0.68, 0.68))
        pen = ImageDraw.Draw(disc)
        for points in (strokes,) if is_correct else (strokes, tuple((x, 1 - y) for x, y in strokes)):
            pen.line([(side * x, side * y) for x, y in points], fill="white", width=side // 9, joint="curve")
        target = (SCALE * size, SCALE * size)
        mask = _rounded_mask(target, SCALE * size // 2)
        self.image.paste(disc.resize(target, Image.Resampling.LANCZOS), (SCALE * left, SCALE * top), mask)


def _draw_turn(canvas: _Canvas, layout: _Layout, top: int) -> None:
    turn = layout.turn
    left = WIDTH - MARGIN - layout.width if turn.is_user else MARGIN
    label_left = WIDTH - MARGIN - _text_width(turn.speaker, SMALL_SIZE) if turn.is_user else MARGIN
    canvas.write(turn.speaker, top=top, left=label_left, size=SMALL_SIZE, colour=MUTED)
    top += layout.label_height
    fill, edge = (USER_FILL, USER_EDGE) if turn.is_user else (MODEL_FILL, MODEL_EDGE)
    canvas.box(top=top, left=left, height=layout.height, width=layout.width, fill=fill, edge=edge)
    if turn.is_correct is not None:
        size = _line_height(TEXT_SIZE)
        middle = top + (layout.height - size) // 2
        canvas.mark(is_correct=turn.is_correct, top=middle, left=left + layout.width + GAP, size=size)
        remark_left = left + layout.width + 2 * GAP + size
        remark_top = middle + (size - _line_height(SMALL_SIZE)) / 2
        canvas.write(turn.remark, top=remark_top, left=remark_left, size=SMALL_SIZE, colour=MUTED)
    top += PADDING
    for row in layout.rows:
        x = left + PADDING
        row_height = max(thumbnail_size((image.height, image.width))[0] for _, image in row)
        for caption, image in row:
            height, width = thumbnail_size((image.height, image.width))
            canvas.picture(image, top=top + row_height - height, left=x)
            canvas.write(caption, top=top + row_height + CAPTION_GAP, left=x, size=SMALL_SIZE, colour=MUTED)
            x += max(width, _text_width(caption, SMALL_SIZE)) + GAP
        top += row_height + CAPTION_GAP + _line_height(SMALL_SIZE) + GAP
    for line in layout.lines:
        canvas.write(line, top=top, left=left + PADDING, size=TEXT_SIZE, colour=INK)
        top += _line_height(TEXT_SIZE)


def _lay_out(turn: Turn) -> _Layout:
    inner = BUBBLE_WIDTH - 2 * PADDING
    lines = wrap_text(turn.text, size=TEXT_SIZE, width=inner)
    rows = list(_fill_rows([(_cut(caption, inner), image) for caption, image in turn.pictures], inner))
    height, width = len(lines) * _line_height(TEXT_SIZE), max(_text_width(line, TEXT_SIZE) for line in lines)
    for row in rows:
        height += max(thumbnail_size((image.height, image.width))[0] for _, image in row)
        height += CAPTION_GAP + _line_height(SMALL_SIZE) + GAP
        width = max(width, sum(_cell_width(*cell) for cell in row) + GAP * (len(row) - 1))
    return _Layout(turn=turn, lines=lines, rows=rows, height=height + 2 * PADDING, width=width + 2 * PADDING)


def _fill_rows(pictures: Sequence[tuple[str, Image.Image]], width: int) -> Iterator[list[tuple[str, Image.Image]]]:
    row: list[tuple[str, Image.Image]] = []
    used = 0
    for cell in pictures:
        if row and used + _cell_width(*cell) > width:
            yield row
            row, used = [], 0
        row.append(cell)
        used += _cell_width(*cell) + GAP
    if row:
        yield row


def _cut(caption: str, width: int) -> str:
    return wrap_text(caption, size=SMALL_SIZE, width=width, max_lines=1)[0]


def _cell_width(caption: str, image: Image.Image) -> int:
    return max(thumbnail_size((image.height, image.width))[1], _text_width(caption, SMALL_SIZE))


def _wrap_paragraph(paragraph: str, *, size: int, width: int) -> Iterator[str]:
    line = ""
    for word in paragraph.split(" "):
        longer = f"{line} {word}" if line else word
        if _text_width(longer, size) <= width:
            line = longer
            continue
        if line:
            yield line
        *full, line = _break_word(word, size=size, width=width)
        yield from full
    yield line


def _break_word(word: str, *, size: int, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and _text_width(pieces[-1] + character, size) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _header_lines(title: str, subtitle: str) -> list[tuple[str, int, Colour]]:
    width = WIDTH - 2 * MARGIN
    lines = [(line, TITLE_SIZE, INK) for line in wrap_text(title, size=TITLE_SIZE, width=width)]
    if subtitle:
        lines += [(line, SMALL_SIZE + 1, MUTED) for line in wrap_text(subtitle, size=SMALL_SIZE + 1, width=width)]
    return lines


def _to_printable(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_REPLACEMENTS))
    return "".join(
        character
        for character in decomposed.replace("...", "…")
        if character == "\n" or (character.isprintable() and not unicodedata.combining(character))
    )


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=SCALE * size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow cannot draw scalable fonts; install a Pillow with FreeType, as from PyPI.")
    return font


@lru_cache(maxsize=8)
def _line_height(size: int) -> int:
    ascent, descent = _font(size).getmetrics()
    return int(-(-(ascent + descent) // SCALE)) + 2


def _text_width(text: str, size: int) -> int:
    return int(-(-_font(size).getlength(text) // SCALE))


def _rounded_mask(size: tuple[int, int], radius: int) -> Image.Image:
    """Smooth mask of a rounded box; `size` is Pillow's (width, height), both at least `2 * radius`."""
    disc = _smooth_disc(radius)
    mask = Image.new("L", size, 255)
    for x, disc_x in ((0, 0), (size[0] - radius, radius)):
        for y, disc_y in ((0, 0), (size[1] - radius, radius)):
            mask.paste(disc.crop((disc_x, disc_y, disc_x + radius, disc_y + radius)), (x, y))
    return mask


@lru_cache(maxsize=8)
def _smooth_disc(radius: int) -> Image.Image:
    side = 2 * radius * _SUPERSAMPLING
    disc = Image.new("L", (side, side), 0)
    ImageDraw.Draw(disc).ellipse((0, 0, side - 1, side - 1), fill=255)
    return disc.resize((2 * radius, 2 * radius), Image.Resampling.BOX)
