"""What the checker of model cards finds, and what it leaves alone."""

from dataclasses import replace
from typing import Any

import pytest

from xgen_mm.publishing.card_checks import check_facts, check_text
from xgen_mm.publishing.card_facts import Average
from xgen_mm.publishing.model_card import load_card, parse_card, render_card

NAME = "xgen-mm-phi3-mini-instruct-singleimg-r-v1.5"


def card_with(**changes: Any) -> Any:
    """A card with one table, which is right until something in it is changed."""
    table = {
        "title": "T",
        "source": "report_2024",
        "locator": "Table 9",
        "harness": "vlmevalkit",
        "values": {"mmmu": 40.0, "pope": 80.0},
    }
    card = {"name": "run", "title": "Run", "status": "trained", "summary": "A run.", "results": [table | changes]}
    return parse_card(card, where="run")


def test_right_table_has_no_findings() -> None:
    averages = [{"label": "all", "value": 60.0}, {"label": "one", "value": 40.0, "over": ["mmmu"]}]
    assert check_facts(card_with(averages=averages)) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        pytest.param({"averages": [{"label": "all", "value": 60.1}]}, "is 60.1, but its rows give 60.00", id="mean"),
        pytest.param({"values": {"mmmu": 101.0}}, "MMMU is 101.0, outside 0 to 100 (percent)", id="percent"),
        pytest.param({"values": {"mmmu": 0.42}}, "looks like a share; write percent", id="share"),
        pytest.param({"values": {"mme_total": 2801}}, "outside 0 to 2800 (points)", id="points"),
        pytest.param({"values": {"mme_cognition": -1}}, "outside 0 to 800 (points)", id="negative"),
        pytest.param({"intervals": {"mmmu": [41.0, 45.0]}}, "outside its interval [41.0, 45.0]", id="interval"),
        pytest.param({"locator": ""}, "`locator` is empty", id="locator"),
        pytest.param({"splits": {"mmmu": ""}}, "MMMU has no split", id="split"),
        pytest.param(
            {"values": {"coco": 90.0, "mmmu": 40.0}, "averages": [{"label": "all", "value": 65.0}]},
            "is over more than one column or unit",
            id="mixed-units",
        ),
        pytest.param(
            {"values": {"mme_total": 1827, "mme_perception": 1467, "mme_cognition": 350}},
            "MME is 1827, but its halves give 1817",
            id="sum",
        ),
        pytest.param(
            {"values": {"textvqa": 50.0, "textvqa_instruct": 60.0}, "splits": {"textvqa": "not stated"}},
            "TextVQA (VQA accuracy (%)) is stated twice",
            id="twice",
        ),
    ],
)
def test_wrong_table_is_found(changes: dict[str, Any], finding: str) -> None:
    assert any(finding in line for line in check_facts(card_with(**changes)))


def test_low_attack_success_rate_is_no_share() -> None:
    assert check_facts(card_with(values={"vlguard": 0.5})) == []


def test_typo_in_a_published_figure_shows_in_the_mean() -> None:
    facts = load_card(NAME)
    table = facts.results[0]
    wrong = replace(table, values=table.values | {"mmmu": (48.2,)})
    assert any("but its rows give 65.18" in line for line in check_facts(replace(facts, results=(wrong,))))


def test_typo_in_a_published_mean_is_found() -> None:
    facts = load_card("blip-3-14b")
    wrong = replace(facts.results[0], averages=(Average(label="all", value=73.4),))
    findings = check_facts(replace(facts, results=(wrong,)))
    assert findings == ["table 'Single pictures': the mean 'all' is 73.4, but its rows give 61.98"]


def test_two_sources_of_one_benchmark_are_found() -> None:
    facts = load_card(NAME)
    table = facts.results[0]
    other = replace(table, source="card_dpo", values={"pope": (86.8,)}, averages=())
    assert any("POPE has two sources" in line for line in check_facts(replace(facts, results=(table, other))))


