"""Saved checkpoints carry the code that loads them where the package is missing."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import xgen_mm
from tests.v1 import small_v1
from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration, XGenMMProcessor, XGenMMV1ImageProcessor
from xgen_mm.self_contained import flat_modules, write_model_code

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
    mlp = tmp_path / "mlp"
    fields = AutoConfig.from_pretrained(tiny).to_dict() | {"resampler_config": {"model_type": "xgenmm_mlp"}}
    config = XGenMMConfig(**fields)
    XGenMMForConditionalGeneration(config).save_pretrained(mlp)
    processor = AutoProcessor.from_pretrained(tiny)
    processor.num_latents = config.tokens_per_group
    processor.save_pretrained(mlp)
    # The connector that a model has is written, and no other one.
    assert ((tiny / "perceiver.py").is_file(), (tiny / "mlp.py").is_file()) == (True, False)
    assert ((mlp / "perceiver.py").is_file(), (mlp / "mlp.py").is_file()) == (False, True)
    picture = checker_image(40, 60)
    expected = {path: expected_results(path, picture, "<image>\n") for path in (tiny, v1, mlp)}

    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(tiny), str(v1), str(mlp)]
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


DERIVED = '''"""A model that somebody derived from ours."""

import math

from xgen_mm import XGenMMConfig, XGenMMForConditionalGeneration as Base  # one of two homes
from xgen_mm.modeling.output_layer import (
    IGNORED_LABEL,
)

from .scaling import SCALE


class LouderConfig(XGenMMConfig):
    model_type = "louder"


class Louder(Base):
    config: LouderConfig

    def forward(self, *args, **kwargs):
        from .scaling import SCALE as again; assert again == SCALE and IGNORED_LABEL == -100

        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * SCALE * math.sqrt(1)
        return outputs


class InnerPart:
    def make():
        class Hidden(Base):
            pass

        return Hidden
'''
# Loads what a derived class has saved where neither the package nor the class can be imported.
LOAD_DERIVED = """
import sys
sys.modules["xgen_mm"] = None
import torch
from transformers import AutoModel, AutoModelForImageTextToText
for auto in (AutoModel, AutoModelForImageTextToText):
    model = auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
print(type(model).__name__, type(model.config).__name__, logits.sum().item())
"""


@pytest.fixture
def derived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "scaling.py").write_text("SCALE = 3.0\n")
    (package / "louder.py").write_text(DERIVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("somebodys_package.louder")
    yield module
    for name in [name for name in sys.modules if name.startswith("somebodys_package")]:
        del sys.modules[name]


def config_of(derived: ModuleType) -> XGenMMConfig:
    tiny = AutoConfig.from_pretrained(xgen_mm.tiny_checkpoint())
    parts = ("vision_config", "resampler_config", "text_config")
    return derived.LouderConfig(image_token_id=5, **{name: getattr(tiny, name) for name in parts})


def test_derived_model_is_saved_as_itself(derived: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = derived.Louder(config_of(derived)).eval()
    model.save_pretrained(tmp_path / "saved")
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "louder.LouderConfig",
        "AutoModel": "louder.Louder",
        "AutoModelForImageTextToText": "louder.Louder",
    }
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_DERIVED, str(tmp_path / "saved")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    *names, total = result.stdout.split()
    assert names == ["Louder", "LouderConfig"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().item()
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_wrapper_made_at_run_time_is_saved_as_the_class_inside(derived: ModuleType, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = derived.Louder(config_of(derived))
    # As `fully_shard` does.
    model.__class__ = type("FSDPLouder", (FSDPModule, derived.Louder), {"__module__": FSDPModule.__module__})
    auto_map = write_model_code(tmp_path, model)
    assert auto_map["AutoModel"] == "louder.Louder"


def in_script(derived: ModuleType) -> type:
    return type("Scripted", (derived.Base,), {"__module__": "__main__"})


def in_function(derived: ModuleType) -> type:
    hidden: type = derived.InnerPart.make()
    return hidden


def with_plain_import(derived: ModuleType) -> type:
    Path(derived.__file__ or "").write_text("import xgen_mm\n" + DERIVED)
    louder: type = derived.Louder
    return louder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            in_script, "loads `LouderConfig` and `Scripted`: `Scripted` is defined in a script; move it", id="script"
        ),
        pytest.param(
            in_function,
            "loads `Hidden` and `LouderConfig`: .*has no name `Hidden`; define it at the top",
            id="function",
        ),
        pytest.param(with_plain_import, "line 1: write `from xgen_mm import name`", id="plain-import"),
    ],
)
def test_derived_model_that_cannot_be_exported_is_saved_without_code_and_says_so(
    derived: ModuleType,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[ModuleType], type],
    reason: str,
) -> None:
    found = make(derived)
    with torch.device("meta"):
        model = derived.Louder(config_of(derived))
    model.__class__ = found
    (tmp_path / "saved").mkdir()
    assert write_model_code(tmp_path / "saved", model) == {}
    assert not list((tmp_path / "saved").iterdir())
    assert re.search(reason, caplog.text)


def test_directory_of_an_adapter_receives_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the `train` extra")
    # The newest host asks for a PEFT that is not out everywhere; adding and saving an adapter works with older ones.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    model = AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint())
    model.add_adapter(peft.LoraConfig(target_modules=["qkv_proj"], r=2))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert not list(tmp_path.glob("*.py"))
