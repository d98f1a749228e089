"""Commands take the directory of an adapter wherever they take a checkpoint: its change is in what they do."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from xgen_mm.adapters import load_merged_model, load_merged_processor, warn_if_language_model_is_left_out
from xgen_mm.cli.main import main
from xgen_mm.errors import XGenMMError
from xgen_mm.evaluation.harness.loading import load_adapter

peft = pytest.importorskip("peft", reason="adapters need the `train` extra")

ROOT = Path(__file__).parents[2]
IDS = torch.arange(10, 30)[None]


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter on the small checkpoint, without a processor of its own."""
    directory = tmp_path_factory.mktemp("adapters") / "adapter"
    model = load_merged_model(checkpoint)
    targets = r".*language_model\.layers\..*\.(qkv_proj|o_proj)"
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, r=4, lora_alpha=64)
    torch.manual_seed(3)
    peft.get_peft_model(model, config).save_pretrained(directory)
    return directory


def with_settings(adapter: Path, directory: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return directory


def test_merged_model_computes_what_peft_computes(adapter: Path, checkpoint: Path) -> None:
    adapted = peft.PeftModel.from_pretrained(load_merged_model(checkpoint), adapter).eval()
    merged = load_merged_model(adapter).eval()
    with torch.no_grad():
        wanted, base = adapted(input_ids=IDS).logits, load_merged_model(checkpoint).eval()(IDS).logits
        torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - base).abs().max() > 1e-2
    assert not any("lora" in name for name in merged.state_dict())


