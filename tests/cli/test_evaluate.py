"""`xgen-mm evaluate`: what it checks first, prints and writes; models really answer here."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmark_rows import ROWS, stored, write_rows
from xgen_mm.cli import main as entry
from xgen_mm.cli.evaluate import data_option
from xgen_mm.evaluation import runner
from xgen_mm.evaluation.results import read_results


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    assert entry.main(["evaluate", *arguments]) == status
    found = capsys.readouterr()
    return found.out, found.err


def test_evaluate_debug_suite_scores_the_small_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "debug", "--limit", "3", "--output", str(tmp_path))
    rows = re.findall(r"\| .* \(`(digits_\w+)`\) \| accuracy \| ([\d.]+) \|", out)
    assert [name for name, _ in rows] == [
        "digits_one",
        "digits_three",
        "digits_count",
        "digits_largest_of_2",
        "digits_largest_of_4",
        "digits_number_in_image",
    ]
    # Guessing a digit is right once in ten times.
    assert sum(float(value) for _, value in rows) / len(rows) > 70
    assert "97.6 xgen-mm-tiny" in out
    assert f"Wrote {tmp_path / 'results.json'}" in err
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == out
    assert (tmp_path / "results.png").stat().st_size > 1000
    sample = read_results(tmp_path)["tasks"]["digits_largest_of_2"]["samples"][0]
    assert sample["prompt"].startswith("Image 1: <image>Image 2: <image>Which image shows")
    assert len(sample["pictures"]) == 2


def test_evaluate_own_data_with_a_random_model(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pope = write_rows(ROWS["pope", "hub"], tmp_path / "pope", layout="hub")
    mmmu = write_rows(ROWS["mmmu_val", "hub"], tmp_path / "mmmu", layout="hub")
    arguments = ["pope", "mmmu_val", "--model", str(checkpoint), "--output", str(tmp_path / "run"), "--json"]
    arguments += ["--data", f"pope={pope}", "--data", f"mmmu_val={mmmu}", "--max-tiles", "3", "--max-new-tokens", "4"]
    out, _ = run(capsys, *arguments)
    assert set(json.loads(out)) == {"pope", "mmmu_val"}
    results = read_results(tmp_path / "run")
    assert results["settings"]["max_tiles"] == 3
    assert results["settings"]["generation"]["pope"]["generation"]["max_new_tokens"] == 4
    assert [task["num_errors"] for task in results["tasks"].values()] == [0, 0]


def test_evaluate_few_shot_with_a_random_model_searches_with_beams(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(ROWS["textvqa_few_shot", "hub"], tmp_path / "rows", layout="hub")
    arguments = ["textvqa_few_shot", "--few-shot", "2", "--model", str(checkpoint), "--output", str(tmp_path / "run")]
    arguments += ["--data", f"textvqa_few_shot={path}", "--data", f"textvqa_few_shot:train={path}", "--limit", "2"]
    run(capsys, *arguments)
    results = read_results(tmp_path / "run")
    settings = results["settings"]["generation"]["textvqa_few_shot:2"]
    assert (settings["generation"]["num_beams"], settings["few_shot"]["decoding"]) == (3, "openflamingo")
    assert results["tasks"]["textvqa_few_shot:2"]["num_errors"] == 0


def test_evaluate_second_run_needs_resume(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["digits_one", "--model", str(checkpoint), "--limit", "1", "--output", str(tmp_path), "--no-pictures"]
    run(capsys, *arguments)
    before = (tmp_path / "results.json").read_bytes()
    _, err = run(capsys, *arguments, status=2)
    assert "already holds a run: add `--resume`" in err
    run(capsys, *arguments, "--resume")
    assert (tmp_path / "results.json").read_bytes() == before
    assert not (tmp_path / "pictures").exists()


def test_evaluate_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_tasks", interrupt)
    _, err = run(capsys, "digits_one", "--limit", "1", "--output", str(tmp_path), status=130)
    assert err.endswith(f"Interrupted; `--output {tmp_path} --resume` goes on with it.\n")


def test_evaluate_dry_run_checks_data_and_loads_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(ROWS["mmstar", "hub"], tmp_path, layout="hub")
    out, _ = run(capsys, "mmstar", "--data", f"mmstar={path}", "--model", str(tmp_path), "--dry-run")
    assert out == f"mmstar: `{path}`, layout hub\n"


def test_evaluate_refused_task_does_not_stop_the_others(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pope = write_rows(ROWS["pope", "hub"], tmp_path / "pope", layout="hub")
    arguments = ["safety", "--data", f"pope={pope}", "--data", f"hallusion_bench={pope}", "--model", str(checkpoint)]
    out, err = run(capsys, *arguments, "--dry-run", status=1)
    assert out == f"pope: `{pope}`, layout hub\n"
    assert err.count("Left out: ") == 4
    assert "Left out: the data of `hallusion_bench` have the columns id, image, " in err
    out, err = run(capsys, *arguments, "--output", str(tmp_path / "run"), status=1)
    assert "Left out: `vlguard_unsafes` has no data: give `--data vlguard_unsafes=PATH`.\n" in err
    assert list(read_results(tmp_path / "run")["tasks"]) == ["pope"]


def test_evaluate_task_without_rows_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(ROWS["vlguard_unsafes", "official"][:1], tmp_path / "rows", layout="official")
    arguments = ["vlguard_safe_safes", "--data", f"vlguard_safe_safes={path}", "--model", str(checkpoint)]
    _, err = run(capsys, *arguments, "--output", str(tmp_path / "run"), status=1)
    assert "`vlguard_safe_safes` has no figure: no row of its data takes part in it.\n" in err


def test_evaluate_list_shows_suites_tasks_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--list")
    assert "xgen_mm_paper" in out
    assert re.search(r"mm_vet .*needs a judge", out)
    found = json.loads(run(capsys, "--list", "--json")[0])
    assert found["tasks"]["mathvista_mini"]["judge"] == "optional"
    assert found["suites"]["multi_image"]["tasks"] == ["blink", "q_bench_2", "mantis_eval", "muirbench"]


def test_evaluate_everything_that_is_missing_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "paper_2025", status=2)
    assert all(f"`{name}` has no data" in err for name in ("seed_image", "pope", "hallusion_bench"))
    assert "`mm_vet` is graded by a language model: name one with `--judge-url`" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a benchmark or a suite"),
        (["pope_"], "did you mean `pope`?"),
        (["pope", "--data", "pope"], "'pope' names no data; write TASK=PATH"),
        (["pope", "--data", "mme=x"], "this run has no task `mme`"),
        (["pope", "--data", "pope=gone.parquet"], "`pope`: there is no `gone.parquet`"),
        (["vlguard_unsafes"], "give `--data vlguard_unsafes=PATH`"),
        (["textvqa_few_shot", "--data", "textvqa_few_shot=."], "say how many examples"),
        (["textvqa_few_shot", "--few-shot", "4"], "`--data textvqa_few_shot:train=PATH`"),
        (["digits_one", "--few-shot", "4"], "`--few-shot`: `digits_one` takes no examples"),
        (["debug", "pope", "--few-shot", "4"], "`digits_number_in_image`, `pope` take no examples"),
        (["digits_one", "--decoding", "mm1"], "`--decoding` is for tasks with examples"),
        (["digits_one", "--few-shot", "many"], "'many' is no number of examples"),
        (["digits_one", "--judge-url", "http://x", "--model", "gone"], "needs `--judge-model`"),
        (["digits_one", "--judge-model", "x"], "needs `--judge-url`"),
        (["digits_one", "--judge-url", "x", "--judge-model", "x", "--model", "gone"], "begins with http"),
        (["lmms-eval:pope"], "those of lmms-eval are called `lmms:NAME`"),
        (["digits_one", "--model", "gone"], "`gone` is no directory"),
    ],
)
def test_evaluate_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, *arguments, status=2)
    assert message in err
    assert err.count("\n") == 1


def test_evaluate_smallest_canvas_is_named_if_too_few_tiles_are_allowed(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["digits_one", "--model", str(checkpoint), "--max-tiles", "2", "--output", str(tmp_path)]
    _, err = run(capsys, *arguments, status=2)
    assert "this checkpoint's smallest canvas has 3 tiles with the thumbnail" in err


def test_evaluate_harness_tasks_are_added_to_the_results(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from xgen_mm.evaluation.harness import front

    asked: dict[str, Any] = {}

    def play(model: Any, processor: Any, tasks: list[str], **options: Any) -> dict[str, Any]:
        asked.update(options, tasks=tasks)
        task = {"title": "pope", "metrics": {"f1": 0.5}, "main_metric": "f1", "higher_is_better": True, "paper": []}
        return {"pope": task | {"num_samples": 0, "num_errors": 0, "harness": {"name": "lmms-eval"}, "samples": []}}

    monkeypatch.setattr(front, "run_harness_tasks", play)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    data = tmp_path / "pope.parquet"
    arguments = ["digits_one", "lmms:pope", "--data", f"lmms:pope={data}", "--limit", "1"]
    out, _ = run(capsys, *arguments, "--model", str(checkpoint), "--output", str(tmp_path / "run"))
    assert (asked["tasks"], asked["data"], asked["download"]) == (["pope"], {"pope": data}, False)
    assert list(read_results(tmp_path / "run")["tasks"]) == ["digits_one", "lmms:pope"]
    assert "(`lmms:pope`)" in out


def test_evaluate_picture_that_is_an_address_is_never_fetched(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "1", "imageId": "http://127.0.0.1:9/cat.png", "question": "Where?", "answer": "left"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    arguments = ["gqa", "--data", f"gqa={tmp_path / 'rows.jsonl'}", "--model", str(checkpoint)]
    _, err = run(capsys, *arguments, "--output", str(tmp_path / "run"), status=1)
    (sample,) = read_results(tmp_path / "run")["tasks"]["gqa"]["samples"]
    assert "the picture is an address" in sample["error"]
    assert f"`gqa` has no figure: all 1 samples failed, the first with: {sample['error']}\n" in err


def test_evaluate_pictures_of_odd_shapes_reach_the_model(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row, image=stored(number)) for number, row in enumerate(ROWS["ocrbench", "hub"])]
    path = write_rows(rows, tmp_path / "rows", layout="hub")
    arguments = ["ocrbench", "--data", f"ocrbench={path}", "--model", str(checkpoint), "--batch-tokens", "1"]
    arguments += ["--max-new-tokens", "4"]
    run(capsys, *arguments, "--output", str(tmp_path / "run"))
    assert read_results(tmp_path / "run")["tasks"]["ocrbench"]["num_errors"] == 0


@pytest.mark.parametrize("written", ["~/my rows", "file://{home}/my%20rows"])
def test_data_of_a_task_may_be_written_with_a_tilde_or_as_an_address_of_a_file(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_option(f"gqa={written.format(home=tmp_path)}") == ("gqa", tmp_path / "my rows")
