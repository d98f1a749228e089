"""Plans of runs: sizes of parts, data of a step and memory, each against what the run itself would have."""

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.training.arguments import training_arguments
from xgen_mm.training.batches import make_loader
from xgen_mm.training.planning.kept_activations import (
    Adapters,
    Arithmetic,
    kept_by_connector,
    kept_by_language_model,
    kept_by_tower,
)
from xgen_mm.training.planning.part_sizes import build_on_meta, part_sizes
from xgen_mm.training.planning.plan import describe, make_plan
from xgen_mm.training.planning.run_memory import PartSize, bytes_of_states, estimate_memory
from xgen_mm.training.recipe import Recipe, load_recipe
from xgen_mm.training.starting_point import load_model, load_processor
from xgen_mm.training.trainable import prepare_model

ROOT = Path(__file__).parents[2]
FEW = 32


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debug recipes name their data from the root of the repository."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", changes=changes)


def part(plan_parts: list[PartSize], name: str) -> PartSize:
    return next(item for item in plan_parts if item.name == name)


def test_warm_up_of_a_plan_is_that_of_the_run() -> None:
    run = recipe("sft/debug", "optim.warmup_steps=null", "optim.warmup_ratio=0.1", "optim.max_steps=22")
    assert make_plan(run).warmup_steps == 3
    assert training_arguments(run, world_size=1, max_steps=22)["warmup_steps"] == 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("sft/debug", ("model.dtype=bfloat16",), id="full"),
        pytest.param("sft/debug", ("model.trainable=[resampler]",), id="resampler-only"),
        pytest.param("sft/debug_interleaved_lora", ("model.dtype=bfloat16",), id="adapters"),
    ],
)
def test_sizes_are_those_of_the_loaded_model(name: str, changes: tuple[str, ...]) -> None:
    pytest.importorskip("peft", reason="adapters need the `train` extra")
    run = recipe(name, *changes)
    model = prepare_model(run, load_model(run))
    parts, _ = part_sizes(run, build_on_meta(load_model(run).config))
    weights = list(model.parameters())
    assert sum(item.parameters for item in parts) == sum(weight.numel() for weight in weights)
    assert sum(item.trainable for item in parts) == sum(w.numel() for w in weights if w.requires_grad)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    assert sum(item.parameters * item.bytes_each for item in parts) == num_bytes


def test_released_model_has_its_published_size() -> None:
    run = recipe("sft/debug", "model.dtype=bfloat16")
    parts, _ = part_sizes(run, build_on_meta(XGenMMConfig()))
    assert part(parts, "vision_tower").parameters / 1e6 == pytest.approx(413.0, abs=0.1)
    assert part(parts, "resampler").parameters / 1e6 == pytest.approx(109.9, abs=0.1)
    assert part(parts, "vision_tower").trainable == 0
    assert part(parts, "lm_head").trainable == part(parts, "lm_head").parameters > 98e6


def test_quantised_weights_take_half_a_byte_and_the_rest_is_precise() -> None:
    run = recipe("sft/debug_interleaved_lora", "model.quantization=nf4", "model.dtype=bfloat16")
    parts, _ = part_sizes(run, build_on_meta(XGenMMConfig()))
    assert part(parts, "language_model").bytes_each == pytest.approx(0.52, abs=0.01)
    assert part(parts, "vision_tower").dtype == part(parts, "resampler").dtype == "float32"


@pytest.mark.parametrize("has_mask", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        pytest.param(torch.float32, None, id="fp32"),
        pytest.param(torch.bfloat16, None, id="bf16"),
        pytest.param(torch.float32, torch.bfloat16, id="mixed"),
    ],
)
def test_kept_activations_are_those_autograd_saves(
    tiny_config: XGenMMConfig, dtype: torch.dtype, autocast: torch.dtype | None, has_mask: bool
) -> None:
    from transformers import AutoModel

    text = tiny_config.text_config
    text.num_hidden_layers = 4
    arithmetic = Arithmetic(dtype=dtype, autocast=autocast)
    kept = kept_by_language_model(text, rows=2, length=24, arithmetic=arithmetic, is_trained=True, has_mask=has_mask)
    model = AutoModel.from_config(text, dtype=dtype).train()
    inputs = torch.randn(2, 24, text.hidden_size, dtype=autocast or dtype, requires_grad=True)
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, 24 - 8 * has_mask :] = 0
    context = torch.autocast("cpu", dtype=autocast) if autocast else nullcontext()
    with context:
        measured = saved_bytes(model, lambda: model(inputs_embeds=inputs, attention_mask=mask, use_cache=False))
    assert kept.whole == measured


