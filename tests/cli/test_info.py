"""`xgen-mm info`: parameters, weights and the cost of pictures, from configurations alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.modeling.golden_cases import GOLDEN
from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration
from xgen_mm.cli.description import count_parameters, read_weights
from xgen_mm.cli.main import main

MODULES = ["vision_tower", "resampler", "language_model", "lm_head", "total"]


def describe(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["info", "--json", *arguments]) == 0
    description: dict[str, Any] = json.loads(capsys.readouterr().out)
    return description


def test_info_json_parameters_add_up_to_those_of_the_model(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = describe(capsys, str(checkpoint))["parameters"]
    model = XGenMMForConditionalGeneration.from_pretrained(checkpoint)
    assert list(parameters) == MODULES
    assert parameters["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert parameters["total"] == sum(parameters[name] for name in MODULES[:-1])
    assert parameters["resampler"] == sum(parameter.numel() for parameter in model.model.resampler.parameters())


def test_info_json_weights_report_size_and_precision(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = describe(capsys, str(checkpoint))
    weights = description["weights"]
    assert weights["num_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert weights["num_files"] == 1
    assert weights["dtypes"] == {"float32": description["parameters"]["total"]}


def test_info_json_image_sizes_give_canvas_tiles_and_tokens(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = describe(capsys, str(checkpoint), "--image-size", "25x50", "--image-size", "50x50")["images"]
    assert images == [
        {"image_size": [25, 50], "canvas": [28, 56], "num_tiles": 3, "num_image_tokens": 12},
        {"image_size": [50, 50], "canvas": [56, 56], "num_tiles": 5, "num_image_tokens": 20},
    ]


def test_info_json_names_the_facts_of_the_configuration(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = describe(capsys, str(checkpoint))
    facts = ["model_type", "tile_size", "patch_size", "num_latents", "tile_grouping", "context_length"]
    assert [description[fact] for fact in facts] == ["xgenmm", 28, 7, 4, "raster_chunks", 512]
    assert description["canvases"] == [[56, 28], [28, 56], [56, 56], [28, 84], [84, 28]]
    assert len(description["images"]) == 4


def test_info_text_shows_parts_parameters_and_pictures(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(checkpoint), "--image-size", "25x50"]) == 0
    captured = capsys.readouterr()
    shown = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert f"Checkpoint {checkpoint}" in shown
    assert "resampler 1 layers, width 32, 2 heads, 4 latents" in shown
    assert "canvases 56x28, 28x56, 56x56, 28x84, 84x28" in shown
    assert "25x50 28x56 3 12" in shown
    assert captured.err == ""


def test_info_released_configuration_without_weights_counts_four_billion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    XGenMMConfig().save_pretrained(tmp_path)
    description = describe(capsys, str(tmp_path), "--image-size", "480x640")
    assert description["weights"] is None
    assert description["parameters"]["vision_tower"] == 412_987_248
    assert 4.2e9 < description["parameters"]["total"] < 4.6e9
    assert description["images"] == [
        {"image_size": [480, 640], "canvas": [768, 768], "num_tiles": 5, "num_image_tokens": 640}
    ]


def test_info_preset_shows_released_counts_without_any_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--preset", "xgen-mm-phi3-mini-instruct-dpo-r-v1.5", "--image-size", "480x640"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any("without its pooling head (15,238,352 parameters" in line for line in shown)
    assert [line.split()[1] for line in shown if line.startswith("vision_tower 4")] == [
        f"{428_225_600 - 15_238_352:,}"
    ]
    assert "480x640 768x768 5 640" in shown


def test_info_unknown_preset_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--preset", "phi4"]) == 2
    assert "xgen-mm-phi3-medium-r-v1.5" in capsys.readouterr().err


def test_info_describes_released_v1_files(capsys: pytest.CaptureFixture[str]) -> None:
    description = describe(capsys, str(GOLDEN / "v1" / "checkpoint"))
    assert description["model_type"] == "xgenmm_v1"
    assert description["tile_size"] == 56


def test_info_whole_picture_grouping_costs_the_same_for_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    XGenMMConfig(tile_grouping="image").save_pretrained(tmp_path)
    images = describe(capsys, str(tmp_path), "--image-size", "25x50", "--image-size", "900x900")["images"]
    assert [image["num_image_tokens"] for image in images] == [128, 128]


def test_info_processor_that_does_not_tile_shows_single_tiles(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    settings["image_processor"]["image_aspect_ratio"] = "pad"
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    images = describe(capsys, str(tmp_path), "--image-size", "25x50")["images"]
    assert images == [{"image_size": [25, 50], "canvas": None, "num_tiles": 1, "num_image_tokens": 4}]


def test_count_parameters_tied_output_layer_counts_its_weight_once(checkpoint: Path) -> None:
    config = XGenMMConfig.from_pretrained(checkpoint)
    untied, is_tied = count_parameters(config)
    assert not is_tied
    assert untied["lm_head"] == config.text_config.vocab_size * (config.text_config.hidden_size + 1)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    config.lm_head_bias = False
    tied, is_tied = count_parameters(config)
    assert is_tied
    assert tied["lm_head"] == 0


def test_read_weights_counts_every_shard(checkpoint: Path, tmp_path: Path) -> None:
    model = XGenMMForConditionalGeneration.from_pretrained(checkpoint, dtype="bfloat16")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    weights = read_weights(str(tmp_path))
    assert weights is not None
    assert weights["num_files"] == len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weights["dtypes"] == {"bfloat16": sum(parameter.numel() for parameter in model.parameters())}


def test_info_damaged_weights_print_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x05")
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"xgen-mm: error: `{tmp_path}/model.safetensors` is no readable safetensors file; copy or download it again.\n"
    )


def test_info_damaged_configuration_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{")
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"`{tmp_path / 'config.json'}` cannot be read as JSON" in error
    assert error.count("\n") == 1
