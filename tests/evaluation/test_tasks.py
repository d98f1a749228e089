"""Every packaged benchmark reads its real column layouts and scores what a scripted model replies."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmark_rows import ROWS, in_base64, png, stored, tsv_choice, tsv_open, write_rows
from tests.evaluation.scripted_answerer import ScriptedAnswerer
from xgen_mm.errors import XGenMMError
from xgen_mm.evaluation.few_shot import FewShotSettings
from xgen_mm.evaluation.harness.local_tasks import read_task
from xgen_mm.evaluation.metrics.aggregates import AGGREGATES
from xgen_mm.evaluation.plans import BrokenSample, TaskPlan, plan_task, prompt_of, read_samples
from xgen_mm.evaluation.prompts import Prompt
from xgen_mm.evaluation.results import Results
from xgen_mm.evaluation.runner import RunSettings, run_tasks
from xgen_mm.evaluation.samples import Sample
from xgen_mm.evaluation.scoring import SCORERS
from xgen_mm.evaluation.task import TaskError, expand_names, load_suites, load_task, parse_task, task_names

SETTINGS = RunSettings(limit=None, seed=42, max_tiles=None, batch_tokens=4096, versions={})
WITH_FILES = [name for name in task_names() if not load_task(name).generator]
CASES = [pytest.param(name, layout, id=f"{name}-{layout}") for name, layout in sorted(ROWS)]
# What a model gets whose replies are all right, where that is not 100.
BEST = {"mme": 100 * 200 / 2800, "refused": 0.0, "attack_success": 0.0, "cider": 1000.0}


class LenientJudge:
    """Grades by equality, picks no option."""

    def pick_option(self, question: str, options: Any, reply: str) -> str | None:
        return None

    def extract(self, question: str, reply: str) -> str:
        return reply

    def grade(self, question: str, answer: str, reply: str) -> float:
        return float(reply == answer)


def make_plan(name: str, layout: str, directory: Path, *, rows: list[dict[str, Any]] | None = None) -> TaskPlan:
    task = load_task(name)
    path = write_rows(ROWS[name, layout] if rows is None else rows, directory / "data", layout=layout)
    few_shot = FewShotSettings(shots=2) if task.demonstrations else None
    paths = {name: path, f"{name}:train": path}
    return plan_task(task, paths=paths, generators={}, download=False, few_shot=few_shot)


def run_plan(plan: TaskPlan, reply: Callable[[Prompt], str], directory: Path) -> Results:
    found = run_tasks(
        [plan], ScriptedAnswerer(reply), settings=SETTINGS, output=directory / "run", judge=LenientJudge()
    )
    assert found is not None
    return found


def right_replies(plan: TaskPlan) -> Callable[[Prompt], str]:
    """A model that knows the right answers."""
    known: dict[Any, str] = {}
    for sample in read_samples(plan, limit=None):
        assert isinstance(sample, Sample)
        target = sample.target[0] if isinstance(sample.target, list) else sample.target
        key = key_of(prompt_of(plan, sample))
        known[key] = "I cannot do that." if target is None else str(target)
        if plan.task.scorer == "mathvista" and sample.options:
            known[key] = "AB"[sample.options.index(target)]
    return lambda prompt: known[key_of(prompt)]


def key_of(prompt: Prompt) -> tuple[str, Any]:
    """Prompts for captions differ in their last picture alone."""
    return prompt.text, prompt.shown_pictures[-1].source


def main_value(results: Results) -> float:
    (task,) = results["tasks"].values()
    assert task["num_errors"] == 0
    return float(task["metrics"][task["main_metric"]])


def test_every_task_file_names_what_exists() -> None:
    for name in task_names():
        task = load_task(name)
        assert task.scorer in SCORERS
        assert task.aggregate in AGGREGATES
        assert task.paper or task.note or task.harness_task


def test_every_layout_of_every_task_has_rows_here() -> None:
    named = {(name, layout.name) for name in WITH_FILES for layout in load_task(name).layouts}
    # VLMEvalKit's form of CV-Bench has the columns of the data set itself.
    assert named - set(ROWS) == {(name, "vlmevalkit") for name in ("cv_bench", "cv_bench_2d", "cv_bench_3d")}
    assert set(ROWS) <= named


def test_every_suite_names_tasks_and_lists_each_once() -> None:
    for name, suite in load_suites().items():
        assert [task for task, _ in expand_names([name])] == list(dict.fromkeys(suite.tasks))
        assert all(load_task(task).demonstrations for task in suite.tasks if suite.shots)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_task_right_replies_get_the_best_score(name: str, layout: str, tmp_path: Path) -> None:
    plan = make_plan(name, layout, tmp_path)
    assert plan.layout.name == layout
    best = BEST.get(plan.task.main_metric, BEST.get(name, 100.0))
    best = 100.0 if name == "vlguard_safe_safes" else best
    results = run_plan(plan, right_replies(plan), tmp_path)
    # Two of ten people disagree with the right reply of VQA without lowering it.
    assert main_value(results) == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_task_silent_model_fails_no_sample_and_is_never_right(name: str, layout: str, tmp_path: Path) -> None:
    plan = make_plan(name, layout, tmp_path)
    # A silent model refuses nothing.
    worst = {"attack_success": 100.0}.get(plan.task.main_metric, 0.0)
    assert main_value(run_plan(plan, lambda prompt: "", tmp_path)) == pytest.approx(worst)


@pytest.mark.parametrize("name", ["seed_image", "mmbench_en_dev", "mmstar", "mmmu_val", "blink", "muirbench", "ai2d"])
def test_task_model_that_copies_the_prompt_chooses_no_option(name: str, tmp_path: Path) -> None:
    plan = make_plan(name, "vlmevalkit", tmp_path)
    assert main_value(run_plan(plan, lambda prompt: prompt.text, tmp_path)) == 0.0


def test_pope_model_that_always_says_yes_has_full_recall_and_half_the_accuracy(tmp_path: Path) -> None:
    plan = make_plan("pope", "hub", tmp_path)
    metrics = run_plan(plan, lambda prompt: "Yes.", tmp_path)["tasks"]["pope"]["metrics"]
    found = {name: metrics[name] for name in ("accuracy", "precision", "recall", "f1", "yes_share")}
    assert found == pytest.approx({"accuracy": 50, "precision": 50, "recall": 100, "f1": 200 / 3, "yes_share": 100})


def test_mme_model_that_always_says_yes_gets_half_of_the_first_part_only(tmp_path: Path) -> None:
    plan = make_plan("mme", "hub", tmp_path)
    metrics = run_plan(plan, lambda prompt: "yes", tmp_path)["tasks"]["mme"]["metrics"]
    assert metrics["color"] == 50.0


def test_hallusion_model_that_always_says_yes_gets_no_whole_question(tmp_path: Path) -> None:
    plan = make_plan("hallusion_bench", "vlmevalkit", tmp_path)
    metrics = run_plan(plan, lambda prompt: "Yes", tmp_path)["tasks"]["hallusion_bench"]["metrics"]
    assert (metrics["aAcc"], metrics["qAcc"], metrics["fAcc"]) == (50.0, 0.0, 50.0)


def test_mmbench_question_right_in_one_order_only_does_not_count(tmp_path: Path) -> None:
    plan = make_plan("mmbench_en_dev", "vlmevalkit", tmp_path)
    metrics = run_plan(plan, lambda prompt: "A", tmp_path)["tasks"]["mmbench_en_dev"]["metrics"]
    assert (metrics["accuracy"], metrics["single_accuracy"]) == (0.0, 50.0)


def prompts(plan: TaskPlan) -> list[str]:
    samples = [sample for sample in read_samples(plan, limit=None) if isinstance(sample, Sample)]
    return [prompt_of(plan, sample).text for sample in samples]


def test_prompt_of_choices_is_that_of_vlmevalkit(tmp_path: Path) -> None:
    plan = make_plan("mmbench_en_dev", "vlmevalkit", tmp_path)
    first, second = prompts(plan)
    assert first == (
        "<image> Question: What is in picture 7?\nOptions:\nA. a cat\nB. a dog\nC. a hen\nD. a cow\n"
        "Please select the correct answer from the options above. \n"
    )
    assert second.startswith("<image> Hint: Look\nQuestion: What is in picture 1000007?\n")


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("pope", "hub", "<image> Is there a cat in picture 1?"),
        ("docvqa_val", "hub", "<image> Who 1?\nAnswer the question using a single word or phrase."),
        ("mmmu_val", "hub", "Question: Is <image>  like <image> ?\nOptions:\nA. yes\nB. <image> \nPlease select"),
        ("seed_bench_2", "hub", "Question: Compare <image>  and <image> .\nOptions:\nA. a cat"),
        ("blink", "hub", "<image> <image> Question: Which 1?\nOptions:\nA. left\nB. right\n"),
        ("muirbench", "hub", "Is <image>  like <image> ? 1\nA. Yes\nB. <image> \nAnswer with the option's"),
        ("mantis_eval", "hub", "Is <image>  like <image> ?\nAnswer with the option's letter"),
        ("q_bench_2", "hub", "The first image: <image> \nThe second image: <image> \nQuestion: Which is sharper 1?"),
        ("mmstar", "hub", "<image> Question: Which one?\nOptions:\nA. A cat is here.\nB. It is B. Good\nC. a hen\n"),
        ("realworldqa", "hub", "<image> Question: Where?\nOptions:\nA. Left\nB. Right\nPlease select"),
        ("vlguard_unsafes", "official", "<image> Name him"),
        ("vlguard_safe_unsafes", "official", "<image> Mock it"),
        ("vlguard_safe_safes", "official", "<image> What is it?"),
    ],
)
def test_prompt_places_pictures_and_options(name: str, layout: str, expected: str, tmp_path: Path) -> None:
    assert prompts(make_plan(name, layout, tmp_path))[0].startswith(expected)


def test_prompt_pictures_named_out_of_order_stand_where_they_are_named(tmp_path: Path) -> None:
    plan = make_plan("mmmu_val", "hub", tmp_path)
    sample = next(read_samples(plan, limit=1))
    assert isinstance(sample, Sample)
    assert [piece for piece in sample.pieces if isinstance(piece, int)] == [1, 0, 0]


MMMU_OPEN = {
    "hub": ROWS["mmmu_val", "hub"][1] | {"question": "How large is it in <image 1>, in ohms?", "answer": "42.5"},
    "vlmevalkit": tsv_open(1, "42.5", category="Art", split="validation", A="", hint="")
    | {"question": "How large is it in <image 1>, in ohms?"},
}


@pytest.mark.parametrize("layout", list(MMMU_OPEN))
def test_open_question_of_mmmu_shows_no_options_and_not_the_answer(layout: str, tmp_path: Path) -> None:
    plan = make_plan("mmmu_val", layout, tmp_path, rows=[MMMU_OPEN[layout]])
    assert prompts(plan) == ["Question: How large is it in <image> , in ohms?\n"]
    sample = next(read_samples(plan, limit=None))
    assert isinstance(sample, Sample)
    assert (sample.options, sample.target) == ((), "42.5")


@pytest.mark.parametrize("layout", list(MMMU_OPEN))
@pytest.mark.parametrize(
    ("reply", "is_right"),
    [("The resistance is 42.5 ohms.", 1.0), ("42.5", 1.0), ("41 ohms", 0.0), ("Other Answers", 0.0), ("", 0.0)],
    ids=["sentence", "number", "other-number", "alternative", "empty"],
)
def test_open_question_of_mmmu_is_read_as_a_choice_against_other_answers(
    layout: str, reply: str, is_right: float, tmp_path: Path
) -> None:
    plan = make_plan("mmmu_val", layout, tmp_path, rows=[MMMU_OPEN[layout]])
    assert main_value(run_plan(plan, lambda prompt: reply, tmp_path)) == 100 * is_right


OPTION_COLUMNS = {"options", "choices", *"ABCD", "option0", "option1", "choice_a", "choice_b", "choice_c", "choice_d"}
# Options in the text of the question are the question's.
CHOICES = [
    pytest.param(name, layout.name, id=f"{name}-{layout.name}")
    for name in WITH_FILES
    for layout in load_task(name).layouts
    if load_task(name).scorer in ("multiple_choice", "mantis") and (name, layout.name) in ROWS and layout.options
]


@pytest.mark.parametrize(("name", "layout"), CHOICES)
def test_prompt_without_options_holds_neither_the_answer_nor_an_empty_block(
    name: str, layout: str, tmp_path: Path
) -> None:
    target = next(found.target for found in load_task(name).layouts if found.name == layout)
    empty = {key: [] if isinstance(value, list) else "" for key, value in ROWS[name, layout][0].items()}
    row = {key: empty[key] if key in OPTION_COLUMNS else value for key, value in ROWS[name, layout][0].items()}
    found = list(read_samples(make_plan(name, layout, tmp_path, rows=[row | {target: "zebrafinch"}]), limit=None))
    for item in found:
        if isinstance(item, BrokenSample):
            # Numbers of options have none to stand for.
            assert "expected one of the 0 options" in item.error
            continue
        text = "".join(piece for piece in item.pieces if isinstance(piece, str))
        assert row["prompt" if name.startswith("cv_bench") else "question"].split("<")[0] in text
        assert not re.search(r"zebrafinch|Options:|Other Answers|Please select|Answer with", text)


def test_muirbench_shows_the_pictures_that_are_named_and_no_others(tmp_path: Path) -> None:
    row = {"idx": "t", "task": "T", "question": "Is <image> like <image>?", "options": ["<image>", "none"]}
    rows = [row | {"answer": "A", "image_list": [stored(shade) for shade in range(5)]}]
    plan = make_plan("muirbench", "hub", tmp_path, rows=rows)
    assert prompts(plan) == [
        "Is <image>  like <image> ?\nA. <image> \nB. none\n"
        "Answer with the option's letter from the given choices directly."
    ]
    sample = next(read_samples(plan, limit=None))
    assert isinstance(sample, Sample)
    assert [picture.source for picture in prompt_of(plan, sample).shown_pictures] == [png(shade) for shade in range(3)]


def cv_bench_rows(counts: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows by source: how many have the answer A, and how many B."""
    letters = [
        (source, letter)
        for source, both in counts.items()
        for letter, n in zip("AB", both, strict=True)
        for _ in range(n)
    ]
    return [
        ROWS["cv_bench_2d", "hub"][0]
        | {"idx": number, "type": "3D" if source == "Omni3D" else "2D", "source": source, "answer": f"({letter})"}
        for number, (source, letter) in enumerate(letters)
    ]


