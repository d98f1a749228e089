"""Damaged and hostile files end in one line that names the file, without gigabytes or deep recursion."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from xgen_mm import tiny_checkpoint
from xgen_mm.cli.main import main
from xgen_mm.conversion.pickle_files import list_pickle
from xgen_mm.errors import ConversionError
from xgen_mm.sections import SectionError, parse_yaml
from xgen_mm.training.recipe import load_recipe
from xgen_mm.training.recipe_sections import RecipeError
from xgen_mm.weight_files import read_json, read_raw_header

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[Infinity,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":' + "[" * 100_000,
        "[]",
    ],
    ids=["infinity", "nan", "strings", "overlap", "deep", "list"],
)
def test_header_that_describes_no_file_is_refused_by_name(tmp_path: Path, header: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    with pytest.raises(ConversionError, match=r"model\.safetensors has a damaged safetensors header"):
        read_raw_header(path)


def test_header_of_impossible_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(100_000_000)
    with pytest.raises(ConversionError, match="is not a whole safetensors file"):
        read_raw_header(path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(ConversionError, match="nested too deeply"):
        read_json(tmp_path / "index.json")


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGE_BOMB, "a: &a [*a]", "a: " + "[" * 5000, "a: " + "9" * 5000, "a: 2024-13-45", "a: !!bool x", "a: *b"],
    ids=["aliases", "merges", "in-itself", "deep", "long-number", "no-date", "no-bool", "unknown-alias"],
)
def test_yaml_that_explodes_or_means_nothing_is_one_short_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(SectionError) as caught:
        parse_yaml(text, where="it")
    assert len(str(caught.value)) < 1000
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"`recipe\.yaml`"):
        load_recipe(tmp_path / "recipe.yaml")


def test_yaml_merges_and_aliases_of_people_still_work() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}", where="it")["b"] == {"x": 1, "y": [{"x": 1}] * 2}
    assert parse_yaml("", where="it") is None


def test_deep_value_on_the_command_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("stage: sft")
    with pytest.raises(RecipeError, match=r"`--set seed` cannot be read as YAML: nested deeper than 64 levels"):
        load_recipe(tmp_path / "recipe.yaml", changes=["seed=" + "[" * 5000])


def test_pickles_of_any_damage_are_refused_by_name(tmp_path: Path) -> None:
    path, packed = tmp_path / "model.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ConversionError, match=r"packed\.pt holds compressed entries"):
        list_pickle(packed)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02\x00garbage" if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(ConversionError, match=r"packed\.pt"):
        list_pickle(packed)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "damaged"))


def change_config(directory: Path, part: str | None, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (config if part is None else config[part]).update(values)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("text_config", {"hidden_size": "64"}),
        ("text_config", {"vocab_size": -1}),
        ("text_config", {"num_hidden_layers": 10**12}),
        ("text_config", {"model_type": "nonsense"}),
        ("vision_config", {"patch_size": 0}),
        ("resampler_config", {"num_latents": -1}),
        (None, {"text_config": []}),
        (None, {"vision_config": "x"}),
    ],
    ids=lambda value: str(value),
)
def test_damaged_configuration_ends_commands_with_one_line(
    damaged: Path, capsys: pytest.CaptureFixture[str], part: str | None, values: dict[str, Any]
) -> None:
    change_config(damaged, part, **values)
    recipe = Path(__file__).parents[1] / "recipes" / "sft" / "debug.yaml"
    for command in (
        ["info", str(damaged)],
        ["verify", str(damaged), str(damaged)],
        ["train", str(recipe), "--dry-run", "--set", f"model.checkpoint={damaged}"],
        ["export", str(damaged.parent / "out"), "--model", str(damaged)],
    ):
        assert main(command) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("xgen-mm: error: ")
        assert str(damaged) in last


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{", "[" * 100_000], ids=["list", "number", "null", "cut", "deep"]
)
def test_configuration_that_is_no_object_is_named(
    damaged: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (damaged / "config.json").write_text(text)
    assert main(["info", str(damaged)]) == 2
    assert f"`{damaged / 'config.json'}`" in capsys.readouterr().err
