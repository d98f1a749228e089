"""Draw what a model sees of training samples: tiles, padding, and which text is learned. With Pillow alone.

All lengths are in pixels.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from ..anyres import CellBox
from .console import UserError

WIDTH = 1400
MARGIN = 36
GAP = 14
TILE = 112
PICTURE_HEIGHT, PICTURE_WIDTH = 2 * TILE + 4, 260
MAX_TEXT_LINES = 14
MAX_TEXT_CHARACTERS = 6000
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE, SMALL_SIZE = 30, 19, 17, 14

BACKGROUND, PANEL, EDGE = (244, 246, 249), (255, 255, 255), (213, 219, 228)
INK, MUTED = (28, 33, 43), (100, 109, 124)
FILLS = {"learned": (196, 236, 208), "read": (236, 239, 243), "picture": (208, 224, 255)}
MASKED, FILLER = (214, 69, 69), (225, 228, 234)

Kind = Literal["learned", "read", "picture"]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledPicture:
    """One picture and its tiles.

    Attributes:
        original: The picture as it is shown.
        caption: Line below it.
        tiles: Thumbnail first, then the canvas row by row, as pictures of what the model gets.
        grid: `(rows, cols)` of the canvas; `None` if the whole picture is the only tile.
        content: Cells of the canvas that hold the picture; the rest is masked. `None` if nothing is.
        cells_per_tile: Cells along one edge of a tile.
        num_fillers: Empty tiles behind, up to the picture with most tiles.
    """

    original: Image.Image
    caption: str
    tiles: tuple[Image.Image, ...]
    grid: tuple[int, int] | None
    content: CellBox | None
    cells_per_tile: int
    num_fillers: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text and what becomes of it."""

    text: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePanel:
    """One sample: a headline, its pictures and its text."""

    heading: str
    pictures: tuple[TiledPicture, ...]
    segments: tuple[Segment, ...]


def draw_contact_sheet(panels: Sequence[SamplePanel], *, title: str, notes: Sequence[str] = ()) -> Image.Image:
    """Draw samples below one another.

    Args:
        panels: The samples.
        title: Headline.
        notes: Small lines below it.

    Returns:
        RGB picture, `WIDTH` pixels wide and as high as it takes. Long texts are cut.
    """
    heights = [_panel_height(panel) for panel in panels]
    head = MARGIN + 44 + 22 * len(notes) + 34 + GAP
    sheet = Image.new("RGB", (WIDTH, head + sum(heights) + GAP * len(panels) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), _cut(title, TITLE_SIZE, WIDTH - 2 * MARGIN), font=_font(TITLE_SIZE), fill=INK)
    top = MARGIN + 44
    for note in notes:
        pen.text((MARGIN, top), _cut(note, SMALL_SIZE, WIDTH - 2 * MARGIN), font=_font(SMALL_SIZE), fill=MUTED)
        top += 22
    _draw_legend(sheet, top)
    top = head
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(sheet, panel, top=top, height=height)
        top += height + GAP
    return sheet


