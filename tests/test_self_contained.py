"""Saved checkpoints carry the code that loads them where the package is missing."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import xgen_mm
from tests.v1 import small_v1
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor, XGenMMV1ImageProcessor
from xgen_mm.self_contained import flat_modules

# Run where `import xgen_mm` fails: loads what `save` has written, runs it, and saves it once more.
CLEAN_PROCESS = """
import sys
sys.modules["xgen_mm"] = None
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from PIL import Image

OTHERS = (AutoConfig, AutoModel, AutoImageProcessor)
for name in sys.argv[1:]:
    directory = Path(name)
    again = directory / "again"
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    model.save_pretrained(again)
    processor.save_pretrained(again)
    model = AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(again, trust_remote_code=True)
    others = [auto.from_pretrained(directory, trust_remote_code=True) for auto in OTHERS]
    for part in (model, processor, processor.image_processor, *others):
        print(type(part).__module__.split(".")[0], type(part).__name__)
    text = (directory / "prompt.txt").read_text()
    inputs = processor(text=text, images=Image.open(directory / "picture.png"), return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        results = {"logits": model(**inputs).logits, "ids": ids}
    save_file(results | dict(inputs), directory / "results.safetensors")
"""


def expected_results(directory: Path, picture: Image.Image, text: str) -> dict[str, torch.Tensor]:
    """What the package itself gives for a saved checkpoint; writes the inputs for the clean process."""
    picture.save(directory / "picture.png")
    (directory / "prompt.txt").write_text(text)
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    inputs = AutoProcessor.from_pretrained(directory)(text=text, images=picture, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return {"logits": model(**inputs).logits, "ids": ids, **inputs}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint()).save_pretrained(directory)
    AutoProcessor.from_pretrained(xgen_mm.tiny_checkpoint()).save_pretrained(directory)
    return directory


def test_saved_checkpoints_give_the_same_numbers_without_the_package(
    tiny: Path, tmp_path: Path, checker_image: Callable[[int, int], Image.Image]
) -> None:
    v1 = tmp_path / "v1"
    tokenizer = AutoProcessor.from_pretrained(xgen_mm.tiny_checkpoint()).tokenizer
    size, grids = {"height": small_v1.TILE, "width": small_v1.TILE}, small_v1.small_config().image_grid_pinpoints
    text_config = small_v1.small_config().text_config.to_dict() | {"vocab_size": len(tokenizer)}
    small_v1.build(text_config=text_config, image_token_id=tokenizer.convert_tokens_to_ids("<image>")).save_pretrained(
        v1
    )
    XGenMMProcessor(
        XGenMMV1ImageProcessor(size=size, image_grid_pinpoints=grids), tokenizer, num_latents=small_v1.LATENTS
    ).save_pretrained(v1)
    picture = checker_image(40, 60)
    expected = {path: expected_results(path, picture, "<image>\n") for path in (tiny, v1)}

    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(tiny), str(v1)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    homes = {line.split()[0] for line in result.stdout.splitlines()}
    assert homes == {"transformers_modules"}
    for path, numbers in expected.items():
        found = load_file(path / "results.safetensors")
        assert found.keys() == numbers.keys()
        # Ids, masks and sizes exactly; sums of floats round by the threads of a process and where its weights lie.
        for name, tensor in numbers.items():
            torch.testing.assert_close(found[name], tensor, msg=lambda text, at=(path.name, name): f"{at}: {text}")


def test_package_uses_its_own_classes_for_a_checkpoint_with_code(tiny: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    assert type(model) is XGenMMForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(tiny, trust_remote_code=True)) is XGenMMProcessor


def test_saved_modules_import_only_their_siblings_and_other_packages(tiny: Path) -> None:
    names = {path.stem for path in tiny.glob("*.py")}
    assert {"configuration_xgen_mm", "modeling_xgen_mm", "processing_xgen_mm", "image_processing_xgen_mm"} <= names
    for path in tiny.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [node] if isinstance(node, ast.ImportFrom) else []
            assert all(item.level in (0, 1) for item in found), path
            assert all(item.module in names for item in found if item.level == 1), path
            assert not any((item.module or "").startswith("xgen_mm") for item in found), path


def test_every_auto_class_is_named_in_the_saved_files(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    processor = json.loads((tiny / "processor_config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    assert processor["auto_map"]["AutoProcessor"] == "processing_xgen_mm.XGenMMProcessor"
    assert "AutoImageProcessor" in processor["image_processor"]["auto_map"]


def test_checkpoint_without_code_holds_no_module_and_no_pointer_to_one(tiny: Path, tmp_path: Path) -> None:
    # Read from a checkpoint that has code, so that a pointer could be left over.
    AutoModelForImageTextToText.from_pretrained(tiny).save_pretrained(tmp_path, with_code=False)
    AutoProcessor.from_pretrained(tiny).save_pretrained(tmp_path, with_code=False)
    assert not list(tmp_path.glob("*.py"))
    assert not any("auto_map" in path.read_text() for path in tmp_path.glob("*.json"))


def test_saving_leaves_no_pointer_in_memory(tiny: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint())
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        pytest.param("from . import sibling", "write `from .module import name`", id="package"),
        pytest.param("import xgen_mm.errors", "relatively", id="absolute"),
        pytest.param("from xgen_mm.errors import XGenMMError", "relatively", id="absolute-from"),
        pytest.param("x = files(__package__) / 'a'", "reads a file of its package", id="resource"),
    ],
)
def test_module_that_cannot_stand_alone_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, message: str
) -> None:
    (tmp_path / "odd.py").write_text(f'"""Odd."""\n\n{statement}\n')
    monkeypatch.setattr("xgen_mm.self_contained.ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"`xgen_mm.odd`.*{message}"):
        flat_modules(["xgen_mm.odd"])


def test_two_modules_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text("")
    monkeypatch.setattr("xgen_mm.self_contained.ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"would both become `same\.py`"):
        flat_modules(["xgen_mm.one.same", "xgen_mm.other.same"])
