"""A checkpoint saved with its code under one version of transformers loads under the others, without the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xgen_mm

PICTURE = Path(xgen_mm.__file__).parent / "cli" / "demo_images" / "407.png"
# Pythons of environments with other versions of transformers, separated like search paths: `make test-hosts`.
OTHERS = [python for python in os.environ.get("XGEN_MM_OTHER_PYTHONS", "").split(os.pathsep) if python]
EXPORT = "import sys, xgen_mm; from xgen_mm.publishing.export import export_checkpoint as export; export({})"
ANSWER = """
import sys
sys.modules["xgen_mm"] = None
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
question = "What number is in the image?"
content = [{"type": "image", "image": Image.open(sys.argv[2])}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
print(transformers.__version__)
print(model.generate(**inputs, max_new_tokens=8)[0].tolist())
"""


def output(python: str, code: str, *arguments: Path, home: Path) -> list[str]:
    """Lines that a Python prints, with a cache of its own for the code of checkpoints and no network."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="needs environments with other versions of transformers: make test-hosts")
def test_checkpoint_exported_under_any_host_gives_the_same_ids_under_all(tmp_path: Path) -> None:
    answers, versions = set(), set()
    for number, writer in enumerate([sys.executable, *OTHERS]):
        directory = tmp_path / f"checkpoint-{number}"
        output(writer, EXPORT.format("xgen_mm.tiny_checkpoint(), sys.argv[1]"), directory, home=tmp_path)
        for other, reader in enumerate([sys.executable, *OTHERS]):
            version, ids = output(reader, ANSWER, directory, PICTURE, home=tmp_path / f"home-{number}-{other}")
            versions.add(version)
            answers.add(ids)
    assert len(answers) == 1
    assert len(versions) == len(OTHERS) + 1
