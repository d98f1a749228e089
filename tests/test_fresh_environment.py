"""An exported checkpoint in an environment that has transformers, torch and pillow, and nothing of this project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import parse

import xgen_mm
from xgen_mm.publishing.export import export_checkpoint

PICTURES = Path(xgen_mm.__file__).parent / "cli" / "demo_images"
CONVERSATION = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

directory, pictures = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
turns = [
    ("Image 1: ", "407.png", "What number is in the image?"),
    ("Image 2: ", "392.png", "Which image shows the largest number?"),
    ("Image 3: ", "86.png", "What number is in image 3?"),
    ("Image 4: ", "9254.png", "Which image shows the largest number?"),
    ("How many digits are in image 2?",),
    ("What number is in image 2?",),
]
chat = []
for turn in turns:
    content = [
        {"type": "image", "image": Image.open(f"{pictures}/{part}")} if part.endswith(".png")
        else {"type": "text", "text": part}
        for part in turn
    ]
    chat.append({"role": "user", "content": content})
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=16)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    print(answer)
"""


def run(command: list[str], *, home: Path) -> str:
    """Standard output of a command with a Hub cache of its own and no network."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_conversation_is_the_same_where_the_package_is_not_installed(tmp_path: Path) -> None:
    export_checkpoint(xgen_mm.tiny_checkpoint(), tmp_path / "checkpoint")
    python = tmp_path / "venv" / "bin" / "python"
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")], home=tmp_path)
    # The same versions, so that the numbers can be the same; torch without its local label.
    import torch

    pins = [f"torch=={parse(torch.__version__).public}", f"transformers=={transformers.__version__}", "pillow"]
    run([str(python), "-m", "pip", "install", "--quiet", *pins], home=tmp_path)
    assert "xgen" not in run([str(python), "-m", "pip", "list"], home=tmp_path)
    arguments = [str(tmp_path / "checkpoint"), str(PICTURES)]
    there = run([str(python), "-c", CONVERSATION, *arguments], home=tmp_path / "home")
    here = run([sys.executable, "-c", f"import xgen_mm\n{CONVERSATION}", *arguments], home=tmp_path / "home_here")
    assert there == here
    assert there.splitlines()[0] == "407"
