"""Examples in prompts: which are drawn, how they are written, and what a base model gets to see."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.benchmark_rows import stored, write_rows
from tests.evaluation.scripted_answerer import ScriptedAnswerer
from xgen_mm.evaluation.few_shot import Demonstrator, FewShotSettings, draw_query_set, few_shot_generation
from xgen_mm.evaluation.plans import TaskPlan, plan_task, prompt_of, read_samples
from xgen_mm.evaluation.prompts import Prompt
from xgen_mm.evaluation.runner import RunSettings, run_tasks
from xgen_mm.evaluation.samples import Sample
from xgen_mm.evaluation.task import Generation, TaskError, load_task

SETTINGS = RunSettings(limit=None, seed=42, max_tiles=None, batch_tokens=4096, versions={})


def question(number: int, *, word: str) -> dict[str, Any]:
    answers = [f"{word} {number}"] * 10
    return {"question_id": number, "image": stored(number), "question": f"Q{number}?", "answers": answers}


def make_plan(
    directory: Path, shots: int, *, name: str = "textvqa_few_shot", num_train: int = 5, **settings: Any
) -> TaskPlan:
    questions = write_rows([question(number, word="test") for number in range(4)], directory / "val", layout="hub")
    rows = [question(100 + number, word="train") for number in range(num_train)]
    train = write_rows(rows, directory / "train", layout="hub")
    return plan_task(
        load_task(name),
        paths={name: questions, f"{name}:train": train},
        generators={},
        download=False,
        few_shot=FewShotSettings(shots=shots, **settings),
    )


def samples_of(plan: TaskPlan) -> list[Sample]:
    return [sample for sample in read_samples(plan, limit=None) if isinstance(sample, Sample)]


def test_prompt_with_examples_is_that_of_openflamingo(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2)
    sample = samples_of(plan)[0]
    drawn = random.Random(42).sample([100 + int(i) for i in np.random.RandomState(42).choice(5, 5, replace=False)], 2)
    examples = "".join(f"<image>Question:Q{number}? Short answer:train {number}<|endofchunk|>\n" for number in drawn)
    prompt = prompt_of(plan, sample)
    assert prompt.text == f"{examples}<image>Question:Q0? Short answer:"
    assert prompt.style == "text"
    assert [picture.source for picture in prompt.shown_pictures] == [stored(number)["bytes"] for number in (*drawn, 0)]


def test_prompt_without_examples_has_two_as_text_only(tmp_path: Path) -> None:
    prompt = prompt_of(make_plan(tmp_path, 0), samples_of(make_plan(tmp_path, 0))[0])
    assert prompt.text.count("<|endofchunk|>") == 2
    assert prompt.text.count("<image>") == 1
    assert prompt.text.endswith("\n<image>Question:Q0? Short answer:")


def test_captions_are_written_as_openflamingo_writes_them(tmp_path: Path) -> None:
    rows = [
        {"image_id": number, "image": stored(number), "caption_str": [f" caption {number} ", "other"]}
        for number in range(3)
    ]
    path = write_rows(rows, tmp_path / "rows", layout="hub")
    plan = plan_task(
        load_task("textcaps_few_shot"),
        paths={"textcaps_few_shot": path, "textcaps_few_shot:train": path},
        generators={},
        download=False,
        few_shot=FewShotSettings(shots=1),
    )
    text = prompt_of(plan, samples_of(plan)[0]).text
    assert text.startswith("<image>Output:caption ")
    assert text.endswith("<|endofchunk|>\n<image>Output:")


def test_draws_do_not_depend_on_the_number_of_questions(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2)
    assert [sample.pieces for sample in read_samples(plan, limit=2)] == [s.pieces for s in samples_of(plan)[:2]]
    assert len({sample.pieces[:-1] for sample in samples_of(plan)}) > 1


def test_query_set_is_drawn_by_seed_and_size(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2, num_train=9, query_set_size=4)
    assert plan.train is not None
    assert plan.few_shot is not None
    found = [sample.id for sample in draw_query_set(plan.task, plan.train, plan.few_shot)]
    assert found == [str(100 + int(i)) for i in np.random.RandomState(42).choice(9, 4, replace=False)]


def test_too_few_training_questions_are_refused(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 8)
    with pytest.raises(TaskError, match="gives 5 training questions for `textvqa_few_shot`; 8 are needed"):
        Demonstrator(plan.task, plan.train, plan.few_shot)


def test_missing_training_questions_are_named(tmp_path: Path) -> None:
    path = write_rows([question(1, word="x")], tmp_path, layout="hub")
    with pytest.raises(TaskError, match="--data vqav2_few_shot:train=PATH"):
        plan_task(
            load_task("vqav2_few_shot"),
            paths={"vqav2_few_shot": path},
            generators={},
            download=False,
            few_shot=FewShotSettings(shots=4),
        )


@pytest.mark.parametrize(("decoding", "num_beams"), [("openflamingo", 3), ("mm1", 1)])
@pytest.mark.parametrize(("name", "length"), [("vqav2_few_shot", 5), ("coco_few_shot", 20)])
def test_presets_decide_beams_and_tasks_the_length(decoding: Any, num_beams: int, name: str, length: int) -> None:
    found = few_shot_generation(load_task(name), FewShotSettings(shots=4, decoding=decoding))
    assert found == Generation(
        max_new_tokens=length, num_beams=num_beams, length_penalty=0.0, stop=("<|endofchunk|>",)
    )


def test_preset_seed_and_size_are_recorded_with_the_result(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 4, decoding="mm1")
    found = run_tasks([plan], ScriptedAnswerer(lambda prompt: "x"), settings=SETTINGS, output=tmp_path / "run")
    assert found["settings"]["generation"]["textvqa_few_shot:4"]["few_shot"] == {
        "shots": 4,
        "decoding": "mm1",
        "seed": 42,
        "query_set_size": 2048,
    }


def test_published_figures_are_those_with_as_many_examples(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 4)
    found = run_tasks([plan], ScriptedAnswerer(lambda prompt: "x"), settings=SETTINGS, output=tmp_path / "run")
    figures = found["tasks"]["textvqa_few_shot:4"]["paper"]
    assert [(figure["model"], figure["value"]) for figure in figures] == [("base-r-v1.5", 54.2), ("base-r-v1", 46.1)]


def test_replies_are_cut_before_they_are_scored(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2)

    def reply(prompt: Prompt) -> str:
        return f"test {prompt.text[-16]}, or so Question:What?"

    found = run_tasks([plan], ScriptedAnswerer(reply), settings=SETTINGS, output=tmp_path / "run")
    samples = found["tasks"]["textvqa_few_shot:2"]["samples"]
    assert [sample["answer"] for sample in samples] == ["test 0", "test 1", "test 2", "test 3"]
    assert found["tasks"]["textvqa_few_shot:2"]["metrics"] == {"accuracy": 100.0}


def test_tasks_for_base_models_ask_for_a_number_of_examples(tmp_path: Path) -> None:
    path = write_rows([question(1, word="x")], tmp_path, layout="hub")
    task = load_task("textvqa_few_shot")
    with pytest.raises(TaskError, match="say how many examples, `--few-shot 4`"):
        plan_task(task, paths={task.name: path}, generators={}, download=False, few_shot=None)


def test_tasks_for_instruct_models_refuse_examples(tmp_path: Path) -> None:
    path = write_rows([question(1, word="x")], tmp_path, layout="hub")
    task = load_task("textvqa_val")
    with pytest.raises(TaskError, match="takes no examples in the prompt"):
        plan_task(task, paths={task.name: path}, generators={}, download=False, few_shot=FewShotSettings(shots=4))


@pytest.mark.parametrize("shots", [0, 2])
def test_example_is_never_the_question_itself(shots: int, tmp_path: Path) -> None:
    path = write_rows([question(number, word="secret") for number in range(3)], tmp_path, layout="hub")
    name = "textvqa_few_shot"
    plan = plan_task(
        load_task(name),
        paths={name: path, f"{name}:train": path},
        generators={},
        download=False,
        few_shot=FewShotSettings(shots=shots),
    )
    prompts = [prompt_of(plan, sample).text for sample in samples_of(plan)]
    assert [prompt.count("secret") for prompt in prompts] == [2] * 3
    assert not any(f"secret {number}" in prompt for number, prompt in enumerate(prompts))


def test_training_row_without_picture_is_no_example(tmp_path: Path) -> None:
    questions = write_rows([question(0, word="test")], tmp_path / "val", layout="hub")
    rows = [question(100 + number, word="train") | ({"image": None} if number % 2 else {}) for number in range(8)]
    train = write_rows(rows, tmp_path / "train", layout="hub")
    name = "textvqa_few_shot"
    paths = {name: questions, f"{name}:train": train}
    plan = plan_task(load_task(name), paths=paths, generators={}, download=False, few_shot=FewShotSettings(shots=4))
    prompt = prompt_of(plan, samples_of(plan)[0])
    assert len(prompt.shown_pictures) == 5
    assert not any(f"Q{100 + number}?" in prompt.text for number in (1, 3, 5, 7))
