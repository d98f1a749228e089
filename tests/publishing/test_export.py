"""Exported directories, and the three ways to use a LoRA adapter."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import xgen_mm
from xgen_mm.errors import XGenMMError
from xgen_mm.publishing.card_checks import check_text
from xgen_mm.publishing.export import export_checkpoint
from xgen_mm.publishing.model_card import render_card

PICTURES = Path(xgen_mm.__file__).parent / "cli" / "demo_images"
QUESTIONS = {"86.png": "What number is in the image?", "392.png": "How many digits are in the image?"}


def answers(model: PreTrainedModel, directory: Path) -> list[str]:
    """Greedy answers about two pictures."""
    processor = AutoProcessor.from_pretrained(directory)
    texts = []
    for name, question in QUESTIONS.items():
        content = [{"type": "image", "image": Image.open(PICTURES / name)}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=6)
        texts.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :]))
    return texts


@dataclass(frozen=True)
class Adapted:
    """A base model, an adapter for it, and what both together answer."""

    base: Path
    adapter: Path
    answers: list[str]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    base, adapter = (tmp_path_factory.mktemp("lora") / name for name in ("base", "adapter"))
    export_checkpoint(xgen_mm.tiny_checkpoint(), base)
    # Random instead of zero, so that the adapter changes the answers.
    config = LoraConfig(
        target_modules=r".*language_model.*\.(qkv_proj|o_proj)", init_lora_weights=False, r=8, lora_alpha=128
    )
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config)
    model.save_pretrained(adapter)
    return Adapted(base, adapter, answers(model, base))


def test_exported_directory_answers_as_its_source_does(tmp_path: Path) -> None:
    report = export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path / "out", max_shard_size="5MB")
    assert report.files.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert sum(name.endswith(".safetensors") for name in report.files) > 1
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    source = AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint())
    assert answers(model, tmp_path / "out") == answers(source, xgen_mm.tiny_checkpoint())
    assert answers(model, tmp_path / "out")[0].startswith("86")


def test_export_writes_the_precision_asked_for(tmp_path: Path) -> None:
    report = export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path / "out", dtype="bfloat16")
    assert report.dtype == "bfloat16"
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_export_writes_the_card_asked_for(tmp_path: Path) -> None:
    export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path / "out", card="xgen-mm-tiny")
    assert (tmp_path / "out" / "README.md").read_text() == render_card("xgen-mm-tiny")


def test_export_takes_the_card_of_its_source_over(tmp_path: Path) -> None:
    source = shutil.copytree(xgen_mm.tiny_checkpoint(), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    export_checkpoint(source, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == (source / "README.md").read_text()


def test_export_without_a_card_writes_what_the_files_say(tmp_path: Path) -> None:
    export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# out\n" in card
    assert "3,886,976" in card
    assert check_text(card) == []
    assert str(tmp_path) not in card


def test_export_into_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_adapter_alone_holds_no_weight_of_the_base(adapted: Adapted) -> None:
    assert (adapted.adapter / "adapter_model.safetensors").stat().st_size < 1_000_000
    assert not list(adapted.adapter.glob("model*.safetensors"))


def test_adapter_changes_the_answers(adapted: Adapted) -> None:
    assert answers(AutoModelForImageTextToText.from_pretrained(adapted.base), adapted.base) != adapted.answers


def test_adapter_loaded_on_top_of_its_base_gives_the_same_text(adapted: Adapted) -> None:
    base = AutoModelForImageTextToText.from_pretrained(adapted.base)
    assert answers(PeftModel.from_pretrained(base, adapted.adapter), adapted.base) == adapted.answers


def test_adapter_directory_loads_through_the_auto_class(adapted: Adapted) -> None:
    model = AutoModelForImageTextToText.from_pretrained(adapted.adapter)
    assert answers(model, adapted.base) == adapted.answers


def test_merged_adapter_gives_the_same_text_without_peft(adapted: Adapted, tmp_path: Path) -> None:
    report = export_checkpoint(adapted.adapter, tmp_path / "merged")
    assert report.base == str(adapted.base)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in merged.state_dict())
    assert answers(merged, tmp_path / "merged") == adapted.answers


def test_adapter_without_a_base_is_refused(adapted: Adapted, tmp_path: Path) -> None:
    config = json.loads((adapted.adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(XGenMMError, match="base_model_name_or_path"):
        export_checkpoint(tmp_path, tmp_path / "merged")


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja", "tokenizer.json"])
def test_export_follows_no_link_out_of_its_source(name: str, tmp_path: Path) -> None:
    source, secret = tmp_path / "source", tmp_path / "secret"
    shutil.copytree(xgen_mm.tiny_checkpoint(), source)
    secret.write_text("private words", encoding="utf-8")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    with pytest.raises(XGenMMError, match=f"links that lead out of it.*{name}"):
        export_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
