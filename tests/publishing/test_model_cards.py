"""Cards of the published checkpoints: figures, sources, metadata, code."""

import ast
import importlib
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import xgen_mm
from tests.publishing.published_figures import PUBLISHED
from xgen_mm import XGenMMForConditionalGeneration, XGenMMProcessor
from xgen_mm.conversion.presets import PRESETS, preset_config
from xgen_mm.errors import XGenMMError
from xgen_mm.publishing.card_checks import check_facts, check_text
from xgen_mm.publishing.card_facts import Usage
from xgen_mm.publishing.card_metadata import eval_results
from xgen_mm.publishing.model_card import MARKER, card_names, load_card, parse_card, render_card, write_card
from xgen_mm.weight_files import read_raw_header

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "model_cards"
NAMES = card_names()
PICTURE = Path(xgen_mm.__file__).parent / "cli" / "demo_images" / "86.png"
TINY = "xgen-mm-tiny"
INTERLEAVED = "xgen-mm-phi3-mini-instruct-interleave-r-v1.5"
MINIMAL = {"name": "run", "title": "Run", "status": "trained", "summary": "A run."}


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def table_lines(text: str) -> list[list[str]]:
    """Cells of the lines of all tables of figures, as a reader sees them."""
    results = text.split("## Results")[1]
    return [re.split(r"\s*\|\s*", line)[1:-1] for line in results.splitlines() if line.startswith("| ")]


def test_every_published_checkpoint_has_a_card() -> None:
    released = [
        name for name in PRESETS if preset_config(name).model_type and "medium" not in name and "dfn" not in name
    ]
    assert set(released) <= set(NAMES)
    assert {name for name in NAMES if "vid" in name or name.startswith("blip-3")} == {
        "blip-3-14b",
        "blip-3-4b",
        "xgen-mm-vid-phi3-mini-r-v1.5-32tokens-8frames",
        "xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames",
    }