def _draw_legend(sheet: Image.Image, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    left = MARGIN
    for fill, label in (
        (FILLS["learned"], "learned"),
        (FILLS["read"], "read only"),
        (FILLS["picture"], "image tokens"),
    ):
        pen.rectangle((left, top + 4, left + 18, top + 20), fill=fill, outline=EDGE)
        left = _write_label(pen, label, left=left + 24, top=top)
    for draw_swatch, label in ((_hatch, "padding, masked"), (_cross, "filler tile, dropped")):
        swatch = Image.new("RGB", (18, 17), PANEL)
        draw_swatch(swatch, (0, 0, 18, 17))
        sheet.paste(swatch, (left, top + 4))
        pen.rectangle((left, top + 4, left + 18, top + 20), outline=EDGE)
        left = _write_label(pen, label, left=left + 24, top=top)


def _write_label(pen: ImageDraw.ImageDraw, label: str, *, left: int, top: int) -> int:
    pen.text((left, top + 3), label, font=_font(SMALL_SIZE), fill=INK)
    return left + _text_width(label, SMALL_SIZE) + 26


def _panel_height(panel: SamplePanel) -> int:
    rows = sum(_picture_height(picture) + GAP for picture in panel.pictures)
    return 2 * GAP + 28 + rows + len(_lay_out(panel.segments)) * _line_height() + 4


def _picture_height(picture: TiledPicture) -> int:
    rows = 1 if picture.grid is None else picture.grid[0]
    return max(_shown_size(picture.original)[1], TILE + 24, rows * (TILE + 4)) + 22


def _shown_size(original: Image.Image) -> tuple[int, int]:
    """Width and height at which a picture is shown."""
    factor = min(PICTURE_HEIGHT / original.height, PICTURE_WIDTH / original.width)
    return max(1, round(original.width * factor)), max(1, round(original.height * factor))


def _draw_panel(sheet: Image.Image, panel: SamplePanel, *, top: int, height: int) -> None:
    pen = ImageDraw.Draw(sheet)
    box = (MARGIN, top, WIDTH - MARGIN, top + height)
    pen.rounded_rectangle(box, radius=10, fill=PANEL, outline=EDGE)
    left, inner = MARGIN + GAP, WIDTH - 2 * MARGIN - 2 * GAP
    pen.text((left, top + GAP), _cut(panel.heading, HEADING_SIZE, inner), font=_font(HEADING_SIZE), fill=INK)
    top += GAP + 28
    for picture in panel.pictures:
        _draw_picture(sheet, picture, top=top, left=left)
        top += _picture_height(picture) + GAP
    for line in _lay_out(panel.segments):
        x = left
        for segment in line:
            width = _text_width(segment.text, TEXT_SIZE)
            pen.rectangle((x, top + 1, x + width, top + _line_height() - 3), fill=FILLS[segment.kind])
            pen.text((x, top + 1), segment.text, font=_font(TEXT_SIZE), fill=INK)
            x += width
        top += _line_height()


def _draw_picture(sheet: Image.Image, picture: TiledPicture, *, top: int, left: int) -> None:
    pen = ImageDraw.Draw(sheet)
    original, size = picture.original, _shown_size(picture.original)
    sheet.paste(original.convert("RGB").resize(size, _filter(size[0] / original.width)), (left, top))
    pen.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=EDGE)
    bottom = top + _picture_height(picture) - 20
    pen.text((left, bottom), _cut(picture.caption, SMALL_SIZE, 600), font=_font(SMALL_SIZE), fill=MUTED)
    left += PICTURE_WIDTH + 2 * GAP
    _paste_tile(sheet, picture.tiles[0], top=top, left=left)
    pen.text((left, top + TILE + 4), "thumbnail" if picture.grid else "only tile", font=_font(SMALL_SIZE), fill=MUTED)
    left += TILE + 2 * GAP
    if picture.grid is not None:
        cols = picture.grid[1]
        for index, tile in enumerate(picture.tiles[1:]):
            row, col = divmod(index, cols)
            shown = tile.convert("RGB").resize((TILE, TILE), _filter(TILE / tile.width))
            _hatch_padding(shown, picture, row=row, col=col)
            _paste_tile(sheet, shown, top=top + row * (TILE + 4), left=left + col * (TILE + 4))
        left += cols * (TILE + 4) + GAP
    for _ in range(picture.num_fillers):
        filler = Image.new("RGB", (TILE // 2, TILE // 2), FILLER)
        _cross(filler, (0, 0, *filler.size))
        sheet.paste(filler, (left, top))
        left += TILE // 2 + 4


def _hatch_padding(tile: Image.Image, picture: TiledPicture, *, row: int, col: int) -> None:
    box, cells = picture.content, picture.cells_per_tile
    if box is None:
        return
    edges = [
        min(max(round((edge - start * cells) * TILE / cells), 0), TILE)
        for edge, start in ((box.top, row), (box.bottom, row), (box.left, col), (box.right, col))
    ]
    top, bottom, left, right = edges
    areas = ((0, 0, TILE, top), (0, bottom, TILE, TILE), (0, top, left, bottom), (right, top, TILE, bottom))
    for area in areas:
        if area[0] < area[2] and area[1] < area[3]:
            _hatch(tile, area)


def _hatch(image: Image.Image, area: tuple[int, int, int, int]) -> None:
    """Slanted lines over an area `(left, top, right, bottom)`."""
    width, height = area[2] - area[0], area[3] - area[1]
    piece = image.crop(area)
    pen = ImageDraw.Draw(piece)
    for offset in range(-height, width, 7):
        pen.line((offset, height, offset + height, 0), fill=MASKED, width=1)
    image.paste(piece, area[:2])


def _cross(image: Image.Image, area: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = area
    pen = ImageDraw.Draw(image)
    pen.line((left, top, right, bottom), fill=MUTED, width=1)
    pen.line((left, bottom, right, top), fill=MUTED, width=1)


def _paste_tile(sheet: Image.Image, tile: Image.Image, *, top: int, left: int) -> None:
    shown = tile.convert("RGB")
    if shown.size != (TILE, TILE):
        shown = shown.resize((TILE, TILE), _filter(TILE / shown.width))
    sheet.paste(shown, (left, top))
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=EDGE)


def _filter(factor: float) -> Image.Resampling:
    return Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS


def _lay_out(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Lines of segments that fit beside one another; broken anywhere, because spaces are tokens like others."""
    width = WIDTH - 2 * MARGIN - 2 * GAP
    lines: list[list[Segment]] = [[]]
    used = num_characters = 0
    for segment in segments:
        text = _to_printable(segment.text[: MAX_TEXT_CHARACTERS + 1])
        while text:
            count = _fitting_characters(text, width - used)
            if count == 0 and lines[-1]:
                lines.append([])
                used = 0
                continue
            piece, text = text[: max(count, 1)], text[max(count, 1) :]
            lines[-1].append(Segment(piece, segment.kind))
            used += _text_width(piece, TEXT_SIZE)
            num_characters += len(piece)
            if len(lines) > MAX_TEXT_LINES or num_characters > MAX_TEXT_CHARACTERS:
                return [*lines[:MAX_TEXT_LINES], [Segment("... and more", "read")]]
    return lines if lines[-1] else lines[:-1]


def _fitting_characters(text: str, width: int) -> int:
    low, high = 0, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        if _text_width(text[:middle], TEXT_SIZE) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _to_printable(text: str) -> str:
    """Text on one line; the bundled font has no accents, so they are dropped."""
    plain = unicodedata.normalize("NFKD", text).replace("\n", "\\n").replace("\t", "\\t")
    shown = (character if character.isprintable() else "?" for character in plain)
    return "".join(character for character in shown if not unicodedata.combining(character))


def _cut(text: str, size: int, width: int) -> str:
    shown = _to_printable(text[:500])
    while _text_width(shown, size) > width and len(shown) > 4:
        shown = f"{shown[: int(len(shown) * 0.9) - 3]}..."
    return shown


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow cannot draw scalable fonts; install a Pillow with FreeType, as from PyPI.")
    return font


@lru_cache(maxsize=1)
def _line_height() -> int:
    ascent, descent = _font(TEXT_SIZE).getmetrics()
    return int(ascent + descent) + 6


def _text_width(text: str, size: int) -> int:
    return int(-(-_font(size).getlength(text) // 1))
