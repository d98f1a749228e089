"""Cards of training runs: what the directory says, what is given, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import xgen_mm
from xgen_mm.errors import XGenMMError
from xgen_mm.publishing.card_checks import check_facts, check_text
from xgen_mm.publishing.card_facts import License
from xgen_mm.publishing.model_card import card_for_directory, render_card

BASE = "Salesforce/xgen-mm-phi3-mini-base-r-v1.5"
STATE = {
    "global_step": 120,
    "epoch": 2.9999999,
    "log_history": [
        {"loss": 2.5, "learning_rate": 1e-4, "step": 10},
        {"loss": 0.123456789, "step": 110},
        {"eval_loss": 0.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "step": 120},
        {"train_runtime": 77.0, "train_loss": 0.9, "total_flos": 1.0, "step": 120},
    ],
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["qkv_proj", "o_proj"],
    "base_model_name_or_path": BASE,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Directory of a run on the small model, with the trainer's state."""
    directory = tmp_path / "digits-sft"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(xgen_mm.tiny_checkpoint() / name, directory)
    (directory / "trainer_state.json").write_text(json.dumps(STATE))
    return directory


def test_run_fills_its_card_from_its_files(run: Path) -> None:
    facts = card_for_directory(run)
    assert facts.name == "digits-sft"
    assert facts.parts == {
        "Vision tower": "siglip_vision_model, 4 layers of width 128, 84-pixel tiles, patches of 12 pixels",
        "Connector": "xgenmm_resampler, 2 layers of width 128, 8 tokens per tile",
        "Language model": "phi3, 6 layers of width 192, 2,048 tokens of context",
        "Parameters": "3,886,976",
    }
    assert facts.training is not None
    assert facts.training.settings == {"optimiser steps": 120, "epochs run": 3.0}
    assert facts.training.measured == {
        "loss": "0.123457 (step 110)",
        "eval_loss": "0.5 (step 120)",
        "train_loss": "0.9 (step 120)",
    }


def test_card_of_a_run_has_no_findings_and_no_guesses(run: Path) -> None:
    facts = card_for_directory(run)
    text = render_card(facts)
    assert check_facts(facts) + check_text(text) == []
    assert facts.license is None
    assert "license: unknown" in text
    assert str(run.parent) not in text
    assert not any(word in text for word in ("base_model", "datasets", "Intended use", "Parity", "Citation"))


def test_given_facts_go_before_the_runs_own_file_and_that_before_its_state(run: Path) -> None:
    own = {"title": "Mine", "license": {"id": "mit"}, "training": {"stage": "SFT", "settings": {"epochs run": 2}}}
    (run / "card.yaml").write_text(yaml.safe_dump(own))
    facts = card_for_directory(
        run, title="Given", base_models=[BASE], training={"data": ["digits"]}, training_args={"learning_rate": 2e-5}
    )
    assert facts.training is not None
    assert (facts.title, facts.license, facts.training.stage) == ("Given", License(id="mit"), "SFT")
    assert facts.training.settings == {"learning rate": 2e-5, "optimiser steps": 120, "epochs run": 2}
    assert facts.training.data == ("digits",)
    assert facts.summary == f"An xGen-MM checkpoint trained from {BASE}."
    assert f"base_model:\n- {BASE}\n" in render_card(facts)


def test_results_of_a_run_bring_their_own_definitions(run: Path) -> None:
    own = {
        "benchmarks": {
            "mine": {
                "name": "Mine",
                "dataset": "me/mine",
                "split": "test",
                "metric": "accuracy",
                "metric_type": "accuracy",
            }
        },
        "harnesses": {"script": {"name": "evaluate.py, commit 1234567"}},
        "sources": {"log": {"title": "eval.json", "url": "eval.json", "reading": "measured here", "is_own": True}},
        "results": [
            {"title": "Mine", "source": "log", "locator": "top", "harness": "script", "values": {"mine": 61.5}}
        ],
    }
    facts = card_for_directory(run, **own)
    text = render_card(facts)
    assert check_facts(facts) + check_text(text) == []
    assert "| Mine | test | accuracy | % | 61.5 |" in text
    assert "Published figures" not in text


def test_licence_of_a_known_base_is_shown(run: Path) -> None:
    facts = card_for_directory(run, base_models=["Salesforce/xgen-mm-phi3-mini-instruct-r-v1", "someone/else"])
    text = render_card(facts)
    assert "| Licence of Salesforce/xgen-mm-phi3-mini-instruct-r-v1 | cc-by-nc-4.0 |" in text
    assert "| Licence of the weights | unknown |" in text
    assert "Licence of someone/else" not in text


class HostArguments:
    """Stands for the host's `TrainingArguments`."""

    def to_dict(self) -> dict[str, Any]:
        """Values as the host writes them."""
        return {
            "learning_rate": 0.0001,
            "max_steps": -1,
            "bf16": True,
            "fp16": False,
            "loss_type": ["sigmoid", "sft"],
            "output_dir": "/home/someone/runs",
            "hub_token": "not for others",
        }


def test_training_arguments_are_taken_by_name_and_never_whole(run: Path) -> None:
    facts = card_for_directory(run, training_args=HostArguments())
    assert facts.training is not None
    assert facts.training.settings == {
        "learning rate": 0.0001,
        "bf16": True,
        "loss type": "sigmoid, sft",
        "optimiser steps": 120,
        "epochs run": 3.0,
    }


def test_adapter_names_base_size_and_how_to_load_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    facts = card_for_directory(tmp_path, repo_id="me/adapter")
    text = render_card(facts)
    assert check_text(text) == []
    assert "library_name: peft" in text
    assert "base_model_relation: adapter" in text
    assert "| LORA modules | o_proj, qkv_proj |" in text
    assert facts.summary == f"Adapter weights trained from {BASE}."
    assert 'PeftModel.from_pretrained(model, "me/adapter")' in text


def test_adapter_of_a_local_base_does_not_publish_the_path(tmp_path: Path) -> None:
    secret = tmp_path / "secret-project"
    secret.mkdir()
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER | {"base_model_name_or_path": str(secret)}))
    facts = card_for_directory(tmp_path)
    text = render_card(facts)
    assert check_text(text) == []
    assert facts.base_models == ()
    assert "secret-project" not in text
    assert "base model they belong to is not recorded" in text


def test_pickled_arguments_are_not_opened(run: Path) -> None:
    (run / "training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    assert card_for_directory(run) == card_for_directory(run)


def test_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XGenMMError, match=r"holds neither `config.json` nor `adapter_config.json`"):
        card_for_directory(tmp_path)


def test_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    with pytest.raises(XGenMMError, match="is a `phi3` model"):
        card_for_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", "{", "cannot be read as JSON"),
        ("card.yaml", "titles: x", "unknown key `titles`; did you mean `title`"),
        ("card.yaml", "a: [", "cannot be read as YAML"),
        ("card.yaml", "just text", "expected a mapping"),
    ],
)
def test_damaged_file_is_refused_by_name(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(XGenMMError, match=message):
        card_for_directory(run)


def test_unknown_fact_is_refused_with_the_nearest_name(run: Path) -> None:
    with pytest.raises(XGenMMError, match="unknown key `licence`; did you mean `license`"):
        card_for_directory(run, licence={"id": "mit"})