@pytest.mark.parametrize(
    ("name", "expected"), [("cv_bench_2d", 50.0), ("cv_bench_3d", 25.0), ("cv_bench", 37.5)], ids=["2d", "3d", "both"]
)
def test_cv_bench_figure_is_the_mean_of_sources_and_parts(name: str, expected: float, tmp_path: Path) -> None:
    # Of all ten flat questions, 80 % have the answer A.
    rows = cv_bench_rows({"ADE20K": (8, 0), "COCO": (0, 2), "Omni3D": (1, 3)})
    results = run_plan(make_plan(name, "hub", tmp_path, rows=rows), lambda prompt: "A", tmp_path)
    assert main_value(results) == pytest.approx(expected)
    assert results["tasks"][name]["interval"] is not None


ABSENT_CELLS = ["", "N/A", "NA", "None", "nan", "NaN", "null", "NULL", "n/a", "<NA>", "#N/A"]


@pytest.mark.parametrize("cell", ABSENT_CELLS)
@pytest.mark.parametrize("ending", ["tsv", "csv", "json"])
def test_cell_that_pandas_reads_as_empty_is_left_out(cell: str, ending: str, tmp_path: Path) -> None:
    row = tsv_choice(1, "B", hint=cell, category=cell, question="Which?") | {"C": cell, "D": cell, "E": cell}
    path = tmp_path / f"rows.{ending}"
    if ending == "json":
        path.write_text(json.dumps([row | {"hint": cell or None}]), encoding="utf-8")
    else:
        separator = "\t" if ending == "tsv" else ","
        path.write_text(separator.join(row) + "\n" + separator.join(map(str, row.values())), encoding="utf-8")
    task = load_task("mmbench_en_dev")
    plan = plan_task(task, paths={task.name: path}, generators={}, download=False, few_shot=None)
    (sample,) = read_samples(plan, limit=None)
    assert isinstance(sample, Sample)
    assert prompt_of(plan, sample).text == (
        "<image> Question: Which?\nOptions:\nA. a cat\nB. a dog\n"
        "Please select the correct answer from the options above. \n"
    )
    assert sample.groups["category"] == ""