def test_kept_activations_with_adapters_are_those_peft_saves(tiny_config: XGenMMConfig) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    from transformers import AutoModel

    text = tiny_config.text_config
    text.num_hidden_layers = 3
    model = AutoModel.from_config(text, dtype=torch.bfloat16).train()
    settings = peft.LoraConfig(r=4, target_modules=r".*_proj", lora_dropout=0.1)
    adapted = peft.get_peft_model(model, settings)
    inputs = torch.randn(2, 24, text.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    measured = saved_bytes(adapted, lambda: model(inputs_embeds=inputs, use_cache=False))
    kept = kept_by_language_model(
        text,
        rows=2,
        length=24,
        arithmetic=Arithmetic(dtype=torch.bfloat16),
        is_trained=False,
        has_mask=False,
        adapters=Adapters(pattern=r".*_proj", rank=4, dropout=0.1),
    )
    assert kept.whole == pytest.approx(measured, rel=0.01)


def test_kept_activations_of_resampler_and_tower_are_those_autograd_saves(
    tiny_config: XGenMMConfig,
) -> None:
    tiny_config.vision_config.num_hidden_layers = 3
    model = XGenMMForConditionalGeneration(tiny_config).train().model
    arithmetic = Arithmetic(dtype=torch.float32)
    pixels, features = torch.randn(5, 3, 28, 28), torch.randn(5, 16, 32)
    mask = torch.ones(5, 16, dtype=torch.bool)
    mask[0, 8:] = False
    tower = kept_by_tower(tiny_config.vision_config, tiles=5, arithmetic=arithmetic)
    assert tower.whole == saved_bytes(model.vision_tower, lambda: model.vision_tower(pixels))
    resampler = kept_by_connector(tiny_config.resampler_config, groups=5, cells=16, arithmetic=arithmetic)
    measured = saved_bytes(model.resampler, lambda: model.resampler(features, mask))
    assert resampler.whole == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("sft/debug", ("batches.per_device_batch_size=8",), id="full"),
        pytest.param(
            "sft/debug",
            ("batches.per_device_batch_size=8", "model.gradient_checkpointing=true"),
            id="checkpointing",
        ),
        pytest.param("sft/debug_interleaved_lora", ("batches.per_device_batch_size=4",), id="adapters"),
    ],
)
def test_estimated_peak_is_near_the_measured_one(name: str, changes: tuple[str, ...]) -> None:
    """Within 25 %: the plan takes the longest batch with the most tiles, and kernels need some room to work in."""
    pytest.importorskip("peft", reason="adapters need the `train` extra")
    run = recipe(name, *changes)
    estimate = make_plan(run, samples=FEW).memory[0]
    batch, _ = largest_batch(run)
    model = prepare_model(run, load_model(run)).train()
    (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable)[run.model.gradient_checkpointing]()

    def step() -> None:
        model(**batch).loss.backward()

    # The first step makes the gradients, which the second one already has.
    step()
    gradients = sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert estimate.gradients == gradients
    assert estimate.weights == sum(weight.nbytes for weight in model.parameters())
    assert estimate.activations + estimate.loss == pytest.approx(peak_bytes(step), rel=0.25)


def test_checkpointing_takes_far_less_memory() -> None:
    plain = make_plan(recipe("sft/debug"), samples=FEW).memory[0]
    checkpointed = make_plan(recipe("sft/debug", "model.gradient_checkpointing=true"), samples=FEW).memory[0]
    assert checkpointed.activations < 0.4 * plain.activations
    assert checkpointed.weights == plain.weights


def test_step_holds_what_the_loader_hands_out() -> None:
    run = recipe("pretrain/debug")
    data = make_plan(run).data
    loader = iter(make_loader(run, load_processor(run)))
    batches = [next(loader) for _ in range(40)]
    rows = run.batches.global_batch_size / len(batches)
    per_batch = run.batches.per_device_batch_size
    learned = sum(int((batch["labels"] != -100).sum()) for batch in batches) / per_batch * rows
    pictures = sum(len(batch["pixel_values"]) for batch in batches if "pixel_values" in batch) / per_batch * rows
    assert data.step.labelled == pytest.approx(learned, rel=0.1)
    assert data.step.pictures == pytest.approx(pictures, rel=0.1)
    assert data.device_length == batches[0]["input_ids"].shape[1]


def test_preference_pair_counts_both_answers() -> None:
    data = make_plan(recipe("dpo/debug"), samples=FEW).data
    single = make_plan(recipe("kto/debug"), samples=FEW).data
    assert data.device_rows == 2 * recipe("dpo/debug").batches.per_device_batch_size
    assert data.step.sequences == 2 * recipe("dpo/debug").batches.global_batch_size
    assert single.step.sequences == recipe("kto/debug").batches.global_batch_size


