"""Rows that cannot be used: every kind is refused with its reason, its key, its field and what was expected."""

import ast
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xgen_mm.data.errors import ReadReport, check_policy
from xgen_mm.data.reading import RecordSource, RowReader
from xgen_mm.data.sources import Selection, read_rows
from xgen_mm.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
NAN = float("nan")
RED = "pictures/red.png"
URL = "https://example.com/red.png"


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def png(height: int = 4, width: int = 4) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def tiff(frames: int) -> bytes:
    stream = BytesIO()
    pages = [Image.new("RGB", (4, 4), (10 * index, 0, 0)) for index in range(frames)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    return stream.getvalue()


def answer(text: str, *ratings: Any) -> dict[str, Any]:
    axes = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    return {
        "model": "m",
        "response": text,
        "annotations": {a: {"Rating": r} for a, r in zip(axes, ratings, strict=True)},
    }


def feedback(*completions: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "f", "prompt": "Q?", "img_path": RED, "completions": list(completions), **fields}


def ocr(captions: Any, **fields: Any) -> dict[str, Any]:
    text = captions if isinstance(captions, str) else json.dumps(captions)
    return {"uid": "o", "url": URL, "captions": text, **fields}


LLAVA = {"id": "x", "image": RED, "conversations": said("<image>\nQ?", "A.")}
GOOD, BAD = answer("good", "5", "5", "5"), answer("bad", "1", "1", "1")
MESSAGES = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
PAIR = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
BROKEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "missing-field": ("llava_json", {"id": "x"}, "missing field", "`conversations`: no such field; the row has id"),
    "null-field": ("llava_json", LLAVA | {"conversations": None}, "missing field", "it is null"),
    "image-gone": ("llava_json", LLAVA | {"image": "gone.png"}, "missing image", "there is no file 'gone.png'"),
    "image-null": ("blip3_kale", {"caption": "A.", "url": None}, "missing field", "expected one of image, jpg, url"),
    "image-nan": ("image_text_pairs", {"caption": "A.", "url": NAN}, "missing field", "expected one of image"),
    "image-no-bytes": (
        "messages",
        {"messages": MESSAGES, "images": [{"bytes": None, "path": None}]},
        "missing image",
        r"images\[0\]`: expected a picture, found nothing",
    ),
    "image-not-a-picture": (
        "llava_json",
        LLAVA | {"image": "llava.json"},
        "unreadable image",
        "not a picture in a format",
    ),
    "image-bytes-damaged": (
        "messages",
        {"messages": MESSAGES, "images": [b"\x89PNG\r\n"]},
        "unreadable image",
        "not a picture",
    ),
    "image-bytes-empty": (
        "messages",
        {"messages": MESSAGES, "images": [{"bytes": b""}]},
        "missing image",
        "found nothing",
    ),
    "image-number": ("llava_json", LLAVA | {"image": 7}, "wrong type", r"expected a picture, found a `int` \(7\)"),
    "image-data-uri": (
        "llava_json",
        LLAVA | {"image": "data:image/png;base64,AAAA"},
        "unreadable image",
        "not a picture",
    ),
    "path-up": ("llava_json", LLAVA | {"image": "../../secret.png"}, "unsafe path", "leads out of"),
    "path-up-and-back": ("llava_json", LLAVA | {"image": f"a/../../fixtures/{RED}"}, "unsafe path", "leads out of"),
    "path-absolute": ("llava_json", LLAVA | {"image": "/etc/passwd"}, "unsafe path", "expected a name below it"),
    "path-backslash": ("llava_json", LLAVA | {"image": "..\\secret.png"}, "unsafe path", "leads out of"),
    "path-drive": ("llava_json", LLAVA | {"image": "C:\\secret.png"}, "unsafe path", "leads out of"),
    "path-null-character": ("llava_json", LLAVA | {"image": "a\0.png"}, "unsafe path", "null character"),
    "too-few-images": (
        "llava_json",
        LLAVA | {"conversations": said("<image> <image>", "A.")},
        "more <image> than images",
        "2 `<image>` for 1 images",
    ),
    "too-many-images": (
        "llava_json",
        LLAVA | {"conversations": said("Q?", "A.")},
        "more images than <image>",
        "0 `<image>` for 1 images",
    ),
    "placeholder-without-image": (
        "llava_json",
        {"id": "x", "conversations": said("<image>\nQ?", "A.")},
        "more <image> than images",
        "1 `<image>` for 0 images",
    ),
    "empty-question": (
        "llava_json",
        LLAVA | {"conversations": said(" \n", "A.")},
        "empty text",
        r"conversations\[0\]",
    ),
    "role-unknown": (
        "llava_json",
        LLAVA | {"conversations": [{"from": "tool", "value": "x"}]},
        "unknown role",
        "expected one of human, user, gpt.*'tool'",
    ),
    "answer-first": (
        "llava_json",
        {"id": "x", "conversations": [{"from": "gpt", "value": "A."}]},
        "wrong turn order",
        "expected a user's turn and an answer",
    ),
    "no-answer": ("llava_json", {"id": "x", "conversations": said("Q?")}, "wrong turn order", "and an answer"),
    "no-turns": ("llava_json", {"id": "x", "conversations": []}, "wrong turn order", "and an answer"),
    "role-twice": (
        "llava_json",
        {"id": "x", "conversations": [*said("Q?", "A."), {"from": "gpt", "value": "B."}]},
        "wrong turn order",
        "the same role twice",
    ),
    "system-late": (
        "llava_json",
        {"id": "x", "conversations": [*said("Q?", "A."), {"from": "system", "value": "S"}]},
        "wrong turn order",
        "expected it first",
    ),
    "conversation-is-text": ("llava_json", LLAVA | {"conversations": "Q?"}, "wrong nesting", "expected a list"),
    "turn-is-text": ("llava_json", LLAVA | {"conversations": ["Q?"]}, "wrong nesting", "expected an object"),
    "turn-is-number": (
        "llava_json",
        {"id": "x", "conversations": [{"from": "human", "value": 3}]},
        "wrong type",
        "expected a text, found a `int`",
    ),
    "half-a-character": (
        "llava_json",
        {"id": "x", "conversations": said("Q\ud800?", "A.")},
        "wrong type",
        "in Unicode",
    ),
    "lists-of-unequal-length": (
        "obelics",
        {"texts": ["a"], "images": []},
        "wrong nesting",
        "0 entries beside 1 in `texts`",
    ),
    "text-and-image-at-once": ("obelics", {"texts": ["a"], "images": [URL]}, "wrong nesting", "at the same place"),
    "document-without-text": ("obelics", {"texts": [None], "images": [URL]}, "empty text", "at least one text"),
    "document-with-a-number": ("mint1t_html", {"texts": [3], "images": [None]}, "wrong type", r"texts\[0\]"),
    "metadata-damaged": (
        "obelics",
        {"texts": ["a"], "images": [None], "general_metadata": "{"},
        "wrong JSON",
        "`general_metadata`: expected a JSON document",
    ),
    "captions-damaged": ("blip3_ocr_200m", ocr("[{"), "wrong JSON", "`captions`: expected a JSON document"),
    "captions-an-object": ("blip3_ocr_200m", ocr({"text": "a"}), "wrong nesting", "expected a list"),
    "granularity-missing": (
        "blip3_ocr_200m",
        ocr([{"text": "a", "granularity": 5, "include_datacomp_raw_cap": False}]),
        "missing granularity",
        "no caption of granularity 0 without the raw caption",
    ),
    "only-filler": (
        "blip3_ocr_200m",
        ocr([{"text": "the text ", "granularity": 0, "include_datacomp_raw_cap": False}]),
        "empty text",
        r"captions\[0\].text",
    ),
    "literal-runs-code": (
        "blip3_grounding_50m",
        ocr("__import__('os').getcwd()"),
        "wrong JSON",
        "expected a Python literal",
    ),
    "literal-nested-deeply": ("blip3_grounding_50m", ocr("[" * 5000), "wrong JSON", "expected a Python literal"),
    "literal-signs": ("blip3_grounding_50m", ocr("-" * 100_000 + "1"), "wrong JSON", "expected a Python literal"),
    "json-nested-deeply": ("blip3_ocr_200m", ocr("[" * 100_000), "wrong JSON", "expected a JSON document"),
    "literal-too-large": ("blip3_grounding_50m", ocr(" " * 1_000_001), "too large", "expected at most 1000000"),
    "json-too-large": ("blip3_ocr_200m", ocr(" " * 8_000_001), "too large", "expected at most 8000000"),
    "triple-too-short": ("blip3_grounding_50m", ocr('[["a", 0]]'), "wrong nesting", "found 2 entries"),
    "box-format-missing": ("blip3_grounding_50m", ocr('[["a", 2, False]]'), "missing granularity", "`position`"),
    "caption-empty": ("datacomp", {"url": URL, "text": ""}, "empty text", "found an empty one"),
    "caption-not-utf-8": ("cc3m", {"url": URL, "txt": b"\xff"}, "wrong type", "expected UTF-8 text"),
    "frames-missing": (
        "mint1t_pdf",
        {"json": b'{"texts": ["a", null, null], "images": [null, "0", "1"]}', "tiff": tiff(1)},
        "more <image> than images",
        "1 frames for 2 references",
    ),
    "frames-left-over": (
        "mint1t_pdf",
        {"json": b'{"texts": ["a", null], "images": [null, "0"]}', "tiff": tiff(2)},
        "more images than <image>",
        "2 frames for 1 references",
    ),
    "frames-damaged": (
        "mint1t_pdf",
        {"json": b'{"texts": ["a", null], "images": [null, "0"]}', "tiff": tiff(1)[:20]},
        "unreadable image",
        "expected a TIFF that can be read",
    ),
    "frames-of-another-format": (
        "mint1t_pdf",
        {"json": b'{"texts": ["a", null], "images": [null, "0"]}', "tiff": png()},
        "unreadable image",
        "expected a TIFF",
    ),
    "member-damaged": ("mint1t_pdf", {"json": b"{", "tiff": tiff(1)}, "wrong JSON", "`json`: expected a JSON"),
    "member-unknown": (
        "mint1t_arxiv",
        {"json": b'{"texts": ["a", null], "images": [null, "b.png"]}', "a.png": png()},
        "missing image",
        "'b.png' is no member; there are a.png",
    ),
    "captions-instead-of-texts": ("mint1t_arxiv", {"json": b'{"captions": []}'}, "wrong nesting", "`json.texts`"),
    "pages-missing": ("ocr_idl", {"json": b"{}", "tif": tiff(1)}, "wrong nesting", "`json.pages`"),
    "pages-without-text": (
        "ocr_idl",
        {"json": b'{"pages": [{"text": []}]}', "tif": tiff(1)},
        "empty text",
        "some page",
    ),
    "rating-not-available": (
        "vlfeedback",
        feedback(GOOD, answer("x", "N/A", "5", "5")),
        "no rating",
        "1 of 2 answers have all ratings; expected 2",
    ),
    "rating-not-a-number": ("vlfeedback", feedback(GOOD, answer("x", NAN, 5, 5)), "no rating", "1 of 2"),
    "rating-out-of-range": ("vlfeedback", feedback(GOOD, answer("x", "9", "5", "5")), "no rating", "1 of 2"),
    "rating-null": ("vlfeedback", feedback(GOOD, answer("x", None, "5", "5")), "no rating", "1 of 2"),
    "rating-tied": ("vlfeedback", feedback(GOOD, answer("x", "5", "5", "5")), "no preference", "differ by 0.00 only"),
    "axis-unknown": (
        "vlfeedback",
        feedback(GOOD, {"response": "x", "annotations": {"Beauty": {"Rating": "5"}}}),
        "missing field",
        "expected the axes Helpfulness, Visual Faithfulness",
    ),
    "columns-of-unequal-length": (
        "vlfeedback",
        feedback() | {"completions": {"response": ["a"], "annotations": []}},
        "wrong nesting",
        "expected lists of one length",
    ),
    "feedback-without-image": ("vlfeedback", feedback(GOOD, BAD, img_path=None), "missing image", "`img_path`"),
    "same-answers": ("trl_preference", PAIR | {"rejected": "A."}, "no preference", "the same answer"),
    "answer-is-a-dialogue": ("trl_preference", PAIR | {"chosen": MESSAGES}, "wrong turn order", "expected one answer"),
    "prompts-differ": (
        "trl_preference",
        {"chosen": MESSAGES, "rejected": [{"role": "user", "content": "R?"}, MESSAGES[1]]},
        "wrong nesting",
        "another conversation than in `chosen`",
    ),
    "part-unknown": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        "wrong type",
        "expected a part of type `text` or `image`, found 'audio'",
    ),
    "part-without-picture": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]], "images": []},
        "more <image> than images",
        "`images` has only 0",
    ),
    "picture-without-part": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]], "images": [RED, RED]},
        "more images than <image>",
        "1 `<image>` for 2 images",
    ),
    "content-empty": ("messages", {"messages": [{"role": "user", "content": []}]}, "empty text", "expected parts"),
    "safety-flag-missing": ("vlguard", {"id": "g", "image": RED}, "missing field", "`safe`"),
    "safety-flag-text": ("vlguard", {"id": "g", "image": RED, "safe": "yes"}, "wrong type", "expected true or false"),
    "safe-without-unsafe": (
        "vlguard",
        {"id": "g", "image": RED, "safe": True, "instr-resp": [{"safe_instruction": "Q?", "response": "A."}]},
        "wrong nesting",
        "expected `safe_instruction` and `unsafe_instruction`",
    ),
    "instruction-missing": (
        "vlguard",
        {"id": "g", "image": RED, "safe": False, "instr-resp": [{"response": "A."}]},
        "missing field",
        "expected one of instruction, found response",
    ),
    "folder-without-text": ("folder", {"image": RED, "text": None}, "empty text", "expected a text file"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(("format", "row", "reason", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_row_is_counted_by_its_reason_or_raised(
    format: str, row: dict[str, Any], reason: str, message: str
) -> None:
    skipping = RowReader(format, image_root=FIXTURES)
    assert skipping(row, key="row 7") == []
    assert dict(skipping.report.bad_rows) == {reason: 1}
    with pytest.raises(DataError, match=message) as caught:
        RowReader(format, image_root=FIXTURES, policy="raise")(row, key="row 7")
    assert caught.value.reason == reason
    keys = [str(row[name]) for name in ("id", "uid") if name in row] or [row.get("image") or "row 7"]
    assert str(caught.value).startswith(f"Row `{keys[0]}` of `{format}`, `")
    assert skipping.report.examples == {reason: [str(caught.value)]}


def test_too_many_images_are_refused_where_a_limit_is_set() -> None:
    row = {"id": "x", "image": [RED] * 5, "conversations": said("<image>" * 5, "A.")}
    assert len(RowReader("llava_json", image_root=FIXTURES)(row)) == 1
    limited = RowReader("llava_json", options={"max_images": 4}, image_root=FIXTURES)
    assert limited(row) == []
    assert dict(limited.report.bad_rows) == {"too many images": 1}


def test_mantis_without_placeholders_is_refused_where_places_must_be_known() -> None:
    row = {"id": "x", "images": [RED], "conversations": said("Q?", "A.")}
    strict = RowReader("mantis", options={"put_missing_first": False}, image_root=FIXTURES)
    assert strict(row) == []
    assert dict(strict.report.bad_rows) == {"more images than <image>": 1}


def test_picture_names_without_a_directory_are_refused() -> None:
    reader = RowReader("llava_json")
    assert reader(LLAVA) == []
    assert "say where pictures are: `image_root`" in reader.report.examples["missing image"][0]


def test_picture_below_the_directory_may_be_named_in_full() -> None:
    reader = RowReader("llava_json", image_root=FIXTURES, policy="raise")
    assert len(reader(LLAVA | {"image": str(FIXTURES / RED)})) == 1


@pytest.mark.parametrize(("check", "bad"), [("none", {}), ("header", {}), ("full", {"unreadable image": 1})])
def test_truncated_picture_is_found_by_the_full_check_alone(check: Any, bad: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes((FIXTURES / RED).read_bytes()[:-60])
    reader = RowReader("llava_json", image_root=tmp_path, check=check)
    reader(LLAVA | {"image": "cut.png"})
    assert dict(reader.report.bad_rows) == bad


def test_picture_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    reader = RowReader("messages")
    reader({"messages": MESSAGES, "images": [png(40, 40)]})
    assert dict(reader.report.bad_rows) == {"unreadable image": 1}


def test_report_counts_rows_records_and_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [LLAVA | {"image": str(FIXTURES / RED)}, {"id": "b"}, {"id": "c"}, LLAVA | {"image": "gone.png"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n", encoding="utf-8")
    source = RecordSource(path=path, format="llava_json", image_root=FIXTURES)
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == 1
    report = source.report.to_dict()
    assert (report["rows"], report["records"]) == (5, 1)
    assert report["bad_rows"] == {"missing field": 2, "missing image": 1, "wrong JSON": 1}
    assert f"{path}: 4 of 5 rows left out (2 missing field, 1 missing image, 1 wrong JSON)" in caplog.text


def test_report_keeps_the_first_three_messages_of_a_reason() -> None:
    report = ReadReport()
    for number in range(5):
        report.take(DataError("no rating", f"message {number}"), policy="skip")
    assert report.examples == {"no rating": ["message 0", "message 1", "message 2"]}
    assert report.num_bad_rows == 5


def test_raise_policy_stops_at_the_first_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"Row `a` of `llava_json`, `conversations`: no such field"):
        list(RecordSource(path=path, format="llava_json", policy="raise"))


def test_policy_that_is_none_names_both() -> None:
    with pytest.raises(ValueError, match=r"`policy` is 'ignore'; expected one of: skip, raise"):
        check_policy("ignore")


@pytest.mark.parametrize("copy", [pickle.loads], ids=["pickle"])
def test_data_error_survives_the_way_out_of_a_worker(copy: Callable[[bytes], Any]) -> None:
    error = copy(pickle.dumps(DataError("no rating", "message")))
    assert (type(error), error.reason, str(error)) == (DataError, "no rating", "message")


JUNK: list[Any] = [
    None,
    NAN,
    True,
    -3,
    10**30,
    "",
    " ",
    "{",
    "[0]",
    "../x",
    b"",
    b"\xff",
    [],
    {},
    [[]],
    [None],
    {"": 1},
]
WHOLE: dict[str, str] = {
    "obelics": "obelics.parquet",
    "mint1t_html": "mint1t_html.parquet",
    "mint1t_pdf": "mint1t_pdf.tar",
    "mint1t_arxiv": "mint1t_arxiv.tar",
    "ocr_idl": "ocr_idl.tar",
    "blip3_kale": "blip3_kale.parquet",
    "blip3_ocr_200m": "blip3_ocr_200m.parquet",
    "blip3_grounding_50m": "blip3_grounding_50m.parquet",
    "image_text_pairs": "pairs.tar",
    "llava_json": "llava.json",
    "mantis": "mantis.json",
    "mmdu": "mmdu.json",
    "messages": "messages.jsonl",
    "vlfeedback": "vlfeedback_rows.jsonl",
    "trl_preference": "trl_preference.jsonl",
    "vlguard": "vlguard.json",
}
ENCODED = {"json", "captions"}


def opened_up(row: dict[str, Any], format: str) -> dict[str, Any]:
    """The row with its encoded fields as lists and objects, which readers take too."""
    parse = {"blip3_grounding_50m": ast.literal_eval}.get(format, json.loads)
    return {name: parse(value) if name in ENCODED else value for name, value in row.items()}


def spoiled(value: Any) -> Iterator[Any]:
    """Copies of a value with one thing in it replaced by something else, or left out."""
    yield from JUNK
    if isinstance(value, dict):
        for name in value:
            yield {key: item for key, item in value.items() if key != name}
            yield from (value | {name: item} for item in spoiled(value[name]))
    if isinstance(value, list):
        for index in range(len(value)):
            yield value[:index] + value[index + 1 :]
            yield from ([*value[:index], item, *value[index + 1 :]] for item in spoiled(value[index]))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")
@pytest.mark.parametrize("format", WHOLE)
def test_row_with_anything_in_any_place_gives_records_or_a_data_error(format: str) -> None:
    rows = [row for _, row in read_rows(Selection(path=FIXTURES / WHOLE[format]))]
    reader = RowReader(format, image_root=FIXTURES, policy="skip")
    for row in (rows[0], opened_up(rows[0], format)):
        for changed in (row | {name: item} for name in row for item in spoiled(row[name])):
            reader(changed)
    assert reader.report.num_bad_rows > len(JUNK)
    assert reader.report.num_bad_rows < reader.report.num_rows
