"""The table "What works" in the README names tests that exist, and a reason where something does not work."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERDICTS = {"yes", "partly", "no"}


def rows() -> list[tuple[str, str, str]]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What works")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(feature.strip("| "), verdict, proof) for feature, verdict, proof in cells]


def test_table_is_there_and_says_yes_partly_or_no() -> None:
    assert len(rows()) > 20
    assert {verdict for _, verdict, _ in rows()} == VERDICTS


@pytest.mark.parametrize(("feature", "verdict", "proof"), rows(), ids=[row[0] for row in rows()])
def test_every_row_names_tests_that_exist_or_a_reason(feature: str, verdict: str, proof: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", proof)
    reason = re.sub(r"`tests/[^`]+`|[\s,;:]", "", proof)
    assert named if verdict == "yes" else len(reason) > 20, feature
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        if function:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
        if path.endswith(".py"):
            assert "def test_" in (ROOT / path).read_text(encoding="utf-8"), name