def test_reference_model_is_counted_unless_adapters_are_switched_off_for_it() -> None:
    full = recipe("dpo/debug", "model.lora=null", "model.trainable=[language_model]")
    adapted = recipe("dpo/debug", "model.trainable=[]", "model.lora={rank: 4}")
    names = [
        [item.name for item in part_sizes(run, build_on_meta(load_model(run).config))[0]] for run in (full, adapted)
    ]
    assert "reference" in names[0]
    assert "reference" not in names[1]


def test_answers_to_be_generated_lengthen_sequences() -> None:
    run = recipe("grpo/debug")
    longest = run.reward.max_completion_length
    longer = recipe("grpo/debug", f"reward.max_completion_length={longest + 50}")
    short, long = (make_plan(item, samples=FEW).data for item in (run, longer))
    assert long.longest_tokens == short.longest_tokens + 50


def test_plan_is_plain_data_and_text() -> None:
    plan = make_plan(recipe("sft/debug_interleaved_lora"), samples=FEW)
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["steps"] == 20
    assert content["total_tokens"] == pytest.approx(20 * content["data"]["step"]["tokens"])
    text = describe(plan)
    for expected in ("vision_tower", "frozen", "adapters", "originals", "20 steps, 2 of warm-up", "16 GB"):
        assert expected in text


def test_fsdp_divides_what_lies_still_and_gathers_layers() -> None:
    parts = [
        PartSize(
            name="language_model", parameters=1000, trainable=1000, dtype="bfloat16", bytes_each=2, largest_layer=100
        ),
        PartSize(name="lm_head", parameters=50, trainable=50, dtype="bfloat16", bytes_each=2, in_layers=False),
    ]
    settings: dict[str, Any] = {"optimizer": "adamw_torch", "activations": 7.0, "loss": 1.0}
    ddp = estimate_memory(parts, world_size=4, sharding="ddp", **settings)
    fsdp = estimate_memory(parts, world_size=4, sharding="fsdp", **settings)
    assert (ddp.weights, ddp.gradients, ddp.optimizer, ddp.gathered) == (2100, 4200, 4200, 0)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (525, 525, 1050)
    # Two layers and the gradients of one, the output layer and its gradients.
    assert fsdp.gathered == 3 * 200 + 2 * 100


def test_optimiser_states_follow_the_optimiser(tiny_model: XGenMMForConditionalGeneration) -> None:
    tiny_model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    weights = [weight for weight in tiny_model.parameters() if weight.grad is not None]
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    states = [entry[name] for entry in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    measured = sum(state.nbytes for state in states)
    assert measured == bytes_of_states("adamw_torch", 4) * sum(weight.numel() for weight in weights)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        pytest.param(("optim.warmup_ratio=null", "optim.warmup_steps=40"), "never comes down", id="warm-up"),
        pytest.param(("text.max_text_tokens=16",), "samples are cut", id="cut"),
        pytest.param(("output.save_steps=50",), "no checkpoint before its end", id="save"),
        pytest.param(("output.log_steps=50",), "log_steps", id="log"),
        pytest.param(("model.dtype=bfloat16",), "without a precise copy", id="half-precision"),
        pytest.param(("data.0.path=missing.json",), "The data cannot be used as they are", id="no-data"),
    ],
)
def test_plan_that_looks_wrong_warns(changes: tuple[str, ...], warning: str) -> None:
    plan = make_plan(recipe("sft/debug", *changes), samples=FEW)
    assert any(warning in line for line in plan.warnings)
    assert warning in describe(plan)


def test_sound_plan_does_not_warn() -> None:
    assert make_plan(recipe("sft/debug"), samples=FEW).warnings == []


def test_too_small_device_is_named_with_what_helps() -> None:
    plan = make_plan(recipe("sft/debug"), samples=FEW, device_memory=2**24)
    assert "gradient_checkpointing" in plan.warnings[0]
    assert "`model: lora`" in plan.warnings[0]


def test_more_processes_accumulate_less() -> None:
    plan = make_plan(recipe("sft/debug"), world_size=2, samples=FEW)
    assert plan.accumulation == 1
    assert [estimate.setup for estimate in plan.memory] == ["DDP on 2 processes", "FSDP2 on 2 processes"]


def saved_bytes(model: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of what autograd really saves, weights excepted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


def peak_bytes(step: Callable[[], None]) -> int:
    """Most bytes that a step has allocated at a time, beyond what was there before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
            step()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def largest_batch(run: Recipe) -> tuple[dict[str, Any], XGenMMProcessor]:
    processor = load_processor(run)
    loader = iter(make_loader(run, processor))
    batches = [next(loader) for _ in range(8)]
    return max(batches, key=lambda batch: batch["input_ids"].numel()), processor
