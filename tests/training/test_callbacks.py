"""What a run says of itself: counts, speed, files, sample answers; and that none of it changes the training."""

import json
import logging
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

pytest.importorskip("accelerate", reason="`Trainer` needs the `train` extra")

from tests.picture_batch import make_batch
from tests.training.small_run import TEXTS, Batches, make_trainer
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.training.monitoring import run_metrics
from xgen_mm.training.monitoring.input_counts import InputCounter
from xgen_mm.training.monitoring.run_metrics import CURVE_FILE, METRICS_FILE, RunMetrics
from xgen_mm.training.monitoring.run_record import describe_environment, git_revision
from xgen_mm.training.monitoring.sample_generations import SAMPLES_FILE, SampleGenerations, as_if_nothing_happened
from xgen_mm.training.planning.flops import (
    BatchCounts,
    count_pairs,
    count_pictures,
    forward_cost,
    step_flops,
    trained_parts,
)
from xgen_mm.training.recipe_sections import SamplePrompt, SampleSection

Model = XGenMMForConditionalGeneration


@pytest.fixture
def batches(tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]) -> Batches:
    return Batches(tiny_processor, checker_image)


@pytest.fixture
def section(tmp_path: Path, checker_image: Callable[[int, int], Image.Image]) -> SampleSection:
    checker_image(20, 60).save(tmp_path / "wide.png")
    prompts = (SamplePrompt(text="What is it?", image=str(tmp_path / "wide.png")), SamplePrompt(text="And now?"))
    return SampleSection(steps=4, prompts=prompts, max_new_tokens=3)


