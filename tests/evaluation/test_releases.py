"""Files as the authors of benchmarks publish them: wrapped, keyed by name, in several parts, pictures beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmark_rows import ROWS, png, write_rows
from xgen_mm.evaluation.plans import BrokenSample, TaskPlan, plan_task, read_samples
from xgen_mm.evaluation.samples import Sample
from xgen_mm.evaluation.task import TaskError, load_task


def plan_of(name: str, path: Path) -> TaskPlan:
    return plan_task(load_task(name), paths={name: path}, generators={}, download=False, few_shot=None)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_picture(path: Path, shade: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))


def good(plan: TaskPlan) -> list[Sample]:
    found = list(read_samples(plan, limit=None))
    assert all(isinstance(item, Sample) for item in found), found
    return [item for item in found if isinstance(item, Sample)]


def test_three_files_of_pope_are_its_three_categories(tmp_path: Path) -> None:
    write_picture(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    row = {"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a car?", "label": "no"}
    for category in ("adversarial", "popular", "random"):
        write_lines(tmp_path / f"coco_pope_{category}.json", [row, row | {"question_id": 2, "label": "yes"}])
    samples = good(plan_of("pope", tmp_path))
    assert [sample.groups["category"] for sample in samples] == [
        *["adversarial"] * 2,
        *["popular"] * 2,
        *["random"] * 2,
    ]
    assert len({sample.id for sample in samples}) == 6


def test_vlguard_file_may_begin_with_safe_rows_or_hold_nothing_else(tmp_path: Path) -> None:
    write_picture(tmp_path / "p.png")
    pair = [{"safe_instruction": "What is it?"}, {"unsafe_instruction": "Mock it"}]
    path = write_json(tmp_path / "test.json", [{"id": "a", "image": "p.png", "safe": True, "instr-resp": pair}])
    for name in ("vlguard_safe_safes", "vlguard_safe_unsafes"):
        assert [sample.groups["category"] for sample in good(plan_of(name, path))] == [""]
    assert list(read_samples(plan_of("vlguard_unsafes", path), limit=None)) == []


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("seed_image", {"question_type": {"Scene": 1}, "questions": None}),
        ("textvqa_val", {"dataset_type": "val", "data": None}),
    ],
)
def test_list_in_an_object_is_read(name: str, wrapper: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(ROWS[name, "official"], tmp_path, layout="official")
    rows = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: rows if value is None else value for key, value in wrapper.items()})
    plan = plan_of(name, path)
    assert (plan.layout.name, len(good(plan))) == ("official", 2)
    assert plan.source.count() == 2


@pytest.mark.parametrize("name", ["mathvista_mini", "scienceqa_img", "mm_vet"])
def test_rows_in_an_object_keep_their_names(name: str, tmp_path: Path) -> None:
    path = write_rows(ROWS[name, "official"], tmp_path, layout="official")
    keyed = json.loads(path.read_text(encoding="utf-8"))
    assert [sample.id for sample in good(plan_of(name, path))] == list(keyed)[:2]
    write_json(path, {**keyed, "rest": "no row"})
    broken = [item for item in read_samples(plan_of(name, path), limit=None) if isinstance(item, BrokenSample)]
    assert [item.error for item in broken] == ["row rest: expected an object."]


@pytest.mark.parametrize("number", [1, 2])
def test_questions_of_gqa_keep_their_names(number: int, tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "n161313.jpg")
    row = {"imageId": "n161313", "question": "Where?", "answer": "left", "groups": {"global": None}}
    path = write_json(tmp_path / "questions.json", {f"20{index}": row for index in range(number)})
    assert [sample.id for sample in good(plan_of("gqa", path))] == [f"20{index}" for index in range(number)]


def test_single_row_is_not_taken_for_an_object_of_rows(tmp_path: Path) -> None:
    write_picture(tmp_path / "p.png")
    row = {"questionId": 1, "image": "p.png", "question": "Who?", "answers": ["Ann"], "more": {"x": {"y": 1}}}
    assert [sample.target for sample in good(plan_of("docvqa_val", write_json(tmp_path / "val.json", row)))] == [
        ["Ann"]
    ]


def test_object_with_thousands_of_names_is_refused_in_one_short_line(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", {f"name {number}": number for number in range(5000)})
    with pytest.raises(TaskError, match="and 4970 more; expected those of one layout") as found:
        plan_of("mathvista_mini", path)
    assert len(str(found.value)) < 1500


def test_pattern_stands_for_the_files_that_it_matches(tmp_path: Path) -> None:
    write_picture(tmp_path / "test" / "png" / "1.png")
    row = {"imgname": "1.png", "query": "How many?", "label": "14"}
    for kind in ("human", "augmented"):
        write_json(tmp_path / "test" / f"test_{kind}.json", [row])
    samples = good(plan_of("chartqa", tmp_path / "test" / "test_*.json"))
    assert [sample.groups["split"] for sample in samples] == ["augmented", "human"]
    with pytest.raises(TaskError, match="is no file, directory or pattern that matches one"):
        good(plan_of("chartqa", tmp_path / "test" / "none_*.json"))


def test_names_of_pictures_without_ending_are_found(tmp_path: Path) -> None:
    write_picture(tmp_path / "train_images" / "003a8ae2ef43b901.jpg")
    row = {"image_id": "003a8ae2ef43b901", "question_id": 1, "question": "What brand?", "answers": ["dakota"] * 10}
    path = write_json(
        tmp_path / "TextVQA_0.5.1_val.json", {"data": [row, row | {"image_id": "gone", "question_id": 2}]}
    )
    first, second = read_samples(plan_of("textvqa_val", path), limit=None)
    assert isinstance(first, Sample)
    assert isinstance(second, BrokenSample)
    assert "there is no file 'gone' in" in second.error


@pytest.mark.parametrize("has_folders", [False, True], ids=["beside", "folders"])
def test_directories_of_mme_are_read(has_folders: bool, tmp_path: Path) -> None:
    for category in ("artwork", "color"):
        texts, pictures = (f"{category}/questions_answers_YN", f"{category}/images") if has_folders else [category] * 2
        write_picture(tmp_path / pictures / "0001.jpg")
        (tmp_path / texts).mkdir(exist_ok=True)
        lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        (tmp_path / texts / "0001.txt").write_text(lines, encoding="utf-8")
    samples = good(plan_of("mme", tmp_path))
    assert [sample.target for sample in samples] == ["yes", "no"] * 2
    assert [sample.groups["category"] for sample in samples] == ["artwork"] * 2 + ["color"] * 2
    assert len({sample.groups["image"] for sample in samples}) == 2


def test_text_only_questions_of_hallusion_bench_take_no_part(tmp_path: Path) -> None:
    plan = plan_of("hallusion_bench", write_rows(ROWS["hallusion_bench", "official"], tmp_path, layout="official"))
    assert [sample.groups["figure_id"] for sample in good(plan)] == ["1", "2"]


def test_group_that_a_figure_rests_on_is_required(tmp_path: Path) -> None:
    row = {key: value for key, value in ROWS["mme", "vlmevalkit"][0].items() if key != "image_path"}
    with pytest.raises(TaskError, match="expected those of one layout"):
        plan_of("mme", write_rows([row], tmp_path, layout="vlmevalkit"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"PAR1 no table PAR1"),
        ("rows.json", b"[" * 100_000),
        ("rows.json", b'{"a": ' * 100_000),
        ("rows.jsonl", b'{"a": ' + b"[" * 100_000),
        ("rows.tar", b"no archive"),
        ("rows.tsv", b""),
        ("rows.json", b"{}"),
    ],
    ids=["parquet", "deep-list", "deep-object", "deep-line", "tar", "empty", "no-row"],
)
def test_damaged_file_is_refused_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((TaskError, ValueError)) as found:
        plan_of("gqa", tmp_path / name)
    assert len(str(found.value).splitlines()) == 1
    assert len(str(found.value)) < 1000
