"""`xgen-mm convert`: the released layout to ours and back, and what the command says about it."""

import argparse
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from tests.modeling.golden_cases import GOLDEN
from xgen_mm.cli.convert import size_in_bytes
from xgen_mm.cli.main import main

RELEASED = GOLDEN / "v1_5" / "checkpoint"


def test_convert_and_back_restores_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(RELEASED), str(tmp_path / "ours"), "--max-shard-size", "200KB"]) == 0
    assert "Left out (SigLIP pooling head, never called by this model)" in capsys.readouterr().out
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert main(["convert", "--reverse", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (RELEASED / name).read_bytes()


def test_convert_hub_id_fetches_weights_and_settings_but_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(RELEASED)

    monkeypatch.setattr("xgen_mm.cli.loading.snapshot_download", snapshot)
    assert main(["convert", "someone/some-model", str(tmp_path / "ours")]) == 0
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    assert asked["repository"] == "someone/some-model"
    names = ("model-00001-of-00004.safetensors", "config.json", "modeling_xgenmm.py", "pytorch_model.bin")
    assert [any(fnmatch(name, pattern) for pattern in asked["patterns"]) for name in names] == [
        True,
        True,
        False,
        False,
    ]


def test_convert_hub_id_that_cannot_be_fetched_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("xgen_mm.cli.loading.snapshot_download", snapshot)
    assert main(["convert", "someone/some-model", str(tmp_path / "ours")]) == 2
    assert "`someone/some-model` is not here and cannot be fetched from the Hub: no network" in capsys.readouterr().err


def test_convert_json_describes_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--json", "--dtype", "bfloat16", str(RELEASED), str(tmp_path / "ours")]) == 0
    report = json.loads(capsys.readouterr().out)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert report["num_parameters"] == num_parameters
    assert report["dtypes"] == {"BF16": num_parameters}
    assert report["num_bytes"] == 2 * num_parameters


def test_convert_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--dry-run", str(RELEASED), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.startswith("Would write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nowhere", "out"], "`nowhere` does not exist; give a checkpoint directory", id="no-source"),
        pytest.param([str(GOLDEN), "out"], "neither model.safetensors.index.json nor", id="no-weights"),
        pytest.param(["--reverse", str(RELEASED), "out"], "keeps no record of its original", id="not-converted"),
        pytest.param([str(RELEASED), str(RELEASED)], "exists and is not empty", id="taken"),
    ],
)
def test_convert_of_something_else_fails_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "expected"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("1000", 1000), ("3kb", 3000)]
)
def test_size_with_unit_is_read_in_bytes(text: str, expected: int) -> None:
    assert size_in_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "5 parsecs", "-1GB", "0"])
def test_size_without_meaning_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; write a number and a unit"):
        size_in_bytes(text)