class Report(TrainerCallback):
    """Stands for TensorBoard and the like, which come before further callbacks."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.lines.append(dict(logs))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def read(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / METRICS_FILE).read_text())
    return content


def without_timing(directory: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "timing"} for row in read(directory)["rows"]]


def counts_of(batch: dict[str, torch.Tensor], model: Model) -> BatchCounts:
    lengths = batch["attention_mask"].sum(-1).tolist()
    return count_pictures(batch, model.config) + BatchCounts(
        sequences=len(lengths),
        tokens=sum(lengths),
        pairs=sum(count_pairs(length) for length in lengths),
        labelled=int((batch["labels"][:, 1:] != -100).sum()),
    )


def test_metrics_file_counts_what_the_batches_held(tiny_model: Model, batches: Batches, tmp_path: Path) -> None:
    make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], gradient_accumulation_steps=3).train()
    epoch = sum((counts_of(batches([{"text": text}]), tiny_model) for text in TEXTS), start=BatchCounts())
    rows = read(tmp_path)["rows"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["pictures"] == 6 * epoch.pictures == 12
    assert rows[-1]["tiles"] == 6 * epoch.tiles == 48
    assert rows[-1]["tokens"] == 6 * epoch.tokens
    assert rows[-1]["labelled"] == 6 * epoch.labelled
    assert rows[0]["tokens"] == 2 * epoch.tokens


def test_reports_receive_the_figures_although_they_were_added_first(
    tiny_model: Model, batches: Batches, tmp_path: Path
) -> None:
    report = Report()
    make_trainer(tiny_model, batches, tmp_path, callbacks=[report, RunMetrics()]).train()
    assert {"loss", "tokens", "tokens_per_second", "images_per_second", "mfu", "peak_memory_gib"} <= set(
        report.lines[0]
    )


def test_utilisation_is_flops_by_time_and_peak(
    tiny_model: Model, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_metrics, "device_peak", lambda device, precision: 1e9)
    tiny_model.model.vision_tower.requires_grad_(False)
    make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], logging_steps=3).train()
    epoch = sum((counts_of(batches([{"text": text}]), tiny_model) for text in TEXTS), start=BatchCounts())
    flops = step_flops(forward_cost(tiny_model), epoch, trained=trained_parts(tiny_model))
    timing = read(tmp_path)["rows"][0]["timing"]
    assert timing["mfu"] * 1e9 * timing["step_seconds"] * 3 == pytest.approx(flops.model, rel=1e-4)


def test_utilisation_is_left_out_where_the_peak_is_unknown(
    tiny_model: Model, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_metrics, "device_peak", lambda device, precision: None)
    make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], max_steps=2).train()
    timing = read(tmp_path)["rows"][0]["timing"]
    assert "mfu" not in timing
    assert timing["tokens_per_second"] > 0


def test_resumed_run_writes_the_metrics_of_an_uninterrupted_one(
    tiny_model: Model, batches: Batches, tmp_path: Path
) -> None:
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7}
    make_trainer(tiny_model, batches, whole, callbacks=[RunMetrics()], **saving).train()

    tiny_model.load_state_dict(weights)
    make_trainer(tiny_model, batches, broken, callbacks=[RunMetrics(), StopAt(5)], **saving).train()
    # Killed behind the line of step 4, with a checkpoint of step 3.
    shutil.rmtree(broken / "checkpoint-5", ignore_errors=True)
    tiny_model.load_state_dict(weights)
    make_trainer(tiny_model, batches, broken, callbacks=[RunMetrics()], **saving).train(
        resume_from_checkpoint=str(broken / "checkpoint-3")
    )
    assert [row["step"] for row in without_timing(whole)] == [2, 3, 4, 6, 7]
    assert without_timing(broken) == without_timing(whole)
    seconds = [row["timing"]["seconds"] for row in read(broken)["rows"]]
    assert seconds == sorted(seconds)


@pytest.mark.usefixtures("real_curves")
def test_curve_is_drawn_at_the_end(tiny_model: Model, batches: Batches, tmp_path: Path) -> None:
    make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], max_steps=2).train()
    with Image.open(tmp_path / CURVE_FILE) as picture:
        assert picture.format == "PNG"


@pytest.mark.usefixtures("real_curves")
def test_run_goes_on_without_matplotlib_and_says_so_once(
    tiny_model: Model,
    batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    with caplog.at_level(logging.WARNING):
        make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], **saving).train()
    assert caplog.text.count("needs matplotlib: `pip install matplotlib`") == 1
    assert not (tmp_path / CURVE_FILE).exists()
    assert len(read(tmp_path)["rows"]) == 2


def test_run_goes_on_where_metrics_cannot_be_written(
    tiny_model: Model, batches: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f".{METRICS_FILE}.tmp").mkdir()
    with caplog.at_level(logging.WARNING):
        outcome = make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], max_steps=4).train()
    assert outcome.global_step == 4
    assert caplog.text.count("cannot be written") == 1


def test_diverged_loss_leaves_a_readable_file(tiny_model: Model, batches: Batches, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.fill_(float("nan"))
    make_trainer(
        tiny_model, batches, tmp_path, callbacks=[RunMetrics()], max_steps=1, logging_nan_inf_filter=False
    ).train()
    row = json.loads(
        (tmp_path / METRICS_FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )["rows"][0]
    assert row["loss"] == "nan"


def test_progress_bar_shows_loss_and_speed(
    tiny_model: Model, batches: Batches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tiny_model, batches, tmp_path, callbacks=[RunMetrics()], disable_tqdm=False).train()
    bar = capsys.readouterr().err
    assert "tokens/s" in bar
    assert "images/s" in bar
    assert "'learning_rate'" not in bar


def test_packed_rows_count_pairs_within_samples_only(tiny_model: Model) -> None:
    ids = torch.randint(3, 60, (1, 10))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    counter = InputCounter(tiny_model)
    counter.is_counting = True
    tiny_model(input_ids=ids, position_ids=positions, use_cache=False)
    trained, watched = counter.take()
    assert trained.pairs == count_pairs(4) + count_pairs(6)
    assert trained.tokens == 10
    assert watched == BatchCounts()


def test_passes_without_gradients_are_counted_apart(
    tiny_model: Model, tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> None:
    batch = make_batch(tiny_processor, checker_image)
    counter = InputCounter(tiny_model)
    counter.is_counting = True
    with torch.no_grad():
        tiny_model(**batch)
    trained, watched = counter.take()
    assert trained == BatchCounts()
    assert watched == counts_of(batch, tiny_model)


def test_generated_tokens_attend_to_the_cache(tiny_model: Model) -> None:
    counter = InputCounter(tiny_model)
    counter.is_counting = True
    tiny_model.generate(input_ids=torch.randint(3, 60, (1, 5)), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert counter.take()[1].pairs == count_pairs(7)


def test_adapted_model_counts_labels_once(
    tiny_model: Model, tiny_processor: XGenMMProcessor, checker_image: Callable[[int, int], Image.Image]
) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    batch = make_batch(tiny_processor, checker_image)
    expected = counts_of(batch, tiny_model)
    adapted = peft.get_peft_model(
        tiny_model, peft.LoraConfig(target_modules=r".*language_model\..*qkv_proj", task_type="CAUSAL_LM")
    )
    counter = InputCounter(adapted)
    counter.is_counting = True
    adapted(**batch)
    assert counter.take()[0] == expected


def test_counter_that_was_removed_sees_nothing(tiny_model: Model) -> None:
    counter = InputCounter(tiny_model)
    counter.is_counting = True
    counter.remove()
    tiny_model(input_ids=torch.randint(3, 60, (1, 5)))
    assert counter.take()[0] == BatchCounts()


def test_sample_answers_leave_training_bit_identical(
    tiny_model: Model, tiny_processor: XGenMMProcessor, batches: Batches, section: SampleSection, tmp_path: Path
) -> None:
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    make_trainer(tiny_model, batches, tmp_path / "without", callbacks=[RunMetrics()]).train()
    expected = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    tiny_model.load_state_dict(weights)
    metrics = RunMetrics()
    samples = SampleGenerations(section, tiny_processor, metrics=metrics)
    make_trainer(tiny_model, batches, tmp_path / "with", callbacks=[metrics, samples]).train()
    assert tiny_model.training
    assert all(torch.equal(value, expected[name]) for name, value in tiny_model.state_dict().items())
    # What is generated is no training.
    assert without_timing(tmp_path / "with") == without_timing(tmp_path / "without")


def test_sample_answers_come_at_their_steps_and_at_the_end(
    tiny_model: Model, tiny_processor: XGenMMProcessor, batches: Batches, section: SampleSection, tmp_path: Path
) -> None:
    make_trainer(tiny_model, batches, tmp_path, callbacks=[SampleGenerations(section, tiny_processor)]).train()
    rows = [json.loads(line) for line in (tmp_path / SAMPLES_FILE).read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (4, "What is it?"),
        (4, "And now?"),
        (6, "What is it?"),
        (6, "And now?"),
    ]
    assert all(isinstance(row["answer"], str) for row in rows)


def test_sample_answers_equal_those_of_the_saved_model(
    tiny_model: Model, tiny_processor: XGenMMProcessor, batches: Batches, section: SampleSection, tmp_path: Path
) -> None:
    samples = SampleGenerations(section, tiny_processor, as_documents=True)
    make_trainer(tiny_model, batches, tmp_path, callbacks=[samples]).train()
    answer = json.loads((tmp_path / SAMPLES_FILE).read_text().splitlines()[-2])["answer"]
    image = Image.open(tmp_path / "wide.png")
    inputs = tiny_processor(text="<image>What is it?", images=[image], return_tensors="pt")
    output = tiny_model.eval().generate(**inputs, max_new_tokens=3, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    assert answer == tiny_processor.decode(new, skip_special_tokens=True).strip()


def test_sample_answers_of_adapted_model_work(
    tiny_model: Model, tiny_processor: XGenMMProcessor, batches: Batches, section: SampleSection, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    adapted = peft.get_peft_model(
        tiny_model, peft.LoraConfig(target_modules=r".*language_model\..*qkv_proj", task_type="CAUSAL_LM")
    )
    make_trainer(adapted, batches, tmp_path, callbacks=[SampleGenerations(section, tiny_processor)]).train()
    assert len((tmp_path / SAMPLES_FILE).read_text().splitlines()) == 4


def test_resumed_run_drops_answers_behind_its_checkpoint(
    tiny_model: Model, tiny_processor: XGenMMProcessor, batches: Batches, section: SampleSection, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    samples = SampleGenerations(section, tiny_processor)
    make_trainer(tiny_model, batches, tmp_path, callbacks=[samples], **saving).train()
    again = SampleGenerations(section, tiny_processor)
    make_trainer(tiny_model, batches, tmp_path, callbacks=[again], **saving).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-5")
    )
    steps = [json.loads(line)["step"] for line in (tmp_path / SAMPLES_FILE).read_text().splitlines()]
    assert steps == [4, 4, 6, 6]


def test_sharded_model_gives_no_answers_and_a_reason(
    tiny_model: Model,
    tiny_processor: XGenMMProcessor,
    batches: Batches,
    section: SampleSection,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # What tells a sharded weight (`DTensor`) from a plain one.
    tiny_model.lm_head.weight.device_mesh = object()
    with caplog.at_level(logging.WARNING):
        make_trainer(tiny_model, batches, tmp_path, callbacks=[SampleGenerations(section, tiny_processor)]).train()
    assert "the model lies in shards" in caplog.text
    assert not (tmp_path / SAMPLES_FILE).exists()


def test_random_states_and_modes_are_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).train()
    model[0].eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with as_if_nothing_happened(model):
        assert not model[1].training
        torch.rand(3), random.random(), np.random.rand(3)
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_environment_names_versions_but_no_person_or_place() -> None:
    text = describe_environment()
    assert f"torch: {torch.__version__}" in text
    for private in (str(Path.home()), str(Path.cwd()), platform.node()):
        assert private not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_revision_tells_clean_from_changed(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
        environment = {**os.environ, **identity, "GIT_COMMITTER_EMAIL": "a", "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(
            ["git", *command], cwd=tmp_path, check=True, capture_output=True, text=True, env=environment
        )
        return done.stdout.strip()

    assert git_revision(tmp_path) == "unknown (no git repository)"
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--message", "first")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path).endswith("with uncommitted changes")
