"""What the tests of pushing share: the way to the stand-in of the Hub, and directories without a real model."""

import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.publishing.hub_server import HubServer

# Put together here, so that no scanner takes them for real ones.
TOKEN = "hf_" + "w" * 34
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SECRET = "sk-" + "proj-" + "0a" * 14
PICKLED = b"state of an optimizer"


def use_hub(hub: HubServer, *, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let huggingface_hub talk to a stand-in, with `TOKEN` and without pauses before it tries again."""
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _: None)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_weights(path: Path, *, value: float = 0.0, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with one tensor, called after the file."""
    path.parent.mkdir(exist_ok=True)
    save_file({path.stem: np.full((4, 4), value, dtype=np.float32)}, path, metadata=metadata or {"format": "pt"})


def write_checkpoint(directory: Path) -> Path:
    """Two shards, settings, a card with a picture, and what training leaves beside a checkpoint."""
    directory.mkdir()
    for number, shard in enumerate(SHARDS):
        write_weights(directory / shard, value=number)
    weight_map = {Path(shard).stem: shard for shard in SHARDS}
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(directory / "config.json", {"model_type": "xgenmm"})
    write_json(directory / "tokenizer_config.json", {"bos_token": "<s>"})
    vocabulary = {"/home/someone/": 0, "/mnt/data/x": 1}
    write_json(directory / "tokenizer.json", {"model": {"vocab": vocabulary, "merges": [["/home/someone", "/x"]]}})
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Model\n\n![curve](images/curve.png)\n")
    (directory / "images").mkdir()
    for name in ("curve.png", "not_shown.png"):
        Image.new("RGB", (3, 2), (len(name), 0, 0)).save(directory / "images" / name)
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-7/optimizer.pt", "global_step7/states.pt"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(PICKLED)
    write_json(directory / "trainer_state.json", {"output": "/home/someone/run"})
    (directory / ".env").write_text(f"KEY={SECRET}\n")
    (directory / "train.log").write_text(f"{SECRET} in /home/someone\n")
    (directory / "custom.py").write_text("print('hello')\n")
    return directory


def write_adapter(directory: Path, *, base: str) -> Path:
    """A LoRA adapter of a base model."""
    directory.mkdir()
    write_json(directory / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": base})
    write_weights(directory / "adapter_model.safetensors")
    return directory
