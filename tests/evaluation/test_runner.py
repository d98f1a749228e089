"""The runner: batches, interruption, errors of single samples, several processes, and what it writes."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.benchmark_rows import stored, write_rows
from tests.evaluation.scripted_answerer import ScriptedAnswerer
from xgen_mm.evaluation.few_shot import FewShotSettings
from xgen_mm.evaluation.journal import JournalError
from xgen_mm.evaluation.plans import TaskPlan, plan_task, read_samples
from xgen_mm.evaluation.plot import draw_results
from xgen_mm.evaluation.processes import Processes
from xgen_mm.evaluation.prompts import Prompt
from xgen_mm.evaluation.results import ResultsError, find_faults, read_results, write_results
from xgen_mm.evaluation.runner import MOST_ALIKE, RunSettings, failed_tasks, plan_batches, run_tasks
from xgen_mm.evaluation.samples import Sample
from xgen_mm.evaluation.sources import DataSource
from xgen_mm.evaluation.table import format_table
from xgen_mm.evaluation.task import Generation, load_task

NUM_ROWS = 12


def settings(**changes: Any) -> RunSettings:
    values = {"limit": None, "seed": 42, "max_tiles": None, "batch_tokens": 3600, "versions": {"torch": "1"}}
    return RunSettings(**values | changes)


@pytest.fixture
def plan(tmp_path: Path) -> TaskPlan:
    rows = [
        {"id": f"q{number}", "image": stored(number), "question": "Is it red? " + "Really? " * (number % 5)}
        | {"answer": ("yes", "no")[number % 2], "category": "random", "image_source": str(number)}
        for number in range(NUM_ROWS)
    ]
    path = write_rows(rows, tmp_path / "data", layout="hub")
    return plan_task(load_task("pope"), paths={"pope": path}, generators={}, download=False, few_shot=None)


class RecordingAnswerer(ScriptedAnswerer):
    """Keeps the batches it is asked, and replies with something that depends on the whole batch."""

    def __init__(self, fail: Callable[[Prompt], bool] = lambda prompt: False) -> None:
        super().__init__(lambda prompt: "yes")
        self.batches: list[list[str]] = []
        self._fail = fail

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        self.batches.append([prompt.text for prompt in prompts])
        for prompt in prompts:
            if self._fail(prompt):
                raise ValueError("this prompt cannot be answered")
        return [f"yes, one of {len(prompts)} up to {max(len(text) for text in self.batches[-1])}" for _ in prompts]


class Stop(BaseException):
    """An interruption, as from the keyboard."""


class StoppingAnswerer(RecordingAnswerer):
    """Is interrupted at a batch."""

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self._stop_at = stop_at

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        if len(self.batches) == self._stop_at:
            raise Stop
        return super().answer(prompts, generation)


def shows(number: int) -> Callable[[Prompt], bool]:
    return lambda prompt: prompt.pictures[0].source == stored(number)["bytes"]


def test_batches_share_length_and_fit_the_budget() -> None:
    lengths = [10, 200, 12, 30, 11, 199]
    batches = plan_batches(lengths, kinds=[True] * 6, budget=420, num_new=10)
    assert batches == [[1, 5], [3, 2, 4, 0]]
    assert all((max(lengths[index] for index in batch) + 10) * len(batch) <= 420 for batch in batches)


def test_batches_keep_prompts_without_pictures_apart_and_obey_the_largest_size() -> None:
    assert plan_batches([5, 5, 5, 5], kinds=[True, False, True, True], budget=99, num_new=1, max_size=2) == [
        [0, 2],
        [3],
        [1],
    ]


def test_results_have_the_documented_form_and_order(plan: TaskPlan, tmp_path: Path) -> None:
    found = run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run")
    assert found == read_results(tmp_path / "run")
    assert find_faults(found) == []
    task = found["tasks"]["pope"]
    assert [sample["id"] for sample in task["samples"]] == [f"q{number}" for number in range(NUM_ROWS)]
    assert task["num_samples"] == NUM_ROWS
    first = task["samples"][0]
    assert first["prompt"] == "<image> Is it red? "
    assert (first["target"], first["answer"], first["scores"]) == ("yes", "yes", {"accuracy": 1.0})
    assert first["groups"] == {"category": "random", "image": "0", "answer": "yes", "predicted": "yes"}
    with Image.open(tmp_path / "run" / first["pictures"][0]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (30, 20))


def test_limit_takes_the_first_samples(plan: TaskPlan, tmp_path: Path) -> None:
    found = run_tasks([plan], RecordingAnswerer(), settings=settings(limit=3), output=tmp_path)
    assert [sample["id"] for sample in found["tasks"]["pope"]["samples"]] == ["q0", "q1", "q2"]


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_interrupted_and_resumed_run_gives_the_same_file(plan: TaskPlan, tmp_path: Path, stop_at: int) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "whole")
    with pytest.raises(Stop):
        run_tasks([plan], StoppingAnswerer(stop_at), settings=settings(), output=tmp_path / "cut")
    rest = RecordingAnswerer()
    run_tasks([plan], rest, settings=settings(), output=tmp_path / "cut", resume=True)
    assert (tmp_path / "cut/results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()
    whole = RecordingAnswerer()
    run_tasks([plan], whole, settings=settings(), output=tmp_path / "again")
    assert rest.batches == whole.batches[stop_at:]


def test_journal_line_that_was_cut_off_is_computed_again(plan: TaskPlan, tmp_path: Path) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run")
    whole = (tmp_path / "run/results.json").read_bytes()
    journal = tmp_path / "run/journal/rank-000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run", resume=True)
    assert (tmp_path / "run/results.json").read_bytes() == whole


def test_two_processes_share_batches_and_give_the_same_file(plan: TaskPlan, tmp_path: Path) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "one")

    class Silent(Processes):
        """Does not wait, so that one process can play both parts, the second one first."""

        def wait(self) -> None:
            return None

        def share(self, value: Any) -> Any:
            return value

    workers = [RecordingAnswerer(), RecordingAnswerer()]
    for rank in (1, 0):
        part = Silent(rank=rank, world_size=2)
        output = tmp_path / "two"
        output.joinpath("journal").mkdir(parents=True, exist_ok=True)
        run_tasks([plan], workers[rank], settings=settings(), output=output, processes=part)
    assert (tmp_path / "two/results.json").read_bytes() == (tmp_path / "one/results.json").read_bytes()
    assert min(len(worker.batches) for worker in workers) >= 2


def test_finished_run_is_refused_without_resume(plan: TaskPlan, tmp_path: Path) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path)
    with pytest.raises(JournalError, match="already holds a run: add `--resume`"):
        run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 2}, "`limit` was null, now 2"),
        ({"batch_tokens": 99}, "`batch_tokens` was 3600, now 99"),
        ({"versions": {"torch": "2"}}, '`versions.torch` was "1", now "2"'),
    ],
    ids=["limit", "batch-tokens", "versions"],
)
def test_resumed_run_with_other_settings_is_refused_by_name(
    plan: TaskPlan, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path)
    with pytest.raises(JournalError, match="other settings") as found:
        run_tasks([plan], RecordingAnswerer(), settings=settings(**changes), output=tmp_path, resume=True)
    assert message in str(found.value)


def test_crash_in_one_sample_is_reported_with_its_id_and_costs_no_other(plan: TaskPlan, tmp_path: Path) -> None:
    found = run_tasks([plan], RecordingAnswerer(shows(5)), settings=settings(), output=tmp_path)
    task = found["tasks"]["pope"]
    failed = [sample for sample in task["samples"] if sample["error"] is not None]
    assert [(sample["id"], sample["error"]) for sample in failed] == [("q5", "this prompt cannot be answered")]
    assert (task["num_samples"], task["num_errors"]) == (NUM_ROWS, 1)
    # Six of twelve answers are yes; the failed one is a no.
    assert task["metrics"]["accuracy"] == pytest.approx(100 * 6 / 11)
    assert "1 of `pope` failed and do not count" in format_table(found)


def test_sample_that_failed_is_tried_again_when_resumed(plan: TaskPlan, tmp_path: Path) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "whole")
    run_tasks([plan], RecordingAnswerer(shows(5)), settings=settings(), output=tmp_path / "run")
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run", resume=True)
    task = read_results(tmp_path / "run")["tasks"]["pope"]
    assert task["num_errors"] == 0
    assert task["samples"][5] == read_results(tmp_path / "whole")["tasks"]["pope"]["samples"][5]


class FailingAnswerer(RecordingAnswerer):
    """Fails at every prompt that a function says, with a message of its own."""

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        self.batches.append([prompt.text for prompt in prompts])
        if any(map(self._fail, prompts)):
            raise RuntimeError(f"out of memory: {len(self.batches)} GiB at '{prompts[0].text[:9]}'")
        return ["yes" for _ in prompts]


def test_task_whose_first_batches_fail_alike_is_given_up_and_the_next_one_run(
    plan: TaskPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(plan, name="pope:2")
    calls = {"pope": 0, "pope:2": 0}

    class Half(FailingAnswerer):
        def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
            name = "pope:2" if generation is other.generation else "pope"
            calls[name] += 1
            return ["yes" for _ in prompts] if name == "pope:2" else super().answer(prompts, generation)

    other = dataclasses.replace(other, generation=dataclasses.replace(plan.generation))
    answerer = Half(lambda prompt: True)
    found = run_tasks([plan, other], answerer, settings=settings(batch_tokens=1), output=tmp_path / "run")
    assert calls == {"pope": MOST_ALIKE + 1, "pope:2": NUM_ROWS}
    assert "`pope` was given up: its first 3 batches failed, and a short one too: out of memory: 4 GiB" in caplog.text
    assert failed_tasks(found) == ["pope"]
    # A later run begins with what is left.
    again = run_tasks(
        [plan, other], RecordingAnswerer(), settings=settings(batch_tokens=1), output=tmp_path / "run", resume=True
    )
    assert again["tasks"]["pope"]["num_samples"] == NUM_ROWS
    assert failed_tasks(again) == []


def test_task_whose_long_prompts_fail_goes_on(plan: TaskPlan, tmp_path: Path) -> None:
    answerer = FailingAnswerer(lambda prompt: len(prompt.text) > 30)
    found = run_tasks([plan], answerer, settings=settings(batch_tokens=1), output=tmp_path)
    assert found["tasks"]["pope"]["num_samples"] == NUM_ROWS
    assert 3 < found["tasks"]["pope"]["num_errors"] < NUM_ROWS


def test_task_whose_samples_fail_for_different_reasons_goes_on(plan: TaskPlan, tmp_path: Path) -> None:
    class Odd(RecordingAnswerer):
        def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
            self.batches.append([])
            raise ValueError("abcdefghijklmnop"[len(self.batches)])

    found = run_tasks([plan], Odd(), settings=settings(batch_tokens=1), output=tmp_path)
    assert found["tasks"]["pope"]["num_errors"] == NUM_ROWS
    assert failed_tasks(found) == ["pope"]


def test_failed_samples_of_a_good_run_are_all_tried_again(plan: TaskPlan, tmp_path: Path) -> None:
    run_tasks([plan], RecordingAnswerer(lambda p: not shows(0)(p)), settings=settings(), output=tmp_path)
    again = FailingAnswerer(lambda prompt: True)
    found = run_tasks([plan], again, settings=settings(), output=tmp_path, resume=True)
    assert found["tasks"]["pope"]["num_errors"] == NUM_ROWS - 1
    assert {text for batch in again.batches for text in batch} == {
        s["prompt"] for s in found["tasks"]["pope"]["samples"]
    }


def test_fault_in_the_middle_of_the_data_costs_the_rest_and_no_other_task(plan: TaskPlan, tmp_path: Path) -> None:
    def fail() -> Iterator[dict[str, Any]]:
        yield from ({"id": row.id, "image": stored(1), "question": "Red?", "answer": "yes"} for row in first)
        raise RuntimeError("the disk\nis gone")

    first = [sample for sample in read_samples(plan, limit=2) if isinstance(sample, Sample)]
    cut = dataclasses.replace(plan, name="cut", source=DataSource(generator=fail))
    found = run_tasks([cut, plan], RecordingAnswerer(), settings=settings(), output=tmp_path)
    assert [task["num_errors"] for task in found["tasks"].values()] == [1, 0]
    assert found["tasks"]["cut"]["samples"][-1]["error"] == "the disk is gone"
    assert found["tasks"]["cut"]["metrics"]["accuracy"] == 100.0
    assert read_results(tmp_path) == found


def test_few_training_questions_cost_their_task_alone(plan: TaskPlan, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image": stored(1), "question": "Who?", "answers": ["Ann"] * 10}]
    path = write_rows(rows, tmp_path / "few", layout="hub")
    task = load_task("textvqa_few_shot")
    paths = {task.name: path, f"{task.name}:train": path}
    few = plan_task(task, paths=paths, generators={}, download=False, few_shot=FewShotSettings(shots=4))
    found = run_tasks([few, plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run")
    assert failed_tasks(found) == ["textvqa_few_shot:4"]
    assert "1 training questions" in found["tasks"]["textvqa_few_shot:4"]["samples"][0]["error"]


def test_row_that_was_mended_leaves_no_failure_behind(tmp_path: Path) -> None:
    row = {"id": "q1", "image": "p.png", "text": "Is it red?", "label": "yes", "question_id": 1}
    (tmp_path / "p.png").write_bytes(stored(1)["bytes"])
    path = tmp_path / "rows.jsonl"

    def run(content: str, *, resume: bool) -> Any:
        path.write_text(content, encoding="utf-8")
        plan = plan_task(load_task("pope"), paths={"pope": path}, generators={}, download=False, few_shot=None)
        found = run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path / "run", resume=resume)
        return [sample["error"] is None for sample in found["tasks"]["pope"]["samples"]]

    good = json.dumps(row)
    assert run(f"{good}\n{{broken", resume=False) == [True, False]
    assert run(f"{good}\n{good.replace('1,', '2,')}", resume=True) == [True, True]


def test_truncated_picture_is_the_fault_of_its_sample(plan: TaskPlan, tmp_path: Path) -> None:
    rows = [
        {"id": f"q{number}", "image": stored(number), "question": "Is it red?", "answer": "yes"}
        | {"category": "random", "image_source": str(number)}
        for number in range(3)
    ]
    rows[1]["image"] = {"bytes": rows[1]["image"]["bytes"][:45], "path": None}
    path = write_rows(rows, tmp_path / "broken", layout="hub")
    broken = plan_task(load_task("pope"), paths={"pope": path}, generators={}, download=False, few_shot=None)
    found = run_tasks([broken], RecordingAnswerer(), settings=settings(), output=tmp_path / "run")
    errors = {sample["id"]: sample["error"] for sample in found["tasks"]["pope"]["samples"]}
    assert errors["q1"] is not None
    assert (errors["q0"], errors["q2"]) == (None, None)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "x" * 200_000,
        "是",
        "نعم",
        "yes\x00no",
        "\ud800",
        "seventy-two",
        "A, B, C and D",
        "((((",
        "1" * 5000,
    ],
    ids=["empty", "blank", "long", "chinese", "arabic", "null", "surrogate", "words", "letters", "brackets", "digits"],
)
@pytest.mark.parametrize("name", ["digits_one", "digits_largest_of_2"])
def test_adversarial_replies_are_scored_as_wrong(reply: str, name: str, tmp_path: Path) -> None:
    from xgen_mm.tiny.packaged_digits import digit_generators

    plan = plan_task(
        load_task(name), paths={}, generators=digit_generators(num_questions=1), download=False, few_shot=None
    )
    found = run_tasks([plan], ScriptedAnswerer(lambda prompt: reply), settings=settings(), output=tmp_path)
    assert found["tasks"][name]["metrics"] == {"accuracy": 0.0}
    assert read_results(tmp_path)["tasks"][name]["num_errors"] == 0


def test_progress_counts_every_sample(plan: TaskPlan, tmp_path: Path) -> None:
    seen: list[int] = []
    run_tasks(
        [plan],
        RecordingAnswerer(),
        settings=settings(),
        output=tmp_path,
        progress=lambda task, count: seen.append(count),
    )
    assert sum(seen) == NUM_ROWS


def test_table_puts_published_figures_beside_ours(plan: TaskPlan, tmp_path: Path) -> None:
    found = run_tasks([plan], RecordingAnswerer(), settings=settings(limit=4), output=tmp_path)
    table = format_table(found)
    assert "| POPE (`pope`) | f1 | 66.7 |" in table
    assert "87.0 instruct-interleave (arXiv:2408.08872v1 Table 2)" in table
    assert "Only the first 4 questions" in table


def test_plot_is_a_picture_with_a_bar_per_task(plan: TaskPlan, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the plot")
    found = run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path)
    draw_results(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=2**20) or ()}
        assert picture.width > 500
    assert (76, 120, 168) in colours


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[" * 5_000 + "]" * 5_000, "cannot be read|holds no results"),
        ("\udcff", "cannot be read"),
        ('{"format": "xgen-mm-evaluation", "version": [1]}', r"has version \[1\]"),
        ('{"format": "other"}', "holds no results of an evaluation"),
        ('{"format": "xgen-mm-evaluation", "version": 2}', "has version 2"),
        ('{"format": "xgen-mm-evaluation", "version": 1, "model": {}, "settings": {}}', "`tasks` is missing"),
    ],
    ids=["broken", "deep", "deep-and-whole", "no-text", "version", "other", "newer", "incomplete"],
)
def test_results_of_another_form_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ResultsError, match=message) as found:
        read_results(tmp_path)
    assert len(str(found.value).splitlines()) == 1
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("tasks", "pope", "metrics", "f1"), "high"),
        (("tasks", "pope", "metrics", "f1"), float("nan")),
        (("tasks", "pope", "metrics", "f1"), 10**400),
        (("tasks", "pope", "metrics"), None),
        (("tasks", "pope", "paper"), [{"value": "87"}]),
        (("tasks", "pope", "paper"), [None]),
        (("tasks", "pope", "num_samples"), -1),
        (("tasks", "pope", "num_errors"), True),
        (("tasks", "pope", "aggregate"), ["mean"]),
        (("tasks", "pope", "interval"), [1.0]),
        (("tasks", "pope", "samples"), {"0": {}}),
        (("tasks", "pope", "samples", 0), None),
        (("tasks", "pope", "samples", 0, "id"), 1),
        (("tasks", "pope", "samples", 0, "scores"), {"accuracy": "1"}),
        (("tasks", "pope", "samples", 0, "groups"), {"category": ["x"]}),
        (("tasks", "pope", "samples", 0, "pictures"), [{"a": 1}]),
        (("tasks", "pope"), []),
        (("model", "name"), ["x" * 5000]),
        (("settings", "limit"), "2"),
    ],
    ids=str,
)
def test_results_with_any_wrong_value_are_refused_in_one_line(
    plan: TaskPlan, tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    document = run_tasks([plan], RecordingAnswerer(), settings=settings(limit=2), output=tmp_path)
    inner: Any = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ResultsError, match="--resume` writes it again") as found:
        read_results(tmp_path)
    where = ".".join(str(key) for key in place if not isinstance(key, int))
    assert where.split(".")[-1] in str(found.value)
    assert len(str(found.value).splitlines()) == 1
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\udcff"], ids=["cut", "deep", "no-text"])
def test_damaged_settings_of_a_run_are_named_with_a_remedy(plan: TaskPlan, tmp_path: Path, content: str) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(limit=2), output=tmp_path)
    path = tmp_path / "journal" / "settings.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(JournalError, match="choose another `--output`") as found:
        run_tasks([plan], RecordingAnswerer(), settings=settings(limit=2), output=tmp_path, resume=True)
    assert str(path) in str(found.value)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "null",
        '{"task": "pope", "sample": {"id": "q0", "error": null}}',
        '{"task": [], "sample": {"id": 1}}',
    ],
    ids=["deep", "null", "part", "kinds"],
)
def test_damaged_line_of_the_journal_is_computed_again(plan: TaskPlan, tmp_path: Path, line: str) -> None:
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path)
    whole = (tmp_path / "results.json").read_bytes()
    (tmp_path / "journal" / "rank-000.jsonl").write_text(line, encoding="utf-8")
    run_tasks([plan], RecordingAnswerer(), settings=settings(), output=tmp_path, resume=True)
    assert (tmp_path / "results.json").read_bytes() == whole


def test_results_with_a_wrong_field_are_refused_with_its_place(plan: TaskPlan, tmp_path: Path) -> None:
    found = run_tasks([plan], RecordingAnswerer(), settings=settings(limit=2), output=tmp_path)
    found["tasks"]["pope"]["samples"][1]["reply"] = None
    write_results(found, tmp_path / "results.json")
    with pytest.raises(ResultsError, match=r"tasks\.pope\.samples\[1\]\.reply"):
        read_results(tmp_path)


@pytest.mark.slow
def test_two_real_processes_give_the_file_of_one_and_survive_being_killed(tmp_path: Path) -> None:
    arguments = ["-m", "xgen_mm.cli.main", "evaluate", "debug", "--limit", "8", "--batch-tokens", "400", "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(command: list[str]) -> None:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)

    run([sys.executable, *arguments, str(tmp_path / "one")])
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*both, *arguments, str(tmp_path / "two")])
    whole = (tmp_path / "one/results.json").read_bytes()
    assert (tmp_path / "two/results.json").read_bytes() == whole
    assert all((tmp_path / f"two/journal/rank-00{rank}.jsonl").stat().st_size for rank in (0, 1))

    cut = tmp_path / "cut"
    with subprocess.Popen([sys.executable, *arguments, str(cut)], env=environment, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and sum(path.read_bytes().count(b"\n") for path in cut.glob("journal/*.jsonl")) < 9:
            pass
        child.kill()
    assert not (cut / "results.json").exists()
    run([*both, *arguments, str(cut), "--resume"])
    assert (cut / "results.json").read_bytes() == whole
    assert json.loads(whole)["tasks"]["digits_one"]["num_samples"] == 8