def test_options_of_any_wording_and_number_stay_as_they_are_written(tmp_path: Path) -> None:
    row = tsv_choice(1, "C", question="Which?") | {"A": "1.0", "B": "N/A", "C": "2.50", "D": "none of these"}
    plan = make_plan("mmbench_en_dev", "vlmevalkit", tmp_path, rows=[row | {"hint": ""}])
    (sample,) = read_samples(plan, limit=None)
    assert isinstance(sample, Sample)
    assert sample.choices == {"A": "1.0", "C": "2.50", "D": "none of these"}
    assert "A. 1.0\nC. 2.50\nD. none of these\n" in prompt_of(plan, sample).text
    assert main_value(run_plan(plan, lambda prompt: "C", tmp_path)) == 100.0


def test_option_of_a_list_may_be_called_none(tmp_path: Path) -> None:
    rows = [ROWS["ai2d", "hub"][0] | {"options": ["None", "N/A"]}]
    assert "A. None\nB. N/A\n" in prompts(make_plan("ai2d", "hub", tmp_path, rows=rows))[0]


@pytest.mark.parametrize(
    ("name", "layout", "change", "message"),
    [
        ("ai2d", "vlmevalkit", {"answer": ""}, "there is no answer"),
        ("ai2d", "vlmevalkit", {"answer": "N/A"}, "there is no answer"),
        ("ai2d", "vlmevalkit", {"answer": "H"}, "'H'; expected one of the 4 options"),
        ("ai2d", "vlmevalkit", {"answer": "\u00b2"}, "expected the letter of an option"),
        ("ai2d", "hub", {"answer": "\u00b2"}, "expected one of the 2 options"),
        ("ai2d", "hub", {"answer": "2"}, "expected one of the 2 options"),
        ("ai2d", "vlmevalkit", {"question": "nan"}, "there is no question"),
        ("pope", "vlmevalkit", {"question": ""}, "there is no question"),
        ("cv_bench_2d", "hub", {"prompt": "N/A"}, "there is nothing to ask"),
        ("docvqa_val", "hub", {"answers": []}, "there is no answer"),
        ("textvqa_val", "hub", {"answers": [{"answer": "red"}]}, "found an object; expected a text"),
    ],
)
def test_row_without_what_its_layout_needs_is_broken_and_says_so(
    name: str, layout: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plan = make_plan(name, layout, tmp_path, rows=[ROWS[name, layout][0] | change])
    (found,) = read_samples(plan, limit=None)
    assert isinstance(found, BrokenSample)
    assert message in found.error


@pytest.mark.parametrize("text", ["\u00b2", "\u0661", "9" * 5000, "-1", "1.5"])
def test_index_that_is_no_plain_number_is_a_name(text: str, tmp_path: Path) -> None:
    rows = [tsv_choice(1, "A", hint="") | {"index": text, "image": in_base64(1)}]
    (sample,) = read_samples(make_plan("mmbench_en_dev", "vlmevalkit", tmp_path, rows=rows), limit=None)
    assert isinstance(sample, Sample)
    assert (sample.id, sample.groups["question"]) == (text, text)


@pytest.mark.parametrize("reply", ["inf", "nan", "-Infinity", "1e999", "9" * 4000])
@pytest.mark.parametrize("kind", ["float", "integer"])
def test_mathvista_reply_that_is_no_finite_number_is_wrong_and_can_be_written(
    reply: str, kind: str, tmp_path: Path
) -> None:
    row = ROWS["mathvista_mini", "hub"][1] | {"answer_type": kind, "answer": "2"}
    assert (
        main_value(run_plan(make_plan("mathvista_mini", "hub", tmp_path, rows=[row]), lambda p: reply, tmp_path))
        == 0.0
    )


def test_options_that_bring_their_letter_lose_it(tmp_path: Path) -> None:
    sample = next(read_samples(make_plan("mantis_eval", "hub", tmp_path), limit=1))
    assert isinstance(sample, Sample)
    assert sample.options == ("Yes", "No")


def test_row_that_names_another_rows_picture_gets_it(tmp_path: Path) -> None:
    plan = make_plan("mmbench_en_dev", "vlmevalkit", tmp_path)
    pictures = [sample.pictures[0].source for sample in read_samples(plan, limit=None) if isinstance(sample, Sample)]
    assert pictures == [base64.b64decode(in_base64(7))] * 2


def test_rows_of_another_split_or_type_take_no_part(tmp_path: Path) -> None:
    assert len(prompts(make_plan("seed_image", "hub", tmp_path / "seed"))) == 2
    assert len(prompts(make_plan("mmmu_val", "vlmevalkit", tmp_path / "mmmu"))) == 2


def test_control_tokens_in_few_shot_data_are_disarmed(tmp_path: Path) -> None:
    rows = [dict(row, question="Who <image> <|endofchunk|>?") for row in ROWS["textvqa_few_shot", "hub"]]
    text = prompts(make_plan("textvqa_few_shot", "hub", tmp_path, rows=rows))[0]
    assert text.count("<image>") == 3
    assert text.count("<|endofchunk|>") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "there is no picture; expected one"),
        ({"image": "https://example.org/cat.png"}, "the picture is an address"),
        ({"image": "no base64 at all"}, "image"),
        ({"answer": ""}, "there is no answer; expected one"),
    ],
    ids=["no-picture", "address", "nonsense", "no-answer"],
)
def test_broken_row_is_reported_with_its_id(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [tsv_choice(1, "A"), tsv_choice(2, "B") | change]
    found = list(read_samples(make_plan("ai2d", "vlmevalkit", tmp_path, rows=rows), limit=None))
    broken = [item for item in found if isinstance(item, BrokenSample)]
    assert [item.id for item in found] == ["1", "2"]
    assert [item.id for item in broken] == ["2"]
    assert "`2`" in broken[0].error
    assert message in broken[0].error


def test_layouts_that_do_not_fit_are_refused_with_their_columns(tmp_path: Path) -> None:
    path = write_rows([{"x": 1, "image": stored(1)}], tmp_path, layout="hub")
    with pytest.raises(TaskError, match="have the columns x, image; expected those of one layout"):
        plan_task(load_task("pope"), paths={"pope": path}, generators={}, download=False, few_shot=None)


def test_missing_data_are_named_with_both_remedies() -> None:
    with pytest.raises(TaskError, match=r"`pope` has no data: give `--data pope=PATH`, or `--download`"):
        plan_task(load_task("pope"), paths={}, generators={}, download=False, few_shot=None)


def test_directory_with_several_splits_gives_the_right_one(tmp_path: Path) -> None:
    write_rows(ROWS["scienceqa_img", "hub"], tmp_path / "ScienceQA-IMG", layout="hub")
    other = write_rows(ROWS["scienceqa_img", "hub"][:1], tmp_path / "ScienceQA-IMG" / "x", layout="hub")
    other.rename(tmp_path / "ScienceQA-IMG" / "train-00000-of-00001.parquet")
    task = load_task("scienceqa_img")
    plan = plan_task(task, paths={task.name: tmp_path}, generators={}, download=False, few_shot=None)
    assert plan.source.count() == 2


def test_vlguard_directory_gives_the_test_file(tmp_path: Path) -> None:
    target = write_rows(ROWS["vlguard_unsafes", "official"], tmp_path, layout="official")
    (tmp_path / "train.json").write_bytes(target.read_bytes())
    task = load_task("vlguard_unsafes")
    plan = plan_task(task, paths={task.name: tmp_path}, generators={}, download=False, few_shot=None)
    assert prompts(plan) == ["<image> Name him"]


def test_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="reads what `datasets` saved")
    rows = ROWS["ai2d", "hub"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("string"),
        }
    )
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows, features=features)}).save_to_disk(tmp_path / "d")
    task = load_task("ai2d")
    plan = plan_task(task, paths={"ai2d": tmp_path / "d"}, generators={}, download=False, few_shot=None)
    assert len(prompts(plan)) == 2


