"""`xgen-mm verify`: one row per stage, and an exit status that a script can use."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.modeling.golden_cases import GOLDEN
from xgen_mm import tiny_checkpoint
from xgen_mm.cli.main import main
from xgen_mm.conversion.convert_checkpoint import convert_checkpoint
from xgen_mm.conversion.verify_checkpoint import STAGES

RELEASED = GOLDEN / "v1_5" / "checkpoint"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(RELEASED, destination)
    return destination


@pytest.fixture(scope="module")
def changed(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("changed") / "model"
    shutil.copytree(converted, destination)
    weights = load_file(destination / "model.safetensors")
    weights["lm_head.bias"][7] += 1e-3
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    return destination


def test_verify_equal_checkpoints_exits_with_0(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(RELEASED), str(converted)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(stage) and line.endswith("ok") for line in lines) for stage in STAGES)


def test_verify_reads_a_model_whose_placeholder_is_among_the_first_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_checkpoint()
    assert AutoConfig.from_pretrained(tiny).image_token_id == 9
    assert main(["verify", str(tiny), str(tiny)]) == 0
    assert capsys.readouterr().out.count(" ok") == len(STAGES) + 1


def test_verify_different_checkpoints_exits_with_1(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(RELEASED), str(changed)]) == 1
    results = {result["stage"]: result for result in json.loads(capsys.readouterr().out)}
    assert results["merged embeddings"]["passed"]
    assert not results["logits"]["passed"]
    assert results["logits"]["difference"] == pytest.approx(1e-3, rel=1e-2)


def test_verify_tolerance_decides_what_passes(changed: Path, tmp_path: Path) -> None:
    # Without the checksums, which no tolerance applies to.
    shutil.copytree(changed, tmp_path / "model", ignore=shutil.ignore_patterns("checksums.json"))
    assert main(["verify", "--atol", "0.01", str(RELEASED), str(tmp_path / "model")]) == 0


def test_verify_against_recorded_numbers_exits_with_0(converted: Path) -> None:
    assert main(["verify", str(converted), "--golden", str(GOLDEN / "v1_5")]) == 0


def test_verify_one_checkpoint_checks_its_files(
    converted: Path, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(converted)]) == 0
    assert main(["verify", str(changed)]) == 1
    assert "model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([str(RELEASED)], "no record of a download", id="nothing-to-check"),
        pytest.param(["nowhere", str(RELEASED)], "`nowhere` does not exist", id="no-directory"),
        pytest.param([str(RELEASED), str(RELEASED), "--golden", str(GOLDEN)], "not both", id="two-comparisons"),
    ],
)
def test_verify_without_anything_to_compare_fails_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err
