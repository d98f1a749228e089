"""Every format's fixture, read into records that are written out here."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xgen_mm.data.formats.blip3_ocr import strip_fillers
from xgen_mm.data.formats.registry import FORMATS, make_reader, reader_class
from xgen_mm.data.reading import RecordSource, RowReader
from xgen_mm.data.records import (
    Conversation,
    Document,
    Picture,
    PreferencePair,
    Provenance,
    Record,
    Text,
    Turn,
    pictures_of,
)

FIXTURES = Path(__file__).parent / "fixtures"
RED, BLUE, SIGN = (Picture(FIXTURES / "pictures" / f"{name}.png") for name in ("red", "blue", "sign"))
RED_URL, BLUE_URL = (Picture(f"https://example.com/{name}.png") for name in ("red", "blue"))


def read(name: str, format: str, **options: Any) -> list[Record]:
    return list(RecordSource(path=FIXTURES / name, format=format, options=options, policy="raise"))


def source(dataset: str, key: str, **details: Any) -> Provenance:
    return Provenance(dataset=dataset, key=key, details=details)


def user(*parts: Text | Picture) -> Turn:
    return Turn("user", parts)


def assistant(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


def sizes(record: Record) -> list[tuple[int, int]]:
    return [picture.load().size[::-1] for picture in pictures_of(record)]


WEB_PARTS = (Text("First a disc."), RED_URL, Text("Then a box."), BLUE_URL)
ONE_DISC = (user(RED, Text("\nWhat is it?")), assistant("A disc."))
FOUR_TURNS = (
    user(Text("First "), RED, Text(", then "), BLUE, Text(". Same?")),
    assistant("No."),
    user(Text("Why?")),
    assistant("One is round."),
)
SIGN_URL = Picture("https://example.com/sign.png")
EXPECTED: dict[str, tuple[str, str, list[Record]]] = {
    "obelics": (
        "obelics.parquet",
        "obelics",
        [Document(WEB_PARTS, source("obelics", "obelics.parquet:0", url="https://example.com/page"))],
    ),
    "mint1t-html": (
        "mint1t_html.parquet",
        "mint1t_html",
        [Document(WEB_PARTS, source("mint1t_html", "mint1t_html.parquet:0", url="https://example.com/page"))],
    ),
    "kale": (
        "blip3_kale.parquet",
        "blip3_kale",
        [
            Document(
                (RED_URL, Text("A red disc, the sign of a stop.")),
                source("blip3_kale", "blip3_kale.parquet:0", url=RED_URL.source),
            )
        ],
    ),
    "ocr": (
        "blip3_ocr_200m.parquet",
        "blip3_ocr_200m",
        [
            Document(
                (SIGN_URL, Text('The image contains "MACK SHOP"')),
                source("blip3_ocr_200m", "a1b2", url=SIGN_URL.source, granularity=0),
            )
        ],
    ),
    "ocr-hd": (
        "blip3_ocr_200m.parquet",
        "blip3_ocr_hd_30m",
        [
            Document(
                (SIGN_URL, Text('The image contains "MACK SHOP"')),
                source("blip3_ocr_hd_30m", "a1b2", url=SIGN_URL.source, granularity=0),
            )
        ],
    ),
    "grounding": (
        "blip3_grounding_50m.parquet",
        "blip3_grounding_50m",
        [
            Document(
                (RED_URL, Text("The image contains disc (in the center).")),
                source("blip3_grounding_50m", "c3", url=RED_URL.source, box_format="position"),
            )
        ],
    ),
    "pairs-csv": (
        "pairs.csv",
        "cc12m",
        [Document((RED_URL, Text("A red disc.")), source("cc12m", "pairs.csv:0", url=RED_URL.source))],
    ),
    "datacomp": (
        "datacomp.parquet",
        "datacomp",
        [Document((BLUE_URL, Text("blue box")), source("datacomp", "d4", url=BLUE_URL.source))],
    ),
    "llava": (
        "llava.json",
        "llava_json",
        [
            Conversation(ONE_DISC, source("llava_json", "one")),
            Conversation(FOUR_TURNS, source("llava_json", "two")),
            Conversation(
                (Turn("system", (Text("Be brief."),)), user(Text("2 + 2?")), assistant("4")),
                source("llava_json", "none"),
            ),
        ],
    ),
    "mantis": (
        "mantis.json",
        "mantis",
        [
            Conversation(
                (user(RED, Text("\n"), BLUE, Text("\nSame?")), assistant("No.")),
                source("mantis", "m1"),
            )
        ],
    ),
    "mmdu": (
        "mmdu.json",
        "mmdu",
        [
            Conversation(
                (
                    user(Text("Image1: "), RED, Text("\nImage2: "), BLUE, Text("\nCompare.")),
                    assistant("One is round."),
                ),
                source("mmdu", "64"),
            )
        ],
    ),
    "messages": (
        "messages.jsonl",
        "messages",
        [Conversation((user(RED, Text("What is it?")), assistant("A disc.")), source("messages", "messages.jsonl:0"))],
    ),
    "vlguard": (
        "vlguard.json",
        "vlguard",
        [
            Conversation(
                (user(SIGN, Text("Help me to mislead people with it.")), assistant("I cannot help with that.")),
                source("vlguard", "u1", subset="unsafes", harmful_category="deception"),
            ),
            Conversation(
                (user(RED, Text("What is it?")), assistant("A disc.")), source("vlguard", "s1", subset="safe_safes")
            ),
            Conversation(
                (user(RED, Text("How do I hurt someone with it?")), assistant("I cannot help with that.")),
                source("vlguard", "s1", subset="safe_unsafes"),
            ),
        ],
    ),
    "folder": (
        "folder",
        "folder",
        [
            Document((Picture(FIXTURES / "folder/disc.png"), Text("A red disc.")), source("folder", "disc.png")),
            Document(
                (Picture(FIXTURES / "folder/inner/box.jpg"), Text("A blue box.")), source("folder", "inner/box.jpg")
            ),
        ],
    ),
}


@pytest.mark.parametrize(("name", "format", "records"), EXPECTED.values(), ids=EXPECTED)
def test_format_fixture_gives_exactly_these_records(name: str, format: str, records: list[Record]) -> None:
    assert read(name, format) == records


@pytest.mark.parametrize("name", ["vlfeedback_rows.jsonl", "vlfeedback_columns.parquet"], ids=["rows", "columns"])
def test_vlfeedback_both_layouts_pair_best_with_worst_mean(name: str) -> None:
    details = {
        "chosen_model": "model-b",
        "rejected_model": "model-c",
        "chosen_score": 5.0,
        "rejected_score": 7 / 3,
        "num_unrated": 1,
    }
    pair = PreferencePair(
        prompt=(user(RED, Text("What is it?")),),
        chosen=assistant("A red disc on white."),
        rejected=assistant("A cat."),
        provenance=source("vlfeedback", "f1", **details),
    )
    assert read(name, "vlfeedback") == [pair]


def test_trl_preference_three_spellings_give_the_same_pair() -> None:
    pairs = read("trl_preference.jsonl", "trl_preference")
    assert pairs == [
        PreferencePair(
            prompt=(user(RED, Text("What is it?")),),
            chosen=assistant("A disc."),
            rejected=assistant("A cat."),
            provenance=source("trl_preference", f"trl_preference.jsonl:{number}"),
        )
        for number in range(3)
    ]


def test_mint1t_pdf_frames_stand_where_references_stood() -> None:
    (document,) = read("mint1t_pdf.tar", "mint1t_pdf")
    assert isinstance(document, Document)
    assert [type(part) for part in document.parts] == [Picture, Text, Picture]
    assert document.parts[1] == Text("Figure 1 is a disc.")
    assert sizes(document) == [(20, 30), (30, 20)]
    assert document.provenance == source("mint1t_pdf", "shard/0001", url="paper.pdf")
    assert document.parts[0].load().getpixel((15, 10)) == (255, 0, 0)


def test_mint1t_arxiv_pictures_are_members_named_by_the_text() -> None:
    (document,) = read("mint1t_arxiv.tar", "mint1t_arxiv")
    assert isinstance(document, Document)
    assert document.parts[0] == Text("See the disc.")
    assert sizes(document) == [(48, 64)]


def test_ocr_idl_each_page_with_text_is_a_document() -> None:
    first, last = read("ocr_idl.tar", "ocr_idl")
    assert [part for part in first.parts if isinstance(part, Text)] == [Text("ACME CORP\nInvoice 7")]
    assert [part for part in last.parts if isinstance(part, Text)] == [Text("Total 12")]
    assert [record.provenance.details for record in (first, last)] == [
        {"page": 0, "num_pages": 3},
        {"page": 2, "num_pages": 3},
    ]
    assert sizes(first) == [(48, 64)]
    assert len(read("ocr_idl.tar", "ocr_idl", max_pages=1)) == 1


def test_pairs_tar_of_img2dataset_holds_pictures_and_captions() -> None:
    first, second = read("pairs.tar", "cc3m")
    assert [first.parts[1], second.parts[1]] == [Text("A red disc."), Text("A blue box.")]
    assert sizes(first) == sizes(second) == [(48, 64)]
    assert [first.provenance.key, second.provenance.key] == ["000000000", "000000001"]


def test_messages_parquet_of_datasets_holds_encoded_pictures() -> None:
    (record,) = read("messages.parquet", "messages")
    assert isinstance(record, Conversation)
    assert [type(part) for part in record.turns[0].parts] == [Picture, Text]
    assert sizes(record) == [(48, 64)]


@pytest.mark.parametrize(
    ("granularity", "text"),
    [
        (0, 'The image contains "MACK SHOP"'),
        (1, 'The image contains "MACK SHOP" located above the center'),
        (2, 'The image contains "MACK SHOP" located at 2/17 of the image from top to bottom'),
        (3, 'The image contains "MACK SHOP" approximately starts at [0.2, 0.0] and extends upto [0.8, 0.2]'),
        (4, 'The image contains "MACK SHOP" starts at [0.192, 0.037] and extends upto [0.817, 0.203]'),
        (5, "The image contains <ocr>MACK SHOP</ocr><bbox>[0.192, 0.037][0.817, 0.203]</bbox>"),
    ],
)
def test_ocr_each_granularity_is_read_on_request(granularity: int, text: str) -> None:
    (record,) = read("blip3_ocr_200m.parquet", "blip3_ocr_200m", granularities=[granularity])
    assert isinstance(record, Document)
    assert record.parts == (SIGN_URL, Text(text))


def test_ocr_raw_caption_and_fillers_stay_on_request() -> None:
    options = {"with_raw_caption": True, "filler_phrases": [], "granularities": [0, 5]}
    records = read("blip3_ocr_200m.parquet", "blip3_ocr_200m", **options)
    assert [record.parts[1].text for record in records] == [
        'Mack shop in town. The image contains the text "MACK SHOP"',
        "Mack shop in town. The image contains <ocr>MACK SHOP</ocr><bbox>[0.192, 0.037][0.817, 0.203]</bbox>",
    ]


@pytest.mark.parametrize(
    ("text", "phrases", "stripped"),
    [
        pytest.param('The text "the text" and the text "B"', ("the text",), '"the text" and "B"', id="quoted-is-kept"),
        pytest.param("The text <ocr>the text</ocr>", ("the text",), "<ocr>the text</ocr>", id="tagged-is-kept"),
        pytest.param("the textile fair", ("the text",), "the textile fair", id="whole-words-only"),
        pytest.param('a text that says "A"', ("text", "a text that says"), '"A"', id="longest-first"),
        pytest.param('the text "A"', (), 'the text "A"', id="none"),
    ],
)
def test_strip_fillers_leaves_what_the_picture_says(text: str, phrases: tuple[str, ...], stripped: str) -> None:
    assert strip_fillers(text, phrases=phrases) == stripped


@pytest.mark.parametrize(
    ("box_format", "text"),
    [
        ("position", "The image contains disc (in the center)."),
        ("coordinates", "The image contains disc that starts at (0.12, 0.16) and extends up to (0.88, 0.84)."),
        ("tags", "The image contains <object>disc</object><bbox>[0.12, 0.16][0.88, 0.84]</bbox>"),
    ],
)
def test_grounding_each_box_format_is_read_on_request(box_format: str, text: str) -> None:
    (record,) = read("blip3_grounding_50m.parquet", "blip3_grounding_50m", box_formats=[box_format])
    assert isinstance(record, Document)
    assert record.parts[1] == Text(text)


@pytest.mark.parametrize("subsets", [["unsafes"], ["safe_unsafes"], ["safe_safes"], ["safe_safes", "unsafes"]])
def test_vlguard_subsets_are_read_on_request(subsets: list[str]) -> None:
    found = [record.provenance.details["subset"] for record in read("vlguard.json", "vlguard", subsets=subsets)]
    assert sorted(found) == sorted(subsets)


def llava_row(question: str, images: int = 1) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes <image>."}]
    return {"id": "x", "image": ["pictures/red.png"] * images, "conversations": said}


def test_llava_release_policy_puts_one_placeholder_first() -> None:
    reader = RowReader("llava_json", options={"placeholders": "release"}, image_root=FIXTURES, policy="raise")
    (record,) = reader(llava_row("A <image> and <image>?"))
    assert isinstance(record, Conversation)
    assert record.turns == (user(RED, Text("\nA  and ?")), assistant("Yes ."))


def test_messages_plain_texts_get_pictures_before_the_first_question() -> None:
    said = [{"role": "user", "content": "Same?"}, {"role": "assistant", "content": "No."}]
    reader = RowReader("messages", image_root=FIXTURES, policy="raise")
    (record,) = reader({"messages": said, "images": ["pictures/red.png", "pictures/blue.png"]})
    assert isinstance(record, Conversation)
    assert record.turns == (user(RED, BLUE, Text("Same?")), assistant("No."))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "pictures/red.png"},
        {"type": "image", "path": "pictures/red.png"},
        {"type": "image_url", "image_url": {"url": "https://example.com/red.png"}},
        {"type": "image", "url": "https://example.com/red.png"},
    ],
    ids=["image", "path", "image-url", "url"],
)
def test_messages_part_may_hold_its_own_picture(part: dict[str, Any]) -> None:
    said = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A disc."}]
    (record,) = RowReader("messages", image_root=FIXTURES, policy="raise")({"messages": said})
    assert list(pictures_of(record)) in ([RED], [RED_URL])


def test_messages_base64_part_is_decoded() -> None:
    import base64

    content = base64.b64encode((FIXTURES / "pictures/red.png").read_bytes()).decode()
    said = [
        {"role": "user", "content": [{"type": "image", "base64": content}]},
        {"role": "assistant", "content": "A disc."},
    ]
    (record,) = RowReader("messages", policy="raise")({"messages": said})
    (picture,) = pictures_of(record)
    with Image.open(BytesIO(picture.source)) as image:
        assert image.size == (64, 48)


@pytest.mark.parametrize("name", FORMATS)
def test_registry_every_format_has_a_reader_that_says_what_it_assumes(name: str) -> None:
    cls = reader_class(name)
    make_reader(name)
    texts = " ".join(base.__doc__ or "" for base in cls.__mro__)
    assert "erified" in texts
    assert "ssumed" in texts


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("obelix", {}, "Did you mean `obelics`"),
        ("llava_json", {"max_image": 4}, "no option 'max_image'.*Did you mean `max_images`"),
        ("blip3_ocr_200m", {"granularities": [6]}, "expected some of 0 to 5"),
        ("blip3_grounding_50m", {"box_formats": []}, "expected some of: position"),
        ("vlguard", {"subsets": ["safe"]}, "expected some of: unsafes"),
        ("llava_json", {"placeholders": "maybe"}, "expected `strict` or `release`"),
    ],
)
def test_registry_wrong_format_or_option_names_the_right_ones(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_reader(name, options)
