"""Rows from files, folders and `datasets`, streamed."""

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from xgen_mm.data import sources
from xgen_mm.data.cursors import Shard
from xgen_mm.data.mixture_sources import DatasetsSource, IterableSource
from xgen_mm.data.reading import RecordSource, RowReader, safety_sources
from xgen_mm.data.records import Picture, Text
from xgen_mm.data.sources import Selection, draw_positions, find_files, is_hub_id, open_stream, read_rows
from xgen_mm.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


def rows_of(path: Path, **options: Any) -> list[Any]:
    return [row for _, row in read_rows(Selection(path=path, **options))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", '[{"a": 1}, {"a": 2}]'),
        ("rows.json", '\ufeff [\n{"a": 1}\n,\n{"a": 2}\n]\n'),
        ("rows.json", '{"a": 1}\n{"a": 2}\n'),
        ("rows.jsonl", '{"a": 1}\n\n{"a": 2}'),
        ("rows.ndjson", '{"a": 1}\r\n{"a": 2}\r\n'),
    ],
    ids=["list", "list-in-lines", "objects", "lines", "windows-lines"],
)
def test_json_rows_are_read_in_every_common_layout(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert rows_of(tmp_path / name) == [{"a": 1}, {"a": 2}]


def test_json_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CHUNK_CHARACTERS", 7)
    expected = [{"text": "b" * length, "deep": [{"x": [length]}]} for length in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(expected), encoding="utf-8")
    assert rows_of(tmp_path / "rows.json") == expected


def test_json_list_of_many_rows_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + ",".join(json.dumps({"text": "x" * 1000}) for _ in range(20_000)) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(Selection(path=path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 12_000_000 < path.stat().st_size


@pytest.mark.parametrize(
    ("name", "text", "reasons"),
    [
        ("rows.json", '[{"a": 1}, {"a": ', ["wrong JSON"]),
        ("rows.json", '[{"a": 1}', ["wrong JSON"]),
        ("rows.json", '[{"a": 1}, 3]', ["wrong nesting"]),
        ("rows.jsonl", '{"a": 1}\n{"a"\n[]\n', ["wrong JSON", "wrong nesting"]),
        ("rows.csv", "a,b\n1,2\n3\n4,5,6\n", ["wrong nesting", "wrong nesting"]),
    ],
    ids=["cut-row", "cut-list", "number", "damaged-line", "columns"],
)
def test_damaged_file_gives_the_rows_before_and_says_what_is_wrong(
    name: str, text: str, reasons: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    first, *rest = rows_of(tmp_path / name)
    assert first["a"] in (1, "1")
    assert [error.reason for error in rest] == reasons
    assert all(name in str(error) for error in rest)


def test_row_longer_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_CHARACTERS", 50)
    monkeypatch.setattr(sources, "_CHUNK_CHARACTERS", 16)
    (tmp_path / "rows.json").write_text(json.dumps([{"a": "x" * 200}]), encoding="utf-8")
    (fault,) = rows_of(tmp_path / "rows.json")
    assert "a row longer than 50 characters" in str(fault)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": "x" * 200}) + '\n{"a": 1}\n', encoding="utf-8")
    fault, row = rows_of(tmp_path / "rows.jsonl")
    assert "line 1 is longer than 50" in str(fault)
    assert row == {"a": 1}


def test_tsv_and_csv_rows_have_their_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("url\tcaption\nu\ta, b\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text('\ufeffurl,caption\nu,"a, b"\n', encoding="utf-8")
    assert rows_of(tmp_path / "rows.tsv") == rows_of(tmp_path / "rows.csv") == [{"url": "u", "caption": "a, b"}]


@pytest.mark.parametrize(
    ("format", "line"), [("cc12m", "https://a.b/c.png\tA disc."), ("cc3m", "A disc.\thttps://a.b/c.png")]
)
def test_tables_without_a_header_have_the_columns_of_their_format(format: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(f"{line}\n{line}\n", encoding="utf-8")
    records = list(RecordSource(path=tmp_path / "rows.tsv", format=format, policy="raise"))
    assert [record.parts for record in records] == [(Picture("https://a.b/c.png"), Text("A disc."))] * 2


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_tar_members_of_one_name_are_a_sample(tmp_path: Path) -> None:
    members = {"d/1.json": b"{}", "d/1.a.PNG": b"x", "d/._1.json": b"mac", "d/2.json": b"[]"}
    write_tar(tmp_path / "rows.tar", members)
    first, second = rows_of(tmp_path / "rows.tar")
    assert first == {"__key__": "d/1", "json": b"{}", "a.png": b"x"}
    assert second == {"__key__": "d/2", "json": b"[]"}


def test_tar_cut_short_gives_the_samples_before_and_a_fault(tmp_path: Path) -> None:
    write_tar(tmp_path / "rows.tar", {f"{number}.txt": b"x" * 5000 for number in range(3)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "rows.tar").read_bytes()[:13000])
    *samples, fault = rows_of(tmp_path / "cut.tar")
    assert [sample["__key__"] for sample in samples] == ["0", "1"]
    assert isinstance(fault, DataError)
    assert "cannot be read further" in str(fault)


def test_tar_member_beyond_the_limit_costs_its_sample_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SAMPLE_BYTES", 10)
    write_tar(tmp_path / "rows.tar", {"1.txt": b"x" * 11, "2.txt": b"x"})
    fault, sample = rows_of(tmp_path / "rows.tar")
    assert fault.reason == "too large"
    assert sample == {"__key__": "2", "txt": b"x"}


def test_parquet_batches_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    monkeypatch.setattr(sources, "_BATCH_ROWS", 3)
    pq.write_table(pa.table({"a": list(range(10))}), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet") == [{"a": number} for number in range(10)]


def test_find_files_of_a_directory_takes_its_one_kind_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "inner/c.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    found = find_files(tmp_path)
    assert [selection.path.relative_to(tmp_path).as_posix() for selection in found] == [
        "a.jsonl",
        "b.jsonl",
        "inner/c.jsonl",
    ]
    assert [selection.path.name for selection in find_files(tmp_path / "*.jsonl")] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ([], "", "holds no data file"),
        (["a.json", "b.csv"], "", r"holds several kinds of data files \(\.csv, \.json\); give a file"),
        (["a.txt"], "a.txt", "is no data file; expected one of .parquet"),
        ([], "gone.json", "is no file, directory or pattern"),
        ([], "*.json", "is no file, directory or pattern"),
    ],
    ids=["empty", "mixed", "suffix", "gone", "pattern"],
)
def test_find_files_says_what_is_wrong(names: list[str], path: str, message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        find_files(tmp_path / path)


def test_yaml_counts_take_fewer_or_more_rows_than_there_are() -> None:
    source = RecordSource(path=FIXTURES / "llava_counts.yaml", format="mmdu", policy="raise")
    keys = [record.provenance.key for record in source]
    # `mmdu.json` has one row and is asked for three; `llava.json` has three and is asked for two.
    assert keys[2:] == ["64"] * 3
    assert len(set(keys[:2])) == 2


def test_yaml_counts_are_those_of_the_released_code() -> None:
    # Made with `random.Random(42).sample` and `.choices` on a list of ten and of three rows.
    assert sorted(draw_positions(10, 4).elements()) == [0, 1, 4, 9]
    assert sorted(draw_positions(3, 5).elements()) == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: 3", "expected `data_path:` with a count per file"),
        ("data_path: {gone.json: 3}", "names `gone.json`, which is no file"),
        ("data_path: {rows.json: many}", "the count of `rows.json` is 'many'"),
        ("data_path: {rows.json: 0}", "expected a whole number above 0"),
    ],
)
def test_yaml_counts_wrong_content_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")
    (tmp_path / "counts.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        find_files(tmp_path / "counts.yaml")


def test_record_source_can_be_read_again_pickled_and_called() -> None:
    source = RecordSource(path=FIXTURES / "llava.json", format="llava_json", policy="raise")
    records = list(source)
    assert len(records) == 3
    assert list(source) == list(source(1)) == list(pickle.loads(pickle.dumps(source))) == records


def test_record_source_count_draws_rows_and_keeps_their_order() -> None:
    source = RecordSource(path=FIXTURES / "llava.json", format="llava_json", count=2, seed=1, policy="raise")
    keys = [record.provenance.key for record in source]
    assert keys == [record.provenance.key for record in source]
    assert len(keys) == 2
    assert keys == sorted(keys, key=["one", "two", "none"].index)


def test_safety_sources_pair_vlguard_with_drawn_helpful_rows() -> None:
    guard, helpful = safety_sources(FIXTURES / "vlguard.json", FIXTURES / "llava.json", num_helpful=5)
    assert len(list(guard)) == 3
    assert len(list(helpful)) == 5


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no picture"):
        list(RecordSource(path=tmp_path, format="folder"))
    with pytest.raises(ValueError, match="is no directory"):
        list(RecordSource(path=tmp_path / "gone", format="folder"))


def test_folder_picture_without_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((FIXTURES / "pictures" / "red.png").read_bytes())
    source = RecordSource(path=tmp_path, format="folder")
    assert list(source.read_rows()) == [[]]
    assert dict(source.report.bad_rows) == {"empty text": 1}


def test_saved_dataset_is_streamed_with_pictures_undecoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    picture = {"bytes": (FIXTURES / "pictures" / "red.png").read_bytes(), "path": None}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [
        {"image": picture, "caption": "A disc."},
        {"image": {"bytes": b"no picture", "path": None}, "caption": "?"},
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert type(next(iter(open_stream(tmp_path / "saved")))["image"]["bytes"]) is bytes
    source = RecordSource(path=tmp_path / "saved", format="image_text_pairs")
    (record,) = source
    assert record.provenance.key == "train:0"
    assert dict(source.report.bad_rows) == {"unreadable image": 1}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", True),
        ("owner/name:core", True),
        ("data/rows.json", False),
        ("data/counts.yaml", False),
        ("rows", False),
        ("/data/rows", False),
        ("a/b/c", False),
        (str(FIXTURES), False),
    ],
)
def test_hub_id_is_told_from_a_path(path: str, expected: bool) -> None:
    assert is_hub_id(path) is expected


def test_hub_data_set_is_streamed_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        rows = [{"url": "https://example.com/red.png", "caption": "A disc."}]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    (record,) = RecordSource(path="owner/name:core", format="blip3_kale", split="validation", policy="raise")
    assert asked == [(("owner/name", "core"), {"split": "validation", "streaming": True})]
    assert record.provenance.key == "validation:0"


def test_row_reader_reads_the_rows_of_a_datasets_stream_in_a_mixture() -> None:
    datasets = pytest.importorskip("datasets", reason="needs `datasets` (extra `train`)")
    rows = [{"url": "https://example.com/red.png", "caption": caption} for caption in ("a", "", "b")]
    reader = RowReader("blip3_kale")
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    source = DatasetsSource(stream, reader, repeat=False, shuffle_window=1)
    texts = [record.parts[1].text for record in source.open(Shard())]
    assert texts == ["a", "b"]
    assert dict(reader.report.bad_rows) == {"empty text": 1}


def test_record_source_is_what_an_iterable_source_opens() -> None:
    records = RecordSource(path=FIXTURES / "llava.json", format="llava_json", policy="raise")
    source = IterableSource(records, repeat=False)
    parts = [list(source.open(Shard(rank=rank, world_size=2))) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 1]
    assert [*parts[0][:1], *parts[1], *parts[0][1:]] == list(records)