def test_every_command_that_takes_a_checkpoint_takes_an_adapter(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picture_file: Path
) -> None:
    rows = tmp_path / "rows.json"
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows.write_text(json.dumps([{"id": "1", "conversations": turns}]), encoding="utf-8")
    recipe = str(ROOT / "recipes" / "sft" / "debug.yaml")
    commands = [
        ["generate", "--model", str(adapter), "--image", str(picture_file), "--max-new-tokens", "1", "Hi"],
        ["info", str(adapter)],
        ["verify", str(adapter), str(adapter)],
        ["card", str(adapter)],
        ["data", "check", str(rows), "--format", "llava_json", "--model", str(adapter)],
        ["evaluate", "debug", "--limit", "1", "--model", str(adapter), "--output", str(tmp_path / "results")],
        ["train", recipe, "--set", f"model.checkpoint={adapter}", "--set", f"output.dir={tmp_path}/run", "--dry-run"],
        ["export", "--model", str(adapter), str(tmp_path / "merged")],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_answers_are_those_of_the_adapter_and_not_of_its_base(
    adapter: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for model in (adapter, checkpoint):
        assert main(["generate", "--model", str(model), "--max-new-tokens", "8", "--json", "What is this?"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] != texts[1]


def test_verify_tells_an_adapter_from_its_base(adapter: Path, checkpoint: Path) -> None:
    assert main(["verify", str(adapter), str(checkpoint)]) == 1


def test_verify_does_not_stop_at_the_weights_that_lie_beside_an_adapter(
    adapter: Path, checkpoint: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(checkpoint, both)
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    assert main(["verify", str(both), str(checkpoint)]) == 1


def test_info_names_base_kind_and_rank(adapter: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(adapter)]) == 0
    assert f"LORA of rank 4 for {checkpoint}" in capsys.readouterr().out
    assert main(["info", str(adapter), "--json"]) == 0
    adapted = json.loads(capsys.readouterr().out)
    assert main(["info", str(checkpoint), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert adapted["adapter"] == {"kind": "LORA", "rank": 4, "base": str(checkpoint)}
    assert (adapted["parameters"], adapted["images"]) == (whole["parameters"], whole["images"])


def test_images_are_cut_as_the_processor_beside_the_adapter_does(
    adapter: Path, checkpoint: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    processor = load_merged_processor(checkpoint)
    processor.image_processor.image_grid_pinpoints = [[28, 56]]
    processor.save_pretrained(own)
    assert load_merged_processor(own).image_processor.image_grid_pinpoints == [[28, 56]]
    assert load_merged_model(own).config.image_grid_pinpoints == [[28, 56]]
    assert len(load_merged_model(adapter).config.image_grid_pinpoints) > 1


def test_adapter_on_a_merged_adapter_is_merged_after_it(adapter: Path, tmp_path: Path) -> None:
    first = load_merged_model(adapter)
    config = peft.LoraConfig(target_modules=r".*language_model.*\.down_proj", init_lora_weights=False, r=2)
    second = peft.get_peft_model(first, config)
    second.save_pretrained(tmp_path / "second")
    with torch.no_grad():
        wanted = second.eval()(input_ids=IDS).logits
        torch.testing.assert_close(
            load_merged_model(tmp_path / "second").eval()(IDS).logits, wanted, atol=1e-4, rtol=1e-4
        )


BROKEN_BASES = {
    "dir": ("/nowhere/base", r"adapter_config\.json` names the base model `/nowhere/base`.*not here"),
    "hub": ("nobody/base", "names the base model `nobody/base`.*cannot be fetched"),
    "no-name": ("a b/c?d", "names the base model.*cannot be fetched"),
    "none": (None, "`base_model_name_or_path` None; write"),
    "list": (["x"], r"`base_model_name_or_path` \['x'\]; write"),
    "itself": ("{itself}", "lead to no whole model"),
    "empty": ("{empty}", "names the base model.*not here"),
    "stranger": ("{stranger}", "`stranger` model; expected an xGen-MM"),
}
COMMANDS = ("generate", "verify", "data", "evaluate", "train", "export")


@pytest.mark.parametrize(
    ("command", "kind"),
    [*(("info", kind) for kind in BROKEN_BASES), *((name, kind) for name in COMMANDS for kind in ("hub", "stranger"))],
)
def test_base_that_is_missing_or_hostile_is_one_line(
    command: str, kind: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, message = BROKEN_BASES[kind]
    broken = tmp_path / "broken"
    (tmp_path / "empty").mkdir()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "config.json").write_text('{"model_type": "stranger"}', encoding="utf-8")
    if isinstance(base, str):
        base = base.format(itself=broken, empty=tmp_path / "empty", stranger=stranger)
    with_settings(adapter, broken, base_model_name_or_path=base)
    rows = tmp_path / "rows.json"
    rows.write_text('[{"id": "1", "conversations": [{"from": "human", "value": "a"}]}]', encoding="utf-8")
    recipe = str(ROOT / "recipes" / "sft" / "debug.yaml")
    words = {
        "info": [str(broken)],
        "generate": ["--model", str(broken), "Hi"],
        "verify": [str(broken), str(broken)],
        "data": ["check", str(rows), "--format", "llava_json", "--model", str(broken)],
        "evaluate": ["debug", "--limit", "1", "--model", str(broken), "--output", str(tmp_path / "out")],
        "train": [recipe, "--set", f"model.checkpoint={broken}", "--set", f"output.dir={tmp_path}/run", "--dry-run"],
        "export": ["--model", str(broken), str(tmp_path / "out")],
    }[command]
    assert main([command, *words]) != 0
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(message, line), line


def test_harness_takes_an_adapter(adapter: Path) -> None:
    assert not any("lora" in name for name, _ in load_adapter(str(adapter), device="cpu").model.named_parameters())


def test_adapter_that_reaches_the_tower_only_is_warned_of(checkpoint: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(load_merged_model(checkpoint), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "blind")
    with pytest.warns(UserWarning, match=r"matches no layer of the language model.*o_proj.*qkv_proj"):
        load_merged_model(tmp_path / "blind")
    with pytest.warns(UserWarning, match=r"holds nothing for the language model.*'q_proj', 'v_proj'"):
        assert main(["card", str(tmp_path / "blind")]) == 0


def test_pattern_that_names_another_part_on_purpose_is_not_warned_of(
    checkpoint: Path, recwarn: pytest.WarningsRecorder
) -> None:
    config = peft.LoraConfig(target_modules=r".*resampler.*\.(q_proj|v_proj)")
    warn_if_language_model_is_left_out(peft.get_peft_model(load_merged_model(checkpoint), config))
    assert not [warning for warning in recwarn if "language model" in str(warning.message)]


def test_advice_of_the_warning_reaches_the_language_model(checkpoint: Path) -> None:
    blind = peft.get_peft_model(load_merged_model(checkpoint), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.warns(UserWarning, match="For adapters there") as caught:
        warn_if_language_model_is_left_out(blind)
    pattern = re.search(r"target_modules=r'([^']+)'", str(caught[0].message))[1]
    model = peft.get_peft_model(load_merged_model(checkpoint), peft.LoraConfig(target_modules=pattern))
    adapted = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * 4
    assert all("language_model.layers." in name for name in adapted)


def test_damaged_adapter_weights_are_one_line(adapter: Path, tmp_path: Path) -> None:
    broken = with_settings(adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(XGenMMError, match="broken` cannot be loaded"):
        load_merged_model(broken)