@pytest.mark.parametrize("name", NAMES)
def test_rendered_page_is_current(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page == render_card(name), "run `xgen-mm card --all`"


def test_every_rendered_page_has_data() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_has_no_findings(name: str) -> None:
    assert check_facts(load_card(name)) == []
    assert check_text(render_card(name)) == []


@pytest.mark.parametrize("name", sorted(set(NAMES) - {TINY}))
def test_figures_equal_their_second_copy(name: str) -> None:
    assert {table.title: table.values for table in load_card(name).results} == PUBLISHED.get(name, {})


def test_figures_of_the_small_model_equal_its_scores() -> None:
    scores = json.loads((ROOT / "recipes" / "tiny" / "scores.json").read_text(encoding="utf-8"))
    facts = load_card(TINY)
    (table,) = facts.results
    assert {facts.benchmarks[key].name: (values[0], table.intervals[key]) for key, values in table.values.items()} == {
        score["task"]: (round(100 * score["share"], 1), (round(100 * score["low"], 1), round(100 * score["high"], 1)))
        for score in scores["scores"]
    }
    assert {facts.benchmarks[key].split for key in table.values} == {scores["split"]}
    assert {score["num_questions"] for score in scores["scores"]} == {table.num_questions}


def test_parameters_of_the_small_model_are_those_of_its_file() -> None:
    entries = read_raw_header(xgen_mm.tiny_checkpoint() / "model.safetensors").entries
    total = sum(math.prod(entry["shape"]) for name, entry in entries.items() if name != "__metadata__")
    assert load_card(TINY).parts["Parameters"] == f"{total:,}"


@pytest.mark.parametrize("name", [name for name in NAMES if name in PRESETS])
def test_sizes_of_a_released_model_are_those_of_its_configuration(name: str) -> None:
    config, parts = preset_config(name), load_card(name).parts
    assert (
        f"{config.tile_size}-pixel tiles, patches of {config.vision_config.patch_size} pixels" in parts["Vision tower"]
    )
    assert f"{config.resampler_config.num_latents} tokens per tile" in parts["Connector"]
    assert f"{config.text_config.max_position_embeddings:,} tokens of context" in parts["Language model"]


@pytest.mark.parametrize("name", [name for name in NAMES if any(table.averages for table in load_card(name).results)])
def test_means_are_those_of_the_printed_rows(name: str) -> None:
    lines = table_lines(render_card(name))
    means = [index for index, line in enumerate(lines) if line[0].startswith("mean (")]
    assert means
    for index in means:
        start = max(i for i, line in enumerate(lines[:index]) if line[0] == "benchmark")
        rows = {line[0]: float(line[4]) for line in lines[start + 1 : index] if not line[0].startswith("mean (")}
        label = lines[index]
        chosen = [value for row, value in rows.items() if label[2] == "all rows" or row in label[2].split(", ")]
        assert float(label[-1]) == pytest.approx(sum(chosen) / len(chosen), abs=0.0501)


@pytest.mark.parametrize("name", NAMES)
def test_every_printed_figure_names_split_metric_unit_harness_and_source(name: str) -> None:
    text = render_card(name)
    sections = text.split("## Results")[1].split("\n### ")[1:]
    figures = [line for line in table_lines(text) if line[0] != "benchmark" and not line[0].startswith("mean (")]
    assert len(sections) == len(load_card(name).results)
    assert all(
        re.search(r"^Source: \[.+\]\(.+\), \S.*\. Harness: \S.*prompt", section, re.MULTILINE) for section in sections
    )
    assert all(all(line[:4]) and len(line) >= 5 for line in figures)


@pytest.mark.parametrize("name", NAMES)
def test_captions_and_scores_are_points_and_accuracies_percent(name: str) -> None:
    facts = load_card(name)
    units = {facts.benchmarks[key].metric_type: facts.benchmarks[key].unit for t in facts.results for key in t.values}
    expected = {"cider": "points", "accuracy": "percent", "vqa_accuracy": "percent", "attack_success_rate": "percent"}
    assert {kind: unit for kind, unit in units.items() if kind in expected} == {
        kind: expected[kind] for kind in units if kind in expected
    }
    rows = {line[0]: line for line in table_lines(render_card(name))}
    assert all("points" in rows[row][3] for row in rows if row.endswith(("captions", "NoCaps", "TextCaps")))


@pytest.mark.parametrize("name", NAMES)
def test_metadata_survives_the_hubs_library(name: str) -> None:
    text = render_card(name)
    card = ModelCard(text)
    assert str(card) == text
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers"
    assert yaml.safe_load(card.data.to_yaml()) == yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("name", [name for name in NAMES if load_card(name).status != "paper_only"])
def test_metadata_holds_every_figure_with_its_own_source(name: str) -> None:
    facts = load_card(name)
    stored = ModelCard(render_card(name)).data.eval_results or []
    assert stored == list(eval_results(facts))
    assert len(stored) == sum(len(values) for table in facts.results for values in table.values.values())


@pytest.mark.parametrize("name", ["blip-3-4b", "blip-3-14b"])
def test_model_of_a_paper_alone_has_no_figures_in_metadata(name: str) -> None:
    data = ModelCard(render_card(name)).data
    assert data.eval_results is None
    assert data.license == "unknown"
    assert python_blocks(render_card(name)) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("xgen-mm-phi3-mini-instruct-r-v1", "cc-by-nc-4.0"),
        (INTERLEAVED, "apache-2.0"),
        ("xgen-mm-vid-phi3-mini-r-v1.5-32tokens-8frames", "cc-by-nc-4.0"),
    ],
)
def test_licence_of_the_card_stands_in_the_metadata(name: str, wanted: str) -> None:
    assert ModelCard(render_card(name)).data.license == wanted


def test_wrong_statements_in_circulation_are_corrected() -> None:
    assert "the average of the table is 62.0" in render_card("blip-3-14b")
    assert "DPO alone gives 54.9 %; the safety fine-tuning after it gives 5.2 %" in render_card(
        "xgen-mm-phi3-mini-instruct-dpo-r-v1.5"
    )
    assert "| mean (all) | | all rows | % | 62.0 |" in render_card("blip-3-14b")


def test_hallucination_figures_of_both_papers_are_different_benchmarks() -> None:
    old, new = load_card("xgen-mm-phi3-mini-instruct-dpo-r-v1.5"), load_card("blip-3-14b")
    keys = [{key for table in card.results for key in table.values if "hallusion" in key} for card in (old, new)]
    assert keys == [{"hallusion_all"}, {"hallusion_mean"}]


@pytest.mark.parametrize("name", NAMES)
def test_code_imports_names_that_exist(name: str) -> None:
    for code in python_blocks(render_card(name)):
        tree = ast.parse(code)
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]:
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        hosts = {"model": XGenMMForConditionalGeneration, "processor": XGenMMProcessor, "xgen_mm": xgen_mm}
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]:
            host = hosts.get(ast.unparse(node.value))
            assert host is None or hasattr(host, node.attr)


