"""`xgen-mm init` on tiny parts."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conversion.tiny_parts import Parts, save_pair
from xgen_mm import XGenMMMLPConnector
from xgen_mm.cli.init import parse_grids
from xgen_mm.cli.main import main


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return save_pair("siglip-phi3", tmp_path_factory.mktemp("parts"))


def command(parts: Parts, output: Path, *options: str) -> list[str]:
    return ["init", "--vision", str(parts.vision), "--text", str(parts.text), "-o", str(output), *options]


def test_init_writes_a_checkpoint(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new"
    options = ["--num-latents", "4", "--resampler-layers", "1", "--grids", "1x1,1x2", "--dtype", "bfloat16"]
    assert main(command(parts, output, *options)) == 0
    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert (str(model.dtype), model.config.image_grid_pinpoints) == ("torch.bfloat16", [[28, 28], [28, 56]])
    assert processor.num_latents == model.config.resampler_config.num_latents == 4
    printed = capsys.readouterr().out
    assert f"Wrote {output}" in printed
    assert "in bfloat16" in printed
    assert "model.safetensors" in printed


def test_init_with_an_mlp_writes_a_model_with_a_token_per_patch(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    assert main(command(parts, output, "--connector", "mlp", "--json", "--dry-run")) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(command(parts, output, "--connector", "mlp", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["files"] == planned["files"]
    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert type(model.model.resampler) is XGenMMMLPConnector
    assert processor.num_latents == planned["num_latents"] == model.config.cells_per_tile**2


def test_latents_of_an_mlp_are_refused(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(parts, tmp_path / "new", "--connector", "mlp", "--num-latents", "4")) != 0
    assert "only a perceiver has latents" in capsys.readouterr().err


def test_dry_run_writes_nothing_and_lists_everything(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(parts, tmp_path / "new", "--dry-run", "--json")) == 0
    assert list(tmp_path.iterdir()) == []
    report = json.loads(capsys.readouterr().out)
    assert report["is_written"] is False
    assert report["parameters"]["total"] * 4 == report["num_bytes"]
    assert {"config.json", "model.safetensors", "chat_template.jinja", "tokenizer.json"} <= set(report["files"])
    assert any("spare rows" in note for note in report["notes"])


def test_dry_run_names_the_same_files_as_a_run(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--num-latents", "4", "--resampler-layers", "1", "--json"]
    assert main(command(parts, tmp_path / "new", *options, "--dry-run")) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(command(parts, tmp_path / "new", *options)) == 0
    written = json.loads(capsys.readouterr().out)
    assert written | {"is_written": False} == planned


def test_existing_output_is_one_line_on_stderr(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assert main(command(parts, tmp_path)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "exists already and is not empty" in captured.err


def test_swapped_parts_are_one_line_on_stderr(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = Parts(vision=parts.text, text=parts.vision)
    assert main(command(swapped, tmp_path / "new")) == 2
    assert "`image_size=None`" in capsys.readouterr().err


def test_chat_template_file_is_used(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}|{% endfor %}")
    options = ["--chat-template", str(template), "--num-latents", "4", "--resampler-layers", "1"]
    assert main(command(parts, tmp_path / "new", *options)) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    content = [{"type": "image"}, {"type": "text", "text": "q"}]
    assert processor.apply_chat_template([{"role": "user", "content": content}]) == "<image>\nq|"
    assert "as given" in capsys.readouterr().out


def test_missing_chat_template_file_is_one_line_on_stderr(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(parts, tmp_path / "new", "--chat-template", str(tmp_path / "none.jinja"))) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "2", "0x1", "1x2,", "axb"])
def test_malformed_grids_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="no list of grids"):
        parse_grids(text)
