"""No command and no load inside the package runs code that a checkpoint brings along, whatever stdin says."""

import ast
import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xgen_mm import XGenMMProcessor, auto
from xgen_mm.checkpoint_config import BLIP3O_MODEL_TYPES, MODEL_TYPES, check_model_type
from xgen_mm.cli.main import main
from xgen_mm.errors import XGenMMError
from xgen_mm.evaluation.harness.loading import load_adapter

SOURCE = Path(__file__).parents[2] / "src" / "xgen_mm"
ROWS = [{"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
# These read plain settings, or go to a model that is there already; `super()` is the host's side of our own classes.
WITHOUT_CODE = ("super()", "PeftModel", "GenerationConfig", "diffusers_class")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def foreign_config(directory: Path) -> None:
    edit(directory / "config.json", model_type="stranger", auto_map={"AutoConfig": "evil.Evil"})


def foreign_processor(directory: Path) -> None:
    edit(directory / "processor_config.json", processor_class="Stranger", auto_map={"AutoProcessor": "evil.Evil"})


def foreign_tokenizer(directory: Path) -> None:
    edit(
        directory / "tokenizer_config.json",
        tokenizer_class="Stranger",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil"},
    )


def foreign_image_processor(directory: Path) -> None:
    kind = {"image_processor_type": "Stranger", "auto_map": {"AutoImageProcessor": "evil.Evil"}}
    edit(directory / "processor_config.json", image_processor=kind, auto_map=None)
    edit(directory / "preprocessor_config.json", **kind)


def foreign_parts(directory: Path) -> None:
    pointers = {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    parts = {name: content[name] | pointers for name in ("vision_config", "text_config")}
    edit(directory / "config.json", **parts, **pointers)


def foreign_base_of_an_adapter(directory: Path) -> None:
    base = directory / "base"
    shutil.copytree(directory, base)
    foreign_config(base)
    edit(directory / "adapter_config.json", base_model_name_or_path=str(base), peft_type="LORA", r=1)


HOSTILE = (
    *(foreign_config, foreign_processor, foreign_tokenizer, foreign_image_processor, foreign_parts),
    foreign_base_of_an_adapter,
)


@pytest.fixture(params=HOSTILE, ids=lambda build: build.__name__)
def hostile(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "stranger"
    shutil.copytree(checkpoint, directory)
    marker = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (directory / "evil.py").write_text(f"{marker}class Evil:\n    pass\n", encoding="utf-8")
    request.param(directory)
    return directory


@pytest.fixture(autouse=True)
def willing_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))


COMMANDS = {
    "info": ["info", "{model}"],
    "generate": ["generate", "--model", "{model}", "--max-new-tokens", "1", "Hi"],
    "demo": ["demo", "--model", "{model}", "--output", "{out}"],
    "verify": ["verify", "{model}", "{other}"],
    "convert": ["convert", "{model}", "{out}"],
    "restore": ["convert", "--reverse", "{model}", "{out}"],
    "init": ["init", "--vision", "{model}", "--text", "{model}", "-o", "{out}"],
    "export": ["export", "--model", "{model}", "{out}"],
    "export-adapter": ["export", "--model", "{adapter}", "{out}"],
    "generate-adapter": ["generate", "--model", "{adapter}", "--max-new-tokens", "1", "Hi"],
    "card": ["card", "{model}"],
    "data": ["data", "check", "{rows}", "--format", "llava_json", "--model", "{model}"],
    "train": ["train", "{recipe}", "--set", "model.checkpoint={model}", "--set", "output.dir={out}", "--dry-run"],
    "evaluate": ["evaluate", "debug", "--limit", "1", "--model", "{model}", "--output", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_on_a_strangers_checkpoint_runs_none_of_its_code(command: str, hostile: Path, tmp_path: Path) -> None:
    rows, adapter = tmp_path / "rows.json", tmp_path / "adapter"
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    adapter.mkdir()
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(hostile), peft_type="LORA", r=1)
    words = {
        "model": hostile,
        "other": shutil.copytree(hostile, tmp_path / "other"),
        "adapter": adapter,
        "rows": rows,
        "recipe": SOURCE.parents[1] / "recipes" / "sft" / "debug.yaml",
        "out": tmp_path / "out",
    }
    # How each command ends is the business of other tests.
    with contextlib.suppress(RuntimeError):
        main([word.format(**words) for word in COMMANDS[command]])
    assert not (tmp_path / "ran").exists()


def test_loads_from_python_run_no_strangers_code(hostile: Path, tmp_path: Path) -> None:
    for load in (XGenMMProcessor.from_pretrained, load_adapter):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            load(str(hostile))
    assert not (tmp_path / "ran").exists()


def test_unknown_model_type_is_one_line_with_file_type_and_known_types(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "stranger"
    shutil.copytree(checkpoint, directory)
    foreign_config(directory)
    assert main(["info", str(directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in (str(directory / "config.json"), "`stranger`", *(f"`{name}`" for name in MODEL_TYPES)):
        assert word in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[]", "JSON list", id="list"),
        pytest.param("{", "cannot be read as JSON", id="cut-off"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param("{}", "`model_type` None", id="no-type"),
        pytest.param('{"model_type": ["xgenmm"]}', r"`model_type` \['xgenmm'\]", id="type-is-a-list"),
        pytest.param('{"model_type": "siglip"}', "`siglip` model", id="another-model"),
    ],
)
def test_model_type_check_names_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(XGenMMError, match=message):
        check_model_type(tmp_path)


def test_known_model_types_are_those_that_are_registered() -> None:
    assert {*MODEL_TYPES, *BLIP3O_MODEL_TYPES} == set(auto._MODEL_TYPES)


def test_every_load_in_the_source_says_that_it_trusts_no_code() -> None:
    careless = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func.value) not in WITHOUT_CODE and said.get("trust_remote_code") != "False":
                careless.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert careless == []
