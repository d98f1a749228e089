"""lmms-eval's own tasks, run by lmms-eval through the adapter, offline, with the small packaged model."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make test-eval")

from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.errors import XGenMMError
from xgen_mm.evaluation.harness.adapter import ModelAdapter, Request
from xgen_mm.evaluation.harness.front import run_harness_tasks
from xgen_mm.evaluation.harness.lmms_eval_chat import XGenMMChat
from xgen_mm.evaluation.harness.lmms_eval_simple import XGenMMSimple
from xgen_mm.evaluation.prompted_model import GenerationSettings, ModelReply, PromptedModel
from xgen_mm.evaluation.prompts import WrittenPrompt
from xgen_mm.evaluation.results import TaskResult

from .benchmark_rows import ROWS
from .conftest import WriteRows

VQA = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
# What the metrics make of the replies below, worked out by hand from the harness's rules.
HARNESS_SCORES = {
    # 3992 shares three of four characters with 392; 86 and 9254 are read right.
    "docvqa_val": ("anls", 56.25),
    "chartqa": ("relaxed_overall", 25.0),
    "ocrbench": ("ocrbench_accuracy", 0.3),
    "realworldqa": ("exact_match", 50.0),
    # One of four right, by three of ten annotators.
    "textvqa_val": ("exact_match", 22.5),
}
Results = dict[str, TaskResult]


@pytest.fixture(scope="module")
def harness_results(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, rows_file: WriteRows
) -> Results:
    """All benchmarks of `benchmark_rows`, as the harness has them."""
    results = run_harness_tasks(model, processor, list(ROWS), data={name: rows_file(name) for name in ROWS})
    assert results is not None
    return results


def test_plugin_is_found_by_the_harness_in_both_forms() -> None:
    from lmms_eval.models import get_model

    assert "xgen_mm" in {entry.name for entry in entry_points(group="lmms_eval.models")}
    assert get_model("xgen_mm") is XGenMMChat
    assert get_model("xgen_mm", force_simple=True) is XGenMMSimple
    assert get_model("blip3") is XGenMMChat


@pytest.mark.parametrize("name", sorted(ROWS))
def test_harness_task_runs_on_local_rows_without_error(harness_results: Results, name: str) -> None:
    result = harness_results[name]
    assert result["num_samples"] == len(ROWS[name])
    assert result["num_errors"] == 0
    assert result["main_metric"] in result["metrics"]
    assert (result["harness"]["name"], result["harness"]["task"]) == ("lmms-eval", name)


@pytest.mark.parametrize("name", sorted(HARNESS_SCORES))
def test_harness_task_scores_by_the_harness_own_rule(harness_results: Results, name: str) -> None:
    metric, value = HARNESS_SCORES[name]
    result = harness_results[name]
    assert result["metrics"][metric] == pytest.approx(value)
    assert result["harness"]["metrics"][metric] == pytest.approx(value / 100)


def test_harness_task_prompt_is_the_harness_own(harness_results: Results) -> None:
    prompt = harness_results["textvqa_val"]["samples"][0]["prompt"]
    assert prompt == f"<|user|>\n<image>\nWhat number is in the image?\n{VQA}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        pytest.param("muirbench", "Image 1: <image>\nImage 2: <image>\nWhich", id="marks-in-the-text"),
        pytest.param("mmmu_val", "Image 1:<image>\nImage 2:<image>\nWhich", id="task-places-them"),
        pytest.param("qbench2_dev", "<image>\n<image>\nWhich", id="no-marks"),
    ],
)
def test_several_pictures_stand_where_the_task_has_them(harness_results: Results, name: str, start: str) -> None:
    assert harness_results[name]["samples"][0]["prompt"].startswith(f"<|user|>\n{start}")


def test_image_marks_of_mantis_become_places_of_pictures(harness_results: Results) -> None:
    prompt = harness_results["mantis"]["samples"][0]["prompt"]
    assert "Image 1: <image>\nImage 2: <image>\nWhich image" in prompt
    assert prompt.count("<image>") == 2


def test_results_have_the_form_of_our_results_file(harness_results: Results) -> None:
    from xgen_mm.evaluation.results import find_faults, make_results

    assert find_faults(make_results(model={}, settings={}, tasks=harness_results)) == []
    json.dumps(harness_results, allow_nan=False)


def test_harness_run_twice_in_one_process_scores_the_same(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    rows_file: WriteRows,
    harness_results: Results,
) -> None:
    again = run_harness_tasks(model, processor, ["ocrbench"], data={"ocrbench": rows_file("ocrbench")})
    assert again is not None
    assert again["ocrbench"] == harness_results["ocrbench"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        # The harness wants the bare word: "Yes." is wrong.
        pytest.param("Yes", {"pope_accuracy": 50.0, "pope_recall": 100.0, "mme_perception_score": 50.0}, id="yes"),
        pytest.param("Yes.", {"pope_accuracy": 0.0, "pope_recall": 0.0, "mme_perception_score": 50.0}, id="yes-stop"),
        pytest.param("", {"pope_accuracy": 0.0, "pope_recall": 0.0, "mme_perception_score": 0.0}, id="nothing"),
        pytest.param("A", {"average": 25.0, "scienceqa": 50.0, "ai2d": 25.0, "gpt_eval_score": 100.0}, id="letter"),
    ],
)
def test_model_that_always_says_the_same_scores_as_the_rules_say(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    rows_file: WriteRows,
    monkeypatch: pytest.MonkeyPatch,
    reply: str,
    expected: dict[str, float],
) -> None:
    def say(self: PromptedModel, prompts: list[WrittenPrompt], settings: GenerationSettings) -> list[ModelReply]:
        return [ModelReply(text=reply)] * len(prompts)

    monkeypatch.setattr(PromptedModel, "generate", say)
    names = ["pope", "mme", "mmstar", "scienceqa_img", "ai2d", "mmbench_en_dev_static"]
    results = run_harness_tasks(model, processor, names, data={name: rows_file(name) for name in names})
    assert results is not None
    found = {key: value for name in ("pope", "mme", "mmstar") for key, value in results[name]["metrics"].items()}
    found |= {"scienceqa": results["scienceqa_img"]["metrics"]["exact_match"]}
    found |= {"ai2d": results["ai2d"]["metrics"]["exact_match"], **results["mmbench_en_dev_static"]["metrics"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_sample_that_fails_is_reported_and_the_others_count(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    rows_file: WriteRows,
    monkeypatch: pytest.MonkeyPatch,
    harness_results: Results,
) -> None:
    draw = ModelAdapter._draw

    def fail_once(self: ModelAdapter, request: Request) -> Any:
        drawn = draw(self, request)
        if request.name == "Task `realworldqa`, document 2":
            raise OSError("broken data stream")
        return drawn

    monkeypatch.setattr(ModelAdapter, "_draw", fail_once)
    results = run_harness_tasks(model, processor, ["realworldqa"], data={"realworldqa": rows_file("realworldqa")})
    assert results is not None
    result = results["realworldqa"]
    assert result["num_errors"] == 1
    assert [sample["error"] for sample in result["samples"]] == [None, None, "OSError: broken data stream", None]
    whole = harness_results["realworldqa"]["samples"]
    assert [result["samples"][index]["reply"] for index in (0, 1, 3)] == [whole[i]["reply"] for i in (0, 1, 3)]


def test_interrupted_harness_run_goes_on_and_gives_the_same(
    model: XGenMMForConditionalGeneration,
    processor: XGenMMProcessor,
    rows_file: WriteRows,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    names = ["realworldqa", "chartqa"]
    arguments: dict[str, Any] = {"data": {name: rows_file(name) for name in names}, "resume_dir": tmp_path / "run"}
    arguments["thumbnails_dir"] = tmp_path / "resumed"
    generate = PromptedModel.generate
    calls: list[int] = []

    def stop_after_one(
        self: PromptedModel, prompts: list[WrittenPrompt], settings: GenerationSettings
    ) -> list[ModelReply]:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, settings)

    whole = run_harness_tasks(model, processor, names, data=arguments["data"], thumbnails_dir=tmp_path / "whole")
    monkeypatch.setattr(PromptedModel, "generate", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run_harness_tasks(model, processor, names, **arguments)
    resumed = run_harness_tasks(model, processor, names, **arguments)
    # One batch was done, one was interrupted, and only that one was computed again.
    assert len(calls) == 3
    assert whole is not None
    assert resumed == whole
    shown = {name for result in whole.values() for sample in result["samples"] for name in sample["pictures"]}
    assert all((tmp_path / run / name).is_file() for run in ("whole", "resumed") for name in shown)
    assert shown


def test_resumed_harness_run_with_other_settings_is_refused(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, rows_file: WriteRows, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"data": {"chartqa": rows_file("chartqa")}, "resume_dir": tmp_path / "run", "limit": 1}
    run_harness_tasks(model, processor, ["chartqa"], **arguments)
    with pytest.raises(XGenMMError, match="max_batch_tokens"):
        run_harness_tasks(model, processor, ["chartqa"], batch_tokens=100, **arguments)


def test_harness_task_without_data_is_not_fetched(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor
) -> None:
    with pytest.raises(XGenMMError, match=r"`pope` of lmms-eval has no data: give `--data lmms:pope=PATH`"):
        run_harness_tasks(model, processor, ["pope"])


def test_unknown_harness_task_is_named_with_the_closest(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, rows_file: WriteRows
) -> None:
    with pytest.raises(XGenMMError, match=r"no task `popee`; did you mean `pope`\?"):
        run_harness_tasks(model, processor, ["popee"], data={"popee": rows_file("pope")})


def test_likelihood_task_picks_the_number_in_the_picture(
    model: XGenMMForConditionalGeneration, processor: XGenMMProcessor, rows_file: WriteRows, tmp_path: Path
) -> None:
    (tmp_path / "likelihood_utils.py").write_text(
        "NUMBERS = ['407', '392', '86', '9254']\n"
        "def visual(doc): return [doc['image']]\n"
        "def text(doc): return 'What number is in the image?'\n"
        "def choices(doc): return NUMBERS\n"
        "def target(doc): return int(doc['index'])\n"
    )
    functions = {"visual": "visual", "text": "text", "choice": "choices", "target": "target"}
    lines = [f"doc_to_{key}: !function likelihood_utils.{name}" for key, name in functions.items()]
    head = {
        "task": "likelihood",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(rows_file("mmstar"))}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "likelihood.yaml").write_text(yaml.safe_dump(head) + "\n".join(lines))
    results = run_harness_tasks(model, processor, ["likelihood"], include_path=tmp_path)
    assert results is not None
    assert results["likelihood"]["metrics"]["acc"] == 100.0


@pytest.fixture(scope="module")
def command_arguments(rows_file: WriteRows) -> list[str]:
    """`xgen-mm evaluate` on tasks of the harness and one of ours, with the small packaged model."""
    theirs = [word for name in ("ocrbench", "muirbench") for word in ("--data", f"lmms:{name}={rows_file(name)}")]
    names = ["lmms:ocrbench", "lmms:muirbench", "textvqa_val"]
    return ["evaluate", *names, *theirs, "--data", f"textvqa_val={rows_file('textvqa_val')}", "--device", "cpu"]


@pytest.fixture(scope="module")
def command_results(command_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Its `results.json`, from one process."""
    from xgen_mm.cli.main import main

    output = tmp_path_factory.mktemp("one")
    assert main([*command_arguments, "--output", str(output / "run")]) == 0
    return (output / "run" / "results.json").read_bytes()


def test_evaluate_command_runs_harness_tasks_beside_ours(command_results: bytes, harness_results: Results) -> None:
    tasks = json.loads(command_results)["tasks"]
    assert set(tasks) == {"lmms:ocrbench", "lmms:muirbench", "textvqa_val"}
    assert tasks["lmms:ocrbench"]["metrics"] == harness_results["ocrbench"]["metrics"]
    samples = [sample | {"pictures": []} for sample in tasks["lmms:ocrbench"]["samples"]]
    assert samples == harness_results["ocrbench"]["samples"]
    assert tasks["textvqa_val"]["metrics"]["accuracy"] == pytest.approx(22.5)


def test_two_processes_give_the_same_file_as_one(
    command_arguments: list[str], command_results: bytes, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "xgen_mm.cli.main", *command_arguments, "--output", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run" / "results.json").read_bytes() == command_results
    # Both have worked.
    journal = tmp_path / "run" / "journal" / "lmms-eval" / "chat" / "journal"
    assert sorted(path.name for path in journal.glob("rank-*")) == ["rank-000.jsonl", "rank-001.jsonl"]