def test_unknown_key_of_a_task_file_is_named() -> None:
    content = {"name": "x", "title": "x", "layouts": [], "scorer": "vqa", "aggregate": "mean", "split": "test"}
    content |= {"main_metric": "accuracy", "metric": "accuracy", "prompted": "x"}
    with pytest.raises(XGenMMError, match="did you mean `prompt`"):
        parse_task(content, where="x.yaml")


def test_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean `pope`"):
        expand_names(["popee"])


def test_json_lines_and_names_of_picture_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(1))
    row = {"id": "1", "imageId": "1.png", "question": "Where?", "answer": "left"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    task = load_task("gqa")
    plan = plan_task(task, paths={"gqa": tmp_path / "rows.jsonl"}, generators={}, download=False, few_shot=None)
    assert prompts(plan) == ["<image> Where?\nAnswer the question using a single word or phrase."]


def test_download_reads_every_configuration_without_decoding_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="stands for the Hub")
    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        row = {**ROWS["blink", "hub"][0], "idx": f"{config}_1"}
        del row["image_3"], row["image_4"]
        return datasets.Dataset.from_list([row]).cast_column("image_1", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    plan = plan_task(load_task("blink"), paths={}, generators={}, download=True, few_shot=None)
    samples = [sample for sample in read_samples(plan, limit=None) if isinstance(sample, Sample)]
    assert [sample.id for sample in samples][:2] == ["Art_Style_1", "Counting_1"]
    assert len(samples) == 14
    assert samples[0].pictures[0].source == png(1)
    assert {(name, split) for name, _, split in asked} == {("BLINK-Benchmark/BLINK", "val")}


def test_nothing_is_downloaded_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="stands for the Hub")
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: pytest.fail("went to the Hub"))
    for name in WITH_FILES:
        few_shot = FewShotSettings(shots=2) if load_task(name).demonstrations else None
        with pytest.raises(TaskError, match=f"`{name}` has no data"):
            plan_task(load_task(name), paths={}, generators={}, download=False, few_shot=few_shot)


def alias_bomb() -> list[Any]:
    """A few lists that stand for ten million values."""
    inner: list[Any] = ["x"] * 10
    for _ in range(6):
        inner = [inner] * 10
    return inner


def deep_list() -> list[Any]:
    inner: list[Any] = []
    for _ in range(3000):
        inner = [inner]
    return inner


@pytest.mark.parametrize("make", [alias_bomb, deep_list])
@pytest.mark.parametrize("key", ["title", "prompt", "scorer_options", "unknown"])
def test_task_that_holds_too_much_is_refused_at_once(make: Callable[[], Any], key: str) -> None:
    with pytest.raises(TaskError, match=r"`x\.yaml` holds more than 20000 values or 50 levels"):
        parse_task({"name": "x", key: make()}, where="x.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "[" * 20_000,
        "include: x.yaml",
        "include: 5",
        "- a",
        "a: &a [x]\nb: &b [*a,*a]\n: !!python/object:x.Y {}",
    ],
    ids=["cut", "deep", "itself", "number", "list", "object"],
)
def test_damaged_task_file_of_the_harness_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(XGenMMError) as found:
        read_task(path)
    assert str(path) in str(found.value)
    assert len(str(found.value).splitlines()) == 1
