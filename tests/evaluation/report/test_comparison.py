"""What a comparison finds in results."""

from pathlib import Path
from typing import Any

import pytest

from xgen_mm.evaluation.report import Comparison, compare_runs, render_markdown
from xgen_mm.evaluation.report.comparison import ReportError
from xgen_mm.evaluation.results import Results, read_results

from .fake_results import fake_results, fake_sample, fake_task, write_run


def accuracy_task(outcomes: dict[str, float], **fields: Any) -> Any:
    samples = [fake_sample(name, scores={"accuracy": score}) for name, score in outcomes.items()]
    return fake_task(samples, aggregate="mean", main_metric="accuracy", title="Quiz", **fields)


def compare(*documents: Results, num_resamples: int = 200, **options: Any) -> Comparison:
    return compare_runs([(Path("x"), document) for document in documents], num_resamples=num_resamples, **options)


def test_samples_that_changed_are_found_with_their_direction() -> None:
    first = fake_results(quiz=accuracy_task({"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "only here": 1.0}))
    second = fake_results(quiz=accuracy_task({"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.4}))
    task = compare(first, second).tasks[0]
    assert [(sample.id, sample.kind) for sample in task.samples] == [("a", "lost"), ("b", "gained")]
    assert task.num_by_kind == {"gained": 1, "lost": 1}


def test_fall_is_a_gain_where_lower_is_better() -> None:
    first = fake_results(quiz=accuracy_task({"a": 1.0, "b": 1.0}, higher_is_better=False))
    second = fake_results(quiz=accuracy_task({"a": 0.0, "b": 1.0}, higher_is_better=False))
    assert compare(first, second).tasks[0].num_by_kind == {"gained": 1}


def test_three_runs_that_disagree_are_mixed() -> None:
    runs = [fake_results(quiz=accuracy_task({"a": score})) for score in (0.5, 1.0, 0.0)]
    assert compare(*runs).tasks[0].samples[0].kind == "mixed"


def test_single_run_shows_what_is_wrong() -> None:
    task = compare(fake_results(quiz=accuracy_task({"a": 1.0, "b": 0.0}))).tasks[0]
    assert [(sample.id, sample.kind) for sample in task.samples] == [("b", "wrong")]
    assert task.differences == ()


def test_difference_is_taken_on_questions_that_both_answered() -> None:
    first = fake_results(quiz=accuracy_task({"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}))
    second = fake_results(quiz=accuracy_task({"a": 1.0, "b": 1.0}))
    task = compare(first, second).tasks[0]
    assert [figure.value for figure in task.figures if figure] == [25.0, 100.0]
    difference = task.differences[0]
    assert difference is not None
    assert (difference.value, difference.num_shared) == (50.0, 2)


def test_failed_samples_take_no_part() -> None:
    samples = [
        fake_sample("a", scores={"accuracy": 1.0}),
        fake_sample("b", scores={}, error="the picture has no pixels", reply="", answer=None),
    ]
    task = fake_task(samples, aggregate="mean", main_metric="accuracy", title="Quiz")
    found = compare(fake_results(quiz=task), fake_results(quiz=accuracy_task({"a": 1.0, "b": 1.0}))).tasks[0]
    figure, difference = found.figures[0], found.differences[0]
    assert figure is not None
    assert difference is not None
    assert (figure.value, figure.num_errors, difference.num_shared) == (100.0, 1, 1)
    assert found.samples == ()


def test_certain_differences_are_called_better_or_worse_and_uncertain_ones_neither() -> None:
    right, wrong = ({str(i): score for i in range(40)} for score in (1.0, 0.0))
    half = {str(i): float(i % 2) for i in range(40)}
    other_half = {str(i): float(i % 2 == 0) for i in range(40)}
    pairs = [(wrong, right), (right, wrong), (half, other_half)]
    found = [
        compare(*(fake_results(quiz=accuracy_task(run)) for run in pair)).tasks[0].differences[0] for pair in pairs
    ]
    assert [difference.is_better for difference in found if difference] == [True, False, None]


def test_certain_fall_is_better_where_lower_is_better() -> None:
    runs = [
        fake_results(quiz=accuracy_task({str(i): score for i in range(20)}, higher_is_better=False))
        for score in (1.0, 0.0)
    ]
    difference = compare(*runs).tasks[0].differences[0]
    assert difference is not None
    assert (difference.value, difference.is_better) == (-100.0, True)


def test_figure_that_samples_do_not_yield_has_no_interval_and_a_note() -> None:
    task = accuracy_task({"a": 1.0, "b": 0.0, "c": 1.0})
    task["metrics"]["accuracy"] = 12.0
    found = compare(fake_results(quiz=task)).tasks[0]
    assert found.figures[0] is not None
    assert (found.figures[0].value, found.figures[0].interval) == (12.0, None)
    assert "do not suffice" in found.notes[0]


def test_runs_with_other_main_metrics_are_not_comparable() -> None:
    first, second = (accuracy_task({"a": 1.0, "b": 0.0}) for _ in range(2))
    second["main_metric"] = "f1"
    found = compare(fake_results(quiz=first), fake_results(quiz=second)).tasks[0]
    assert "B states f1 and not accuracy" in found.notes[0]


def test_task_that_one_run_lacks_has_no_difference() -> None:
    found = compare(fake_results(quiz=accuracy_task({"a": 1.0})), fake_results(more=accuracy_task({"a": 1.0})))
    assert [task.name for task in found.tasks] == ["quiz", "more"]
    assert [task.differences for task in found.tasks] == [(None,), (None,)]
    assert [[figure is None for figure in task.figures] for task in found.tasks] == [[False, True], [True, False]]


def test_results_of_a_harness_are_means_unless_they_say_otherwise() -> None:
    task = accuracy_task({"a": 1.0, "b": 0.0, "c": 1.0})
    del task["aggregate"]
    task["harness"] = {"name": "lmms-eval", "version": "0.7.3", "task": "quiz"}
    figure = compare(fake_results(quiz=task)).tasks[0].figures[0]
    assert figure is not None
    assert figure.interval is not None


def test_runs_of_the_same_name_are_told_apart_by_directory(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, skill=0.5, tasks=("mme",)) for name in ("before", "after")]
    found = compare_runs([(path, read_results(path)) for path in paths], num_resamples=0)
    assert [run.name for run in found.runs] == ["some/model (before)", "some/model (after)"]


def test_settings_that_differ_are_listed() -> None:
    first, second = (fake_results(quiz=accuracy_task({"a": 1.0})) for _ in range(2))
    second["settings"]["generation"] = {"num_beams": 3}
    second["settings"]["max_tiles"] = 4
    assert compare(first, second).settings == (
        ("max_tiles", ("none", "4")),
        ("generation.num_beams", ("not set", "3")),
    )


def test_captions_are_compared_by_their_parts_of_the_corpus_score() -> None:
    def captions(*texts: str) -> Any:
        samples = [
            fake_sample(str(i), scores={}, answer=text, reply=text, target=[f"a {thing} on the road", f"one {thing}"])
            for i, (text, thing) in enumerate(zip(texts, ("red bus", "brown dog", "small cat"), strict=True))
        ]
        return fake_task(samples, aggregate="cider", main_metric="cider", title="Captions")

    first = captions("a red bus on the road", "nothing", "nothing")
    second = captions("nothing", "a brown dog on the road", "nothing")
    task = compare(fake_results(captions=first), fake_results(captions=second)).tasks[0]
    assert task.num_by_kind == {"gained": 1, "lost": 1}
    assert task.figures[0] is not None
    assert task.figures[0].interval is not None


def test_pictures_come_from_the_first_run_that_has_them() -> None:
    runs = [fake_results(quiz=accuracy_task({"a": score})) for score in (0.0, 1.0)]
    runs[1]["tasks"]["quiz"]["samples"][0]["pictures"] = ["pictures/1.jpg"]
    documents = [(Path(directory) / "results.json", run) for directory, run in zip("xy", runs, strict=True)]
    sample = compare_runs(documents, num_resamples=0).tasks[0].samples[0]
    assert sample.pictures == (Path("y/pictures/1.jpg"),)


def test_no_more_samples_are_shown_than_asked_for() -> None:
    runs = [fake_results(quiz=accuracy_task({str(i): score for i in range(10)})) for score in (0.0, 1.0)]
    task = compare(*runs, max_samples=3).tasks[0]
    assert (len(task.samples), task.num_by_kind) == (3, {"gained": 10})


def test_results_without_tasks_are_an_error() -> None:
    with pytest.raises(ReportError, match="hold no task"):
        compare(fake_results())


def test_too_many_results_are_an_error() -> None:
    with pytest.raises(ReportError, match="27 results"):
        compare(*[fake_results(quiz=accuracy_task({"a": 1.0}))] * 27)


def test_markdown_table_has_a_row_per_task_with_intervals() -> None:
    paper = ({"value": 72.2, "metric": "accuracy", "source": "Table 2", "model": "instruct | interleave"},)
    first = fake_results(quiz=accuracy_task({str(i): float(i % 2) for i in range(20)}, paper=paper))
    second = fake_results(quiz=accuracy_task({str(i): 1.0 for i in range(20)}))
    table = render_markdown(compare(first, second))
    row = next(line for line in table.splitlines() if line.startswith("| Quiz"))
    cells = row.replace("\\|", "").split("|")
    assert cells[3].startswith(" 50.0 [")
    assert cells[4] == " 100.0 [100.0, 100.0] "
    assert cells[5].startswith(" **+50.0 [")
    assert cells[6] == " 72.2 instruct  interleave "


@pytest.mark.parametrize("target", [None, 1, ["a dog", 1.5], [["a dog"]], {"a": 1}], ids=str)
def test_caption_whose_reference_is_no_text_costs_the_interval_alone(target: Any) -> None:
    samples = [fake_sample(str(i), scores={}, answer="a dog runs", target=["a dog", "two cats"]) for i in range(3)]
    task = fake_task(samples, aggregate="cider", main_metric="cider", title="Captions")
    samples[1]["target"] = target
    task = compare(fake_results(captions=task)).tasks[0]
    assert task.figures[0] is not None
    assert task.figures[0].interval is None