def test_name_of_a_data_set_the_hub_refuses_is_found() -> None:
    facts = load_card(NAME)
    wrong = replace(facts.benchmarks["mmmu"], dataset="MMMU (val)")
    assert any(
        "`MMMU (val)` is no name of a data set" in line
        for line in check_facts(replace(facts, benchmarks=facts.benchmarks | {"mmmu": wrong}))
    )


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        pytest.param("---\n", "", "there is no metadata", id="no-metadata"),
        pytest.param("license: apache-2.0", "license: [", "the metadata cannot be read", id="yaml"),
        pytest.param("license: apache-2.0\n", "", "`license` is missing", id="licence"),
        pytest.param(
            "pipeline_tag: image-text-to-text", "pipeline_tag: chat", "`pipeline_tag` is 'chat'", id="pipeline"
        ),
        pytest.param("value: 42.8", "value: about 43", "is no number", id="value"),
        pytest.param("      type: mmmu\n", "      type: MMMU (val)\n", "is no name of a data set", id="data-set"),
        pytest.param("    metrics:\n", "    metric:\n", "cannot be read", id="model-index"),
        pytest.param("model = Auto", "model == = Auto", "does not parse", id="code"),
        pytest.param(
            "print(processor.decode(answer, skip_special_tokens=True))\n```", "", "is not closed", id="fence"
        ),
        pytest.param("](https://arxiv.org/abs/2408.08872v1)", "](https://arxiv .org)", "white space", id="link-space"),
        pytest.param(
            "](https://arxiv.org/abs/2408.08872v1)", "](https://localhost:80/x)", "public name", id="link-host"
        ),
        pytest.param("](https://arxiv.org/abs/2408.08872v1)", "](ftp://arxiv.org)", "no scheme", id="link-scheme"),
        pytest.param("](https://arxiv.org/abs/2408.08872v1)", "](../x.md)", "inside the repository", id="link-path"),
        pytest.param("](https://huggingface.co/", "](https://huggingface.co\n/", "not closed", id="link-end"),
    ],
)
def test_damaged_page_is_found(old: str, new: str, finding: str) -> None:
    text = render_card(NAME)
    assert check_text(text) == []
    assert old in text
    findings = check_text(text.replace(old, new))
    assert any(finding in line for line in findings), findings


@pytest.mark.parametrize(
    ("leak", "what"),
    [
        pytest.param("saved in /home/someone/run", "a path of this machine", id="home"),
        pytest.param("(/mnt/disk1/run)", "a path of this machine", id="mount"),
        pytest.param("see file:///x", "a path of this machine", id="file-url"),
        pytest.param("C:\\Users\\me", "a path of this machine", id="windows"),
        pytest.param("~/runs/1", "a path of this machine", id="tilde"),
        pytest.param("in /lustre/someone/run", "a path of this machine", id="cluster"),
        pytest.param("in /Volumes/disk/run", "a path of this machine", id="mac"),
        pytest.param("C:/Users/me", "a path of this machine", id="windows-slash"),
        pytest.param("hf_" + "aB3" * 10, "a Hugging Face token", id="hub-token"),
        pytest.param("AKIA" + "ABCD" * 4, "an AWS access key", id="cloud-token"),
        pytest.param("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "a private key", id="key"),
        pytest.param("https://me:hunter22@example.org", "an address with a password", id="url-password"),
        pytest.param("api_key = 12345678", "a password or key", id="api-key"),
        pytest.param("{{ summary }}", "an unfilled placeholder", id="placeholder"),
    ],
)
def test_what_must_not_be_published_is_found_but_not_repeated(leak: str, what: str) -> None:
    text = render_card(NAME)
    number = text.splitlines().index("## Parity") + 2
    findings = check_text(text.replace("## Parity\n", f"## Parity\n{leak}\n"))
    assert f"line {number} holds {what}" in findings
    assert not any("hunter22" in line or leak in line for line in findings)


@pytest.mark.parametrize(
    "harmless",
    [
        "https://huggingface.co/data/home/x",
        "`recipes/tiny/scores.json`, and/or work/home",
        "a secret of success",
        "[here](docs/page.md)",
        "50/100 and 3:4",
    ],
)
def test_harmless_text_is_left_alone(harmless: str) -> None:
    assert check_text(render_card(NAME).replace("## Parity\n", f"## Parity\n{harmless}\n")) == []


def test_own_figure_without_a_sourced_table_is_found() -> None:
    text = render_card("xgen-mm-tiny")
    assert check_text(text) == []
    findings = check_text(text.replace("\nSource: ", "\nFrom: "))
    assert "one digit: the metadata states a figure without a source" in findings


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(BOMB, id="aliases"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, id="deep"),
        pytest.param("a: &a [*a]", id="itself"),
        pytest.param("a: 2024-99-99", id="date"),
        pytest.param("a: " + "9" * 5000, id="number"),
        pytest.param("- a", id="list"),
        pytest.param("model-index: 7", id="index"),
    ],
)
def test_metadata_that_do_harm_are_one_finding(block: str) -> None:
    findings = check_text(f"---\n{block}\n---\n# Model\n")
    assert any("the metadata cannot be read" in line for line in findings), findings
    assert all("\n" not in line and len(line) < 2000 for line in findings)
