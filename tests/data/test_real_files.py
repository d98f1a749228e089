"""Data as people have it: directories as tools leave them, rows as other tools read them, each thing in its place."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_formats_broken import GOOD, answer, feedback, png, said
from xgen_mm.cli import main as entry
from xgen_mm.data import sources
from xgen_mm.data.cursors import Shard
from xgen_mm.data.mixture import Mixture, MixtureEntry
from xgen_mm.data.mixture_sources import DatasetsSource, IterableSource, ListSource
from xgen_mm.data.reading import RecordSource, RowReader, safety_sources
from xgen_mm.data.records import Conversation, Document, Picture, PreferencePair, Record, Text, pictures_of
from xgen_mm.data.sources import Selection, find_files, read_rows
from xgen_mm.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
RED = "pictures/red.png"


def texts_of(record: Record) -> list[str]:
    """Words of a record, `<image>` for its pictures."""
    turns = [record.parts] if isinstance(record, Document) else [turn.parts for turn in record.turns]
    return ["".join(part.text if isinstance(part, Text) else "<image>" for part in parts) for parts in turns]


def read(row: dict[str, Any], format: str = "messages", **options: Any) -> Record:
    (record,) = RowReader(format, options=options, image_root=FIXTURES, policy="raise")(row)
    return record


def refused(row: dict[str, Any], format: str = "messages", **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(row, format, **options)
    return caught.value


def write_lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"conversations": said(text, "A.")}) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


# Splits


SPLIT_FILES: dict[str, tuple[str, ...]] = {
    "shards": ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"),
    "short": ("train.jsonl", "test.jsonl", "val.jsonl"),
    "directories": ("train/0000.jsonl", "test/0000.jsonl", "dev/0000.jsonl"),
    "behind-a-name": ("coco_train2014.jsonl", "coco-test-2015.jsonl", "coco val2014.jsonl"),
    "without-a-word": ("rows.jsonl", "rows_testing.jsonl", "rows.valid.jsonl"),
}


@pytest.mark.parametrize("names", SPLIT_FILES.values(), ids=SPLIT_FILES)
def test_directory_gives_the_rows_of_one_split(
    names: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, split in zip(names, ("train", "test", "validation"), strict=True):
        write_lines(tmp_path / name, split)
    for split in ("train", "test", "validation"):
        source = RecordSource(path=tmp_path, format="llava_json", split=split, policy="raise")
        assert [texts_of(record)[0] for record in source] == [split]
    assert f"{tmp_path}: 1 of 3 files belong to split `train` and are read; those of test, validation" in caplog.text


def test_pattern_over_several_splits_gives_one_and_over_one_split_gives_it(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        write_lines(tmp_path / name, name)
    read_of = {
        pattern: [item.path.name for item in find_files(tmp_path / pattern, split="train")]
        for pattern in ("*.jsonl", "test-*.jsonl")
    }
    assert read_of == {"*.jsonl": ["train-0.jsonl", "train-1.jsonl"], "test-*.jsonl": ["test-0.jsonl"]}


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (("test-0.jsonl",), "train", "holds no file of split `train`, but of test; choose one with `split`"),
        (("train-0.jsonl",), "validation", "holds no file of split `validation`, but of train"),
        (("train-0.jsonl",), "testmini", "holds no file of split `testmini`, but of train"),
    ],
)
def test_directory_without_the_split_is_refused(
    names: tuple[str, ...], split: str, message: str, tmp_path: Path
) -> None:
    for name in names:
        write_lines(tmp_path / name, name)
    with pytest.raises(ValueError, match=message):
        list(RecordSource(path=tmp_path, format="llava_json", split=split))


def test_files_that_name_no_split_are_all_read(tmp_path: Path) -> None:
    for name in ("latest.jsonl", "contest.jsonl", "trainee/more.jsonl"):
        write_lines(tmp_path / name, name)
    assert len(list(RecordSource(path=tmp_path, format="llava_json", policy="raise"))) == 3


def test_folder_of_pictures_gives_one_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "test.png").write_bytes(png())
        (tmp_path / split / "test.txt").write_text(split, encoding="utf-8")
    for split in ("train", "test"):
        (record,) = RecordSource(path=tmp_path, format="folder", split=split, policy="raise")
        assert texts_of(record) == [f"<image>{split}"]


def test_saved_dataset_without_the_split_names_those_it_has(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    rows = datasets.Dataset.from_list([{"conversations": said("Q?", "A.")}])
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="holds the splits test; `split` is 'train'"):
        list(RecordSource(path=tmp_path / "saved", format="llava_json"))


# Output of img2dataset


def shard(number: int, *, suffix: str = "jpg", has_txt: bool = True, **fields: Any) -> dict[str, bytes]:
    key = f"{number:09d}"
    stored = {**fields, "key": key, "status": "success", "error_message": None, "width": 4, "height": 4, "exif": "{}"}
    members = {f"{key}.{suffix}": png(4 + number), f"{key}.json": json.dumps(stored).encode()}
    return members | ({f"{key}.txt": f"caption {number}".encode()} if has_txt else {})


def test_img2dataset_directory_gives_its_shards_alone(tmp_path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    write_tar(tmp_path / "00000.tar", shard(0, url="https://a.b/0") | shard(1, url="https://a.b/1"))
    pq.write_table(pa.table({"url": ["https://a.b/0"], "caption": ["caption 0"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 2}', encoding="utf-8")
    for path in (tmp_path, tmp_path / "*"):
        records = list(RecordSource(path=path, format="datacomp", policy="raise"))
        assert [texts_of(record) for record in records] == [["<image>caption 0"], ["<image>caption 1"]]
        assert [next(pictures_of(record)).load().height for record in records] == [4, 5]


def test_img2dataset_table_beside_its_statistics_is_a_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": [png()], "caption": ["A."]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}", encoding="utf-8")
    (record,) = RecordSource(path=tmp_path, format="datacomp", policy="raise")
    assert texts_of(record) == ["<image>A."]


OCR = json.dumps([{"text": 'The image contains the text "GO"', "granularity": 0, "include_datacomp_raw_cap": False}])
GROUNDING = str([["A disc (in the center).", 0, False]])


@pytest.mark.parametrize(
    ("format", "members", "text"),
    [
        ("blip3_ocr_200m", shard(1, has_txt=False, captions=OCR, uid="u"), 'The image contains "GO"'),
        ("blip3_ocr_hd_30m", shard(1, suffix="webp", captions=OCR), 'The image contains "GO"'),
        ("blip3_grounding_50m", shard(1, captions=GROUNDING), "A disc (in the center)."),
        ("blip3_kale", shard(1, url="https://a.b/c"), "caption 1"),
        ("blip3_kale", shard(1, has_txt=False, caption="From json."), "From json."),
        ("cc12m", shard(1, suffix="png", caption="other"), "caption 1"),
    ],
    ids=["ocr", "ocr-webp", "grounding", "kale-txt", "kale-json", "pairs"],
)
def test_tar_sample_has_the_fields_of_its_json_member(
    format: str, members: dict[str, bytes], text: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "00000.tar", members)
    (record,) = RecordSource(path=tmp_path / "00000.tar", format=format, policy="raise")
    assert texts_of(record) == [f"<image>{text}"]
    assert isinstance(next(pictures_of(record)).source, bytes)


def test_tar_sample_of_a_conversation_has_the_picture_beside_it(tmp_path: Path) -> None:
    row = {"image": "elsewhere/a.jpg", "conversations": said("<image>\nQ?", "A.")}
    write_tar(tmp_path / "a.tar", {"1.jpg": png(), "1.json": json.dumps(row).encode()})
    (record,) = RecordSource(path=tmp_path / "a.tar", format="llava_json", policy="raise")
    assert texts_of(record) == ["<image>\nQ?", "A."]


def test_hidden_and_bookkeeping_files_are_no_data(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "rows.jsonl", "Q?")
    for name in ("dataset_infos.json", ".cache/download.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert len(list(RecordSource(path=tmp_path, format="llava_json", policy="raise"))) == 1


# MINT-1T


def mint(references: list[str | None], metadata: Any, colors: list[str]) -> dict[str, Any]:
    frames = [Image.new("RGB", (4, 4), color) for color in colors]
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    texts = [None if reference else "between" for reference in references]
    content = {"texts": texts, "images": references, "image_metadata": metadata}
    return {"__key__": "1", "json": json.dumps(content).encode(), "tiff": stream.getvalue()}


def places(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"page": page, "xref": xref, "sha256": "a"} for page, xref in pairs]


@pytest.mark.parametrize(
    ("references", "metadata", "colors"),
    [
        (["page_0_image_5", None, "page_0_image_7"], places((0, 7), (0, 5)), ["blue", "red"]),
        (["page_1_image_5", None, "page_0_image_5"], places((0, 5), (1, 5)), ["blue", "red"]),
        (["page_0_image_5", None, "page_0_image_5"], places((0, 7), (0, 5)), ["blue", "blue"]),
        ([None, "page_0_image_5"], places((0, 7), (0, 5)), ["blue"]),
        (["page_0_image_5", None, "page_0_image_7"], None, ["red", "blue"]),
        (["page_0_image_5", None, "page_0_image_7"], [{"page": 0}, {"page": 0}], ["red", "blue"]),
    ],
    ids=["other-order", "pages", "twice", "one-of-two", "no-metadata", "no-xref"],
)
def test_mint1t_pictures_are_those_of_page_and_xref(
    references: list[str | None], metadata: Any, colors: list[str]
) -> None:
    record = read(mint(references, metadata, ["red", "blue"]), "mint1t_pdf")
    assert [picture.load().getpixel((1, 1)) for picture in pictures_of(record)] == [
        {"red": (255, 0, 0), "blue": (0, 0, 255)}[color] for color in colors
    ]


@pytest.mark.parametrize(
    ("references", "metadata", "message"),
    [
        (["page_0_image_9", None], places((0, 7), (0, 5)), "'page_0_image_9' is no page and xref of `image_metadata`"),
        (["page_0_image_7", None, "figure"], places((0, 7), (0, 5)), "'figure' is no page and xref"),
        (["page_0_image_7", None], places((0, 7)), "2 frames for 1 references"),
        (["page_0_image_7", None], places((0, 7), (0, "5")), "expected whole numbers `page` and `xref`"),
    ],
    ids=["unknown", "other-name", "frames", "type"],
)
def test_mint1t_picture_that_cannot_be_told_is_refused(
    references: list[str | None], metadata: Any, message: str
) -> None:
    assert message in str(refused(mint(references, metadata, ["red", "blue"]), "mint1t_pdf"))


# VLFeedback and VLGuard


@pytest.mark.parametrize(
    ("completions", "rejected"),
    [
        ([GOOD, answer("worse", "2", "2", "2"), answer("", "1", "1", "1")], "worse"),
        ([GOOD, answer("worse", "2", "2", "2"), answer(" \n", "5", "5", "5")], "worse"),
        ([GOOD, answer("worse", "2", "2", "2"), answer("x", 2, 2, 2) | {"response": None}], "worse"),
        ([GOOD, answer("worse", "2", "2", "2"), answer("x", 2, 2, 2) | {"annotations": None}], "worse"),
        ([GOOD, answer("unrated", "N/A", "1", "1"), answer("", "2", "2", "5")], ""),
    ],
    ids=["empty", "blank", "null", "no-annotations", "only-other"],
)
def test_vlfeedback_empty_answer_does_not_cost_its_row(completions: list[dict[str, Any]], rejected: str) -> None:
    pair = read(feedback(*completions), "vlfeedback")
    assert isinstance(pair, PreferencePair)
    assert [pair.chosen.parts, pair.rejected.parts] == [(Text("good"),), (Text(rejected),)]


def test_vlfeedback_empty_answer_is_never_chosen() -> None:
    assert refused(feedback(answer("", "5", "5", "5"), answer("", "1", "1", "1")), "vlfeedback").reason == "empty text"
    row = feedback(answer("", "5", "5", "5"), answer("bad", "1", "1", "1"))
    assert refused(row, "vlfeedback").reason == "no preference"


GUARD = {"id": "a", "image": "bad_ads/a.png", "safe": False, "instr-resp": [{"instruction": "Q.", "response": "No."}]}


def test_safety_sources_find_pictures_in_the_directory_of_the_json_s_name(tmp_path: Path) -> None:
    (tmp_path / "train" / "bad_ads").mkdir(parents=True)
    (tmp_path / "train" / "bad_ads" / "a.png").write_bytes(png())
    (tmp_path / "train.json").write_text(json.dumps([GUARD]), encoding="utf-8")
    guard, _ = safety_sources(tmp_path / "train.json", FIXTURES / "llava.json", policy="raise")
    (record,) = guard
    assert next(pictures_of(record)).source == tmp_path / "train" / "bad_ads" / "a.png"


# Data sets of which nothing can be used


def test_source_whose_rows_are_all_broken_is_refused_with_the_first_reasons(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([GUARD, GUARD, {"id": "b"}]), encoding="utf-8")
    guard, _ = safety_sources(tmp_path / "train.json", FIXTURES / "llava.json")
    message = r"none of its 3 rows can be used \(2 missing image, 1 missing field\): Row `a`.*there is no file"
    with pytest.raises(DataError, match=message):
        list(guard)
    with pytest.raises(DataError, match=message):
        list(IterableSource(guard, repeat=False).open(Shard(rank=1, world_size=2)))


def test_datasets_stream_whose_rows_are_all_broken_is_refused() -> None:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    stream = datasets.Dataset.from_list([{"url": "https://a.b/c", "caption": ""}] * 3).to_iterable_dataset()
    source = DatasetsSource(stream, RowReader("blip3_kale"), repeat=False, shuffle_window=1)
    with pytest.raises(DataError, match=r"none of its 3 rows can be used \(3 empty text\)"):
        list(source.open(Shard()))


@pytest.mark.parametrize("fault", [DataError("too bad", "No."), MemoryError("No."), RecursionError("No.")])
def test_mixture_whose_records_are_all_broken_is_refused(fault: Exception) -> None:
    def encode(record: Record) -> Any:
        raise fault

    records = [read({"question": str(number), "answer": "A."}, "question_answer") for number in range(3)]
    entry = MixtureEntry(name="all", source=ListSource(records, repeat=False), weight=1, encoder=encode)
    with pytest.raises(DataError, match=r"None of the records of `all` can be used.*3.*Latest: \w+: No\."):
        list(Mixture([entry], on_bad_record="skip").open(Shard()))


def test_data_check_of_broken_rows_alone_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "rows.jsonl", "<image>Q?", "<image>Q?")
    assert entry.main(["data", "check", str(tmp_path / "rows.jsonl"), "--format", "llava_json"]) == 1
    assert "2  more <image> than images" in capsys.readouterr().out
    write_lines(tmp_path / "rows.jsonl", "<image>Q?", "Q?")
    assert entry.main(["data", "check", str(tmp_path / "rows.jsonl"), "--format", "llava_json"]) == 0
    capsys.readouterr()


# Things that are not read


@pytest.mark.parametrize("name", ["video", "videos", "audio", "audios"])
@pytest.mark.parametrize("format", ["llava_json", "messages", "mantis", "trl_preference"])
def test_row_with_a_film_or_a_sound_is_refused_by_its_name(format: str, name: str) -> None:
    row = {
        "conversations": said("Q?", "A."),
        "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}],
        "prompt": "Q?",
        "chosen": "A.",
        "rejected": "B.",
    }
    if format != "messages":
        row.pop("messages")
    read(row | {name: None}, format)
    read(row | {name: []}, format)
    fault = refused(row | {name: "a.mp4"}, format)
    assert fault.reason == "unread media"
    assert f"`{name}`: only pictures are read" in str(fault)


@pytest.mark.parametrize("column", ["image_path", "file_name", "jpg", "image_1"])
def test_picture_of_a_conversation_is_found_under_its_usual_names(column: str) -> None:
    record = read({"question": "Q?", "answer": "A.", column: RED}, "question_answer")
    assert texts_of(record) == ["<image>Q?", "A."]
    record = read({"conversations": said("<image>Q?", "A."), column: RED}, "llava_json")
    assert texts_of(record) == ["<image>Q?", "A."]


def test_numbered_pictures_stand_in_the_order_of_their_numbers() -> None:
    row = {f"image_{number}": f"pictures/{name}.png" for number, name in ((10, "red"), (2, "blue"), (1, "sign"))}
    record = read(row | {"image_3": None, "question": "Q?", "answer": "A."}, "question_answer")
    names = [Path(str(picture.source)).stem for picture in pictures_of(record)]
    assert names == ["sign", "blue", "red"]


def test_picture_that_the_format_does_not_read_is_no_silent_loss() -> None:
    row = {"texts": ["a"], "images": [None], "image_path": RED}
    assert "`image_path`: the format reads no picture of this field" in str(refused(row, "obelics"))


# Layouts of rows


QUESTION, ANSWER = "What is it?", "A disc."
LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "images": [RED],
    },
    "sharegpt": {"conversations": said(QUESTION, ANSWER), "images": [RED]},
    "completion": {"prompt": QUESTION, "completion": ANSWER, "images": [RED]},
    "completion-messages": {
        "prompt": [{"role": "user", "content": QUESTION}],
        "completion": [{"role": "assistant", "content": ANSWER}],
        "images": [RED],
    },
    "cauldron": {"texts": [{"user": QUESTION, "assistant": ANSWER, "source": "made"}], "images": [RED]},
    "question": {"question": QUESTION, "answer": ANSWER, "image": RED},
    "query": {"query": QUESTION, "response": ANSWER, "images": [RED]},
    "instruction": {"instruction": QUESTION, "input": "", "output": ANSWER, "image": [RED]},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_conversation_is_read_in_every_common_layout(row: dict[str, Any]) -> None:
    assert texts_of(read(row)) == [f"<image>{QUESTION}", ANSWER]


def test_several_questions_of_a_row_are_turns_in_order() -> None:
    pairs = [{"user": "One?", "assistant": "1"}, {"user": "Two?", "assistant": "2"}]
    assert texts_of(read({"texts": pairs, "images": [RED]})) == ["<image>One?", "1", "Two?", "2"]
    row = {"history": [["One?", "1"]], "query": "Two?", "response": 2}
    assert texts_of(read(row)) == ["One?", "1", "Two?", "2"]
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
    assert texts_of(read(row)) == ["Add.\n1 + 1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": [RED]}, "expected `messages`, `conversations`, `texts`"),
        ({"texts": [{"user": "Q?"}]}, r"`texts\[0\]`: expected `user` and `assistant`, found user"),
        ({"texts": [{"user": "Q?", "assistant": None}]}, "expected a list, found a `NoneType`"),
        ({"prompt": "Q?", "completion": "A.", "label": False}, "read by format `trl_unpaired`"),
        ({"question": "Q?", "answer": "A", "choices": ["x", "y"]}, "`choices`: it looks like part of a question"),
    ],
    ids=["nothing", "half-a-pair", "null", "label", "choices"],
)
def test_layout_that_cannot_be_read_is_refused(row: dict[str, Any], message: str) -> None:
    import re

    assert re.search(message, str(refused(row)))


PAIRS: dict[str, dict[str, Any]] = {
    "rejected-response": {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "rejected_response": "A cat.",
    },
    "rejected-messages": {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "rejected_response": [{"role": "assistant", "content": "A cat."}],
    },
    "question": {"question": QUESTION, "chosen": ANSWER, "rejected": "A cat."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": {"from": "gpt", "value": ANSWER},
        "rejected": {"from": "gpt", "value": "A cat."},
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_preference_pair_is_read_in_every_common_layout(row: dict[str, Any]) -> None:
    pair = read(row | {"images": [RED]}, "trl_preference")
    assert isinstance(pair, PreferencePair)
    assert pair.prompt[0].parts == (Picture(FIXTURES / RED), Text(QUESTION))
    assert (pair.chosen.parts, pair.rejected.parts) == ((Text(ANSWER),), (Text("A cat."),))


TABLE = "file,question,answer\npictures/red.png,What is it?,A disc.\n"


def test_question_of_a_table_is_never_dropped(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TABLE, encoding="utf-8")
    options = {"image": "file", "caption": "answer"}
    source = RecordSource(path=tmp_path / "rows.csv", format="image_text_pairs", options=options, image_root=FIXTURES)
    with pytest.raises(DataError, match=r"`question`: it looks like part of a question.*format `question_answer`"):
        list(source)
    source.options = options | {"ignore": ["question"]}
    assert [texts_of(record) for record in source] == [["<image>A disc."]]


def test_table_of_questions_is_read_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TABLE, encoding="utf-8")
    (record,) = RecordSource(path=tmp_path / "rows.csv", format="question_answer", image_root=FIXTURES, policy="raise")
    assert texts_of(record) == ["<image>What is it?", "A disc."]
    columns = {"photo": RED, "Frage": "Name <image>.", "Antwort": 7, "Rolle": "Kurz."}
    options = {"image": "photo", "question": "Frage", "answer": "Antwort", "system": "Rolle"}
    assert texts_of(read(columns, "question_answer", **options)) == ["Kurz.", "Name <image>.", "7"]
    assert "`picture`: no such field" in str(refused(columns, "question_answer", **options | {"image": "picture"}))
    assert refused(columns | {"Antwort": True}, "question_answer", **options).reason == "wrong type"


def test_llava_answer_before_the_first_question_is_left_out() -> None:
    messages = [{"from": "gpt", "value": "Hello."}, *said("<image>\nQ?", "A.")]
    for row in (
        {"conversations": messages},
        {"conversations": [{"from": "system", "value": "S."}, *messages]},
    ):
        *_, question, reply = texts_of(read(row | {"image": RED}, "llava_json"))
        assert (question, reply) == ("<image>\nQ?", "A.")
    hidden = [{"from": "gpt", "value": "<image> Hello."}, *said("Q?", "A.")]
    assert refused({"conversations": hidden, "image": RED}, "llava_json").reason == "more images than <image>"


def test_llava_picture_without_a_placeholder_names_the_remedy() -> None:
    row = {"conversations": said("Q?", "A."), "image": RED}
    assert "option `placeholders: release` puts one" in str(refused(row, "llava_json"))
    assert texts_of(read(row, "llava_json", placeholders="release")) == ["<image>\nQ?", "A."]
    assert "format `mantis`" in str(refused(row | {"image": [RED, RED]}, "llava_json"))
    assert texts_of(read(row | {"image": [RED, RED]}, "mantis")) == ["<image>\n<image>\nQ?", "A."]


def test_mmdu_names_begin_at_the_directory_of_pictures() -> None:
    said = [
        {"from": "user", "value": "Image1: <ImageHere> Image2: <ImageHere>. Same?"},
        {"from": "assistant", "value": "No."},
    ]
    record = read({"id": "1", "image": ["/pictures/red.png", "/pictures/blue.png"], "conversations": said}, "mmdu")
    assert texts_of(record)[0] == "Image1: <image> Image2: <image>. Same?"


def test_rows_in_an_object_by_their_ids_are_read(tmp_path: Path) -> None:
    rows = {"1": {"a": 1}, "2": {"a": 2, "id": "b"}}
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    found = [row for _, row in read_rows(Selection(path=tmp_path / "rows.json"))]
    assert found == [{"__key__": "1", "a": 1}, {"__key__": "2", "a": 2, "id": "b"}]


# Pictures as users of `datasets` have them


def pixels(height: int = 5, width: int = 7) -> Any:
    return np.full((height, width, 3), (255, 0, 0), dtype=np.uint8)


def as_column() -> Any:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    return datasets.Dataset.from_dict({"image": [RED, RED]})["image"]


IMAGES: dict[str, tuple[Callable[[], Any], int]] = {
    "null": (lambda: None, 0),
    "empty": (list, 0),
    "nested-empty": (lambda: [[], []], 0),
    "nulls": (lambda: [None], 0),
    "padded": (lambda: [RED, None], 1),
    "tuple": (lambda: (RED, RED), 2),
    "nested": (lambda: [[RED], [RED, RED]], 3),
    "path-object": (lambda: Path(RED), 1),
    "bytes": (lambda: [{"bytes": png(), "path": None}], 1),
    "named-bytes": (lambda: {"bytes": png(), "path": "gone.png"}, 1),
    "path": (lambda: [{"bytes": None, "path": RED}], 1),
    "pil": (lambda: [Image.new("RGB", (4, 4))], 1),
    "array": (pixels, 1),
    "gray": (lambda: [pixels()[..., 0]], 1),
    "stack": (lambda: np.stack([pixels(), pixels()]), 2),
    "objects": (lambda: np.array([RED, RED], dtype=object), 2),
    "column": (as_column, 2),
}


@pytest.mark.parametrize(("make", "count"), IMAGES.values(), ids=IMAGES)
def test_images_of_a_row_are_taken_as_datasets_gives_them(make: Callable[[], Any], count: int) -> None:
    record = read({"question": "Q?", "answer": "A.", "images": make()}, "question_answer")
    assert len([picture.load() for picture in pictures_of(record)]) == count


def test_array_of_a_row_keeps_its_pixels() -> None:
    record = read({"question": "Q?", "answer": "A.", "image": pixels()}, "question_answer")
    assert np.array_equal(np.asarray(next(pictures_of(record)).load()), pixels())


def test_array_that_is_no_picture_is_the_fault_of_its_row() -> None:
    row = {"question": "Q?", "answer": "A.", "image": np.zeros((2, 3, 5, 7, 1))}
    assert refused(row, "question_answer").reason == "unreadable image"


def test_table_columns_of_lists_are_lists() -> None:
    said = np.array([{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}], dtype=object)
    assert texts_of(read({"messages": said, "images": np.array([RED], dtype=object)})) == ["<image>Q?", "A."]


# Names of pictures


@pytest.mark.parametrize("name", ["pictures\\red.png", "/pictures/red.png", "\\pictures\\red.png", "./" + RED])
def test_picture_name_as_other_systems_write_it_is_found_below_the_directory(name: str) -> None:
    record = read({"question": "Q?", "answer": "A.", "image": name}, "question_answer")
    assert next(pictures_of(record)).source == FIXTURES / RED


def test_picture_name_that_holds_a_backslash_is_found_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").write_bytes(png())
    (record,) = RowReader("question_answer", image_root=tmp_path, policy="raise")(
        {"question": "Q?", "answer": "A.", "image": "a\\b.png"}
    )
    assert next(pictures_of(record)).source == tmp_path / "a\\b.png"


@pytest.mark.parametrize("form", ["plain", "dict", "part", "listed"])
@pytest.mark.parametrize(
    "name",
    [
        "{outside}",
        "file://{outside}",
        "FILE://{outside}",
        "../secret.png",
        "a/../../secret.png",
        "..\\secret.png",
        "~/secret.png",
        "C:\\secret.png",
        "\\\\server\\secret.png",
    ],
)
def test_picture_name_of_a_row_never_leads_out_of_its_directory(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(png())
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    value: Any = name.format(outside=outside)
    row: dict[str, Any] = {"question": "Q?", "answer": "A.", "image": value}
    if form == "dict":
        row["image"] = {"bytes": None, "path": value}
    elif form == "listed":
        row["image"] = [{"path": value}]
    elif form == "part":
        part = {"type": "image", "image": value}
        row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A."}]}
    reader = RowReader("messages", image_root=root, policy="raise")
    with pytest.raises(DataError) as caught:
        reader(row)
    assert caught.value.reason in ("unsafe path", "missing image")


# Hostile rows


DEEP = 100_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"a": ' + "[" * DEEP, "line 2: too many levels of brackets"),
        ("rows.jsonl", '{"a": 1' + "0" * 5000 + "}", "line 2: Exceeds the limit"),
        ("rows.json", '{"a": ' + "[" * DEEP, "row 1: too many levels of brackets"),
    ],
    ids=["deep-line", "long-number", "deep-object"],
)
def test_hostile_json_row_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"a": 1}\n' + text + '\n{"a": 2}\n', encoding="utf-8")
    first, fault, *rest = (row for _, row in read_rows(Selection(path=tmp_path / name)))
    assert first == {"a": 1}
    assert message in str(fault)
    assert "\n" not in str(fault)
    assert rest == ([{"a": 2}] if name == "rows.jsonl" else [])


def test_row_of_many_values_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LONG_ROW", 100)
    monkeypatch.setattr(sources, "MAX_ROW_VALUES", 50)
    monkeypatch.setattr(sources, "_CHUNK_CHARACTERS", 64)
    row = json.dumps({"a": [[]] * 100})
    (tmp_path / "rows.jsonl").write_text(f'{row}\n{{"a": 1}}\n', encoding="utf-8")
    fault, kept = (row for _, row in read_rows(Selection(path=tmp_path / "rows.jsonl")))
    assert "more than 50 values" in str(fault)
    assert kept == {"a": 1}
    (tmp_path / "rows.json").write_text(f"[{row}]", encoding="utf-8")
    (fault,) = (row for _, row in read_rows(Selection(path=tmp_path / "rows.json")))
    assert "more than 50 values" in str(fault)
    encoded = {"url": "https://a.b/c", "captions": json.dumps([[]] * 100)}
    assert "too many values" in str(refused(encoded, "blip3_ocr_200m"))


def test_csv_field_beyond_the_limit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_CHARACTERS", 100)
    (tmp_path / "rows.csv").write_text('a,b\n1,2\n3,"' + "x" * 200 + '"\n', encoding="utf-8")
    first, fault = (row for _, row in read_rows(Selection(path=tmp_path / "rows.csv")))
    assert first == {"a": "1", "b": "2"}
    assert "rows.csv, row 1 (line 3): field larger than field limit" in str(fault)


def test_caption_of_a_table_without_a_header_may_begin_with_a_quotation_mark(tmp_path: Path) -> None:
    lines = [f'https://a.b/{number}\t"Caption {number}' for number in range(3)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines), encoding="utf-8")
    records = list(RecordSource(path=tmp_path / "rows.tsv", format="cc12m", policy="raise"))
    assert [texts_of(record) for record in records] == [[f'<image>"Caption {number}'] for number in range(3)]


def test_tar_sample_is_bounded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SAMPLE_BYTES", 100)
    members = {f"1.{number}.txt": b"x" * 40 for number in range(14)}
    write_tar(tmp_path / "rows.tar", members | {"2.txt": b"x"})
    fault, sample = (row for _, row in read_rows(Selection(path=tmp_path / "rows.tar")))
    assert fault.reason == "too large"
    assert "sample `1` has 120 bytes" in str(fault)
    assert sample == {"__key__": "2", "txt": b"x"}


def test_tar_sample_of_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SAMPLE_MEMBERS", 3)
    write_tar(tmp_path / "rows.tar", {f"1.{number}": b"" for number in range(9)} | {"2.txt": b"x"})
    fault, sample = (row for _, row in read_rows(Selection(path=tmp_path / "rows.tar")))
    assert fault.reason == "too large"
    assert sample == {"__key__": "2", "txt": b"x"}


def test_tar_header_of_unlikely_size_is_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rows.tar", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("1.txt")
        member.pax_headers = {"comment": "x" * (sources.MAX_HEADER_BYTES + 1)}
        archive.addfile(member)
    (fault,) = (row for _, row in read_rows(Selection(path=tmp_path / "rows.tar")))
    assert "a header of" in str(fault)


def test_damaged_table_is_one_broken_row(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + b"x" * 100)
    (fault,) = (row for _, row in read_rows(Selection(path=tmp_path / "rows.parquet")))
    assert "rows.parquet: the table cannot be read further" in str(fault)


@pytest.mark.parametrize("fault", [MemoryError, RecursionError, NotImplementedError, ZeroDivisionError])
def test_any_error_of_a_row_is_the_fault_of_that_row(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(picture: Picture) -> Image.Image:
        raise fault("decoder")

    monkeypatch.setattr(Picture, "load", load)
    reader = RowReader("question_answer", image_root=FIXTURES, check="full")
    assert reader({"question": "Q?", "answer": "A.", "image": RED}, key="7") == []
    assert len(reader({"question": "Q?", "answer": "A."})) == 1
    (message,) = reader.report.examples["unexpected error"]
    assert message == f"Row `7` of `question_answer`: {fault.__name__}: decoder."


def test_data_check_goes_on_behind_a_record_that_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from xgen_mm.data.checking import check_data

    class Encoder:
        def __call__(self, record: Record) -> Any:
            raise MemoryError("too many pixels")

    rows = RecordSource(path=FIXTURES / "llava.json", format="llava_json")
    check = check_data(rows, Encoder())
    assert (check.report.num_rows, check.report.num_records) == (3, 0)
    assert dict(check.report.bad_rows) == {"unexpected error": 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, [[[[[]]]]] * 9, "x" * 10**6], ids=type)
def test_value_that_makes_no_sense_is_told_in_a_short_line(value: Any) -> None:
    for row in ({"image": value}, {"question": value}, {"answer": value, "image": "gone.png"}, {"id": value}):
        reader = RowReader("question_answer", image_root=FIXTURES)
        reader({"question": "Q?", "answer": [], **row})
        (messages,) = reader.report.examples.values()
        assert len(messages[0]) < 600


def test_deep_value_of_a_row_is_the_fault_of_that_row() -> None:
    deep: list[Any] = []
    for _ in range(DEEP):
        deep = [deep]
    reader = RowReader("question_answer", image_root=FIXTURES)
    for name in ("image", "question", "answer", "id"):
        reader({"question": "Q?", "answer": 1, name: deep})
    assert reader.report.num_bad_rows >= 3
    assert reader.report.num_bad_rows + reader.report.num_records == 4


def test_names_of_many_columns_are_not_all_listed() -> None:
    message = str(refused({f"column_{number}": 1 for number in range(10_000)}))
    assert "column_19 and 9980 more" in message
    assert len(message) < 1000


def test_conversation_of_the_reader_is_a_conversation() -> None:
    assert isinstance(read(LAYOUTS["cauldron"]), Conversation)