@pytest.mark.parametrize("name", [TINY, INTERLEAVED, "xgen-mm-phi3-mini-base-r-v1.5"])
def test_code_runs_on_the_small_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = python_blocks(render_card(name))
    for file in ("picture.png", "bus.png", "dogs.png"):
        shutil.copy(PICTURE, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(load_card(name).repo_id or "-", str(xgen_mm.tiny_checkpoint())), name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_code_of_the_small_model_reads_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = python_blocks(render_card(TINY))
    exec(compile(code, TINY, "exec"), {})
    assert capsys.readouterr().out.strip() == "86"


def test_adapter_code_parses_and_names_its_base() -> None:
    facts = parse_card(MINIMAL | {"base_models": [f"Salesforce/{INTERLEAVED}"], "repo_id": "me/adapter"}, where="x")
    (code,) = python_blocks(render_card(replace(facts, usage=Usage(kind="adapter"))))
    ast.parse(code)
    assert f'base = "Salesforce/{INTERLEAVED}"' in code
    assert 'PeftModel.from_pretrained(model, "me/adapter")' in code


def test_minimal_card_invents_nothing() -> None:
    text = render_card(parse_card(MINIMAL, where="x"))
    assert check_text(text) == []
    assert "No figures." in text
    assert not re.search(r"None|Training|Intended use|Citation|Not known|Parity", text)


@pytest.mark.parametrize("name", ["xgen-mm-phi3-mini-instruct-interleave-r-v1", "Salesforce/xgen-mm-tny"])
def test_unknown_card_is_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(XGenMMError, match=r"did you mean `xgen-mm-"):
        load_card(name)


def test_hub_id_finds_its_card() -> None:
    assert load_card(f"Salesforce/{INTERLEAVED}") == load_card(INTERLEAVED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"summary_": "x"}, "unknown key `summary_`; did you mean `summary`", id="key"),
        pytest.param({"status": "release"}, "`status` of run is 'release'", id="status"),
        pytest.param({"limits": 3}, "limits.0.` is 3; expected a value of type str", id="type"),
        pytest.param({"usage": {"kind": "none"}}, "say why there is no example", id="no-reason"),
        pytest.param({"citations": ["xgenmm"]}, "unknown citation `xgenmm`; did you mean `xgen_mm`", id="citation"),
        pytest.param({"training": {"setting": {}}}, "did you mean `settings`", id="nested-key"),
    ],
)
def test_wrong_data_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(XGenMMError, match=message):
        parse_card(MINIMAL | change, where="run")


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(XGenMMError, match=r"lacks \['status', 'summary'\]"):
        parse_card({"name": "run", "title": "Run"}, where="run")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param({"values": {"mmmmu": 1.0}}, "unknown benchmark `mmmmu`; did you mean `mmmu`", id="benchmark"),
        pytest.param(
            {"source": "report_2023"}, "unknown source `report_2023`; did you mean `report_2024`", id="source"
        ),
        pytest.param({"harness": "vlmeval"}, "unknown harness `vlmeval`; did you mean `vlmevalkit`", id="harness"),
        pytest.param({"shots": [0, 4]}, "has 1 values for 2 columns", id="columns"),
        pytest.param({"splits": {"pope": "val"}}, r"\['pope'\], which are no rows", id="row"),
        pytest.param({"source": None}, "source` is None", id="no-source"),
    ],
)
def test_figure_without_a_definition_is_refused(table: dict[str, object], message: str) -> None:
    good = {"title": "T", "source": "report_2024", "locator": "1", "harness": "vlmevalkit", "values": {"mmmu": 1.0}}
    assert parse_card(MINIMAL | {"results": [good]}, where="run").results
    with pytest.raises(XGenMMError, match=message):
        parse_card(MINIMAL | {"results": [good | table]}, where="run")


def test_bars_in_a_cell_do_not_break_the_table() -> None:
    facts = parse_card(MINIMAL | {"parts": {"a|b": "c\nd | e"}}, where="run")
    assert "| a\\|b | c d \\| e |" in render_card(facts)


def test_page_written_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    write_card(TINY, page)
    assert MARKER in page.read_text(encoding="utf-8")
    write_card(TINY, page)
    page.write_text("# Mine")
    with pytest.raises(XGenMMError, match="was not made by `xgen-mm card`"):
        write_card(TINY, page)
    assert page.read_text() == "# Mine"


def test_example_of_the_documentation_is_a_right_card() -> None:
    page = (ROOT / "docs" / "model_cards.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    facts = parse_card(MINIMAL | yaml.safe_load(example), where="example")
    assert check_facts(facts) + check_text(render_card(facts)) == []
    assert "| Totals | test | exact match | % | 91.5 |" in render_card(facts)
