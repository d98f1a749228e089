"""A small random model on disk, a handful of conversations about pictures, and recipes on them."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.training.monitoring import run_metrics
from xgen_mm.training.monitoring.curves import draw_curves
from xgen_mm.training.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]
# Height and width; on the canvases of the small model they cost 4, 5 and 4 tiles.
SIZES = ((20, 60), (40, 40), (84, 20))


@pytest.fixture(scope="session", autouse=True)
def _nothing_old_is_looked_through() -> None:
    """The host collects garbage after every run, and most of what it looks through are the libraries themselves."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the small runs; `real_curves` is for the tests that want the picture."""
    monkeypatch.setattr(run_metrics, "draw_curves", lambda metrics, picture: None)


@pytest.fixture
def real_curves(_no_curves: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves after all."""
    monkeypatch.setattr(run_metrics, "draw_curves", draw_curves)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty conversations with zero, one or two pictures, in the layout of LLaVA."""
    directory = tmp_path_factory.mktemp("conversations")
    rng = np.random.default_rng(5)
    rows = []
    for number in range(20):
        names = []
        for index in range(number % 3):
            height, width = SIZES[(number + index) % 3]
            names.append(f"{number}_{index}.png")
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(directory / names[-1])
        question = "<image>" * len(names) + " What number is it?"
        answer = f"The number is {rng.integers(1000)}." + " So it is." * (number % 4)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(number), **({"image": names} if names else {}), "conversations": turns})
    path = directory / "conversations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(tiny_model: XGenMMForConditionalGeneration, tiny_processor: XGenMMProcessor, tmp_path: Path) -> Path:
    """The small random model as a checkpoint; its weights are large enough for pictures to matter."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    tiny_model.save_pretrained(tmp_path / "start", with_code=False)
    tiny_processor.save_pretrained(tmp_path / "start", with_code=False)
    return tmp_path / "start"


@pytest.fixture
def make_recipe(checkpoint: Path, conversations: Path, tmp_path: Path) -> MakeRecipe:
    """Recipe of a few plain gradient steps, so that what the weights change by is the gradient; with changes."""

    def make(*changes: str, **sections: Any) -> Recipe:
        content = {
            "stage": "sft",
            "model": {"checkpoint": str(checkpoint), "dtype": "float32"},
            "data": [{"format": "llava_json", "path": str(conversations)}],
            "optim": {
                "learning_rate": 1.0,
                "schedule": "constant",
                "optimizer": "sgd",
                "max_grad_norm": 0.0,
                "max_steps": 1,
            },
            # A window is encoded as a whole, and few runs see more than sixteen of the samples.
            "batches": {"global_batch_size": 4, "per_device_batch_size": 2, "grouping": "fixed", "window": 16},
            "output": {"dir": str(tmp_path / "run"), "report_to": "none", "log_steps": 1},
        }
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section  # type: ignore[dict-item]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_recipe(path, changes=changes)

    return make
