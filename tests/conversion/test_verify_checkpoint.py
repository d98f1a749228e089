import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.modeling.golden_cases import GOLDEN
from xgen_mm.conversion.convert_checkpoint import ConversionOptions, convert_checkpoint
from xgen_mm.conversion.verify_checkpoint import (
    STAGES,
    WEIGHTS,
    StageResult,
    check_files,
    compare_checkpoints,
    compare_weights,
    compare_with_recordings,
    format_results,
)
from xgen_mm.errors import ConversionError

RECORDINGS = GOLDEN / "v1_5"


def changed_copy(source: Path, destination: Path, **changes: float) -> Path:
    """A converted checkpoint, a value added to all elements of some weights."""
    convert_checkpoint(source, destination)
    path = destination / "model.safetensors"
    weights = load_file(path)
    for name, value in changes.items():
        weights[name] += value
    save_file(weights, path, metadata={"format": "pt"})
    return destination


def test_converted_checkpoint_gives_exactly_the_numbers_of_the_released_one(
    instruct_files: Path, converted_files: Path
) -> None:
    results = compare_checkpoints(instruct_files, converted_files, tolerance=0.0)
    assert [result.stage for result in results] == list(STAGES)
    assert all(result.has_passed and result.difference == 0 and result.num_values > 0 for result in results)


@pytest.mark.parametrize(
    ("name", "first_stage"),
    [
        pytest.param("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision tower", id="tower"),
        pytest.param("model.resampler.projection.bias", "resampler", id="resampler"),
        pytest.param("model.language_model.embed_tokens.weight", "merged embeddings", id="token-table"),
        pytest.param("model.language_model.norm.weight", "logits", id="language-model"),
    ],
)
def test_changed_weight_shows_from_its_stage_on(
    instruct_files: Path, tmp_path: Path, name: str, first_stage: str
) -> None:
    changed = changed_copy(instruct_files, tmp_path / "changed", **{name: 0.5})
    results = compare_checkpoints(instruct_files, changed)
    passed = {result.stage: result.has_passed for result in results}
    position = STAGES.index(first_stage)
    assert all(passed[stage] for stage in STAGES[:position])
    assert not any(passed[stage] for stage in STAGES[position:4])


def test_stored_weights_of_both_layouts_are_the_same_bit_by_bit(instruct_files: Path, converted_files: Path) -> None:
    result = compare_weights(instruct_files, converted_files, tolerance=0.0)
    assert result is not None
    assert (result.stage, result.difference, result.has_passed) == (WEIGHTS, 0.0, True)
    assert result.num_values > 100_000


def test_flipped_bit_is_reported_with_tensor_and_file(instruct_files: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(instruct_files, tmp_path / "damaged")
    shard = damaged / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 0x40
    shard.write_bytes(content)
    result = compare_weights(instruct_files, damaged, tolerance=1e-4)
    assert result is not None
    assert not result.has_passed
    assert "1 changed" in result.stage
    assert "model.resampler." in result.stage
    assert shard.name in result.stage


def test_stored_weights_that_are_not_numbers_never_pass(instruct_files: Path, tmp_path: Path) -> None:
    changed = changed_copy(instruct_files, tmp_path / "changed", **{"lm_head.bias": float("nan")})
    result = compare_weights(instruct_files, changed, tolerance=1e9)
    assert result is not None
    assert not result.has_passed


def test_stored_weights_of_other_types_are_left_to_the_stages(instruct_files: Path, tmp_path: Path) -> None:
    convert_checkpoint(instruct_files, tmp_path / "half", options=ConversionOptions(dtype="BF16"))
    assert compare_weights(instruct_files, tmp_path / "half") is None


def test_weight_that_is_not_a_number_never_passes(instruct_files: Path, tmp_path: Path) -> None:
    changed = changed_copy(instruct_files, tmp_path / "changed", **{"lm_head.bias": float("nan")})
    logits = compare_checkpoints(instruct_files, changed, tolerance=1e9)[3]
    assert (logits.stage, logits.has_passed) == ("logits", False)


def test_checkpoints_of_other_sizes_cannot_be_compared(instruct_files: Path) -> None:
    other = GOLDEN / "v1" / "checkpoint"
    with pytest.raises(ConversionError, match="not the same architecture"):
        compare_checkpoints(instruct_files, other)


def test_converted_checkpoint_gives_the_recorded_numbers(converted_files: Path) -> None:
    results = compare_with_recordings(converted_files, RECORDINGS)
    assert [result.stage for result in results] == list(STAGES)
    assert all(result.has_passed for result in results)


def test_changed_checkpoint_does_not_give_the_recorded_numbers(instruct_files: Path, tmp_path: Path) -> None:
    changed = changed_copy(instruct_files, tmp_path / "changed", **{"model.resampler.projection.bias": 0.01})
    passed = {result.stage: result.has_passed for result in compare_with_recordings(changed, RECORDINGS)}
    assert passed["vision tower"]
    assert not passed["resampler"]


def test_directory_without_recordings_is_refused(converted_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="holds no recorded cases"):
        compare_with_recordings(converted_files, tmp_path)


def test_file_that_is_no_recording_is_refused(converted_files: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "case.safetensors")
    with pytest.raises(ConversionError, match="not a recorded case"):
        compare_with_recordings(converted_files, tmp_path)


def test_checksums_of_intact_files_pass_and_those_of_changed_ones_do_not(
    converted_files: Path, tmp_path: Path
) -> None:
    intact = check_files(converted_files)
    assert intact is not None
    assert intact.has_passed
    shutil.copytree(converted_files, tmp_path / "changed")
    (tmp_path / "changed" / "tokenizer.json").write_text("{}")
    changed = check_files(tmp_path / "changed")
    assert changed is not None
    assert not changed.has_passed
    assert "tokenizer.json" in changed.stage


def test_directory_without_checksums_has_no_result(instruct_files: Path) -> None:
    assert check_files(instruct_files) is None


def test_table_shows_one_row_per_stage_with_its_verdict() -> None:
    lines = format_results(
        [
            StageResult(stage="logits", difference=2e-6, tolerance=1e-4, num_values=10),
            StageResult(stage="greedy text", difference=3, tolerance=0, num_values=8),
        ]
    )
    assert [line.split()[-1] for line in lines[1:]] == ["ok", "DIFFERENT"]
    assert "2e-06" in lines[1]
