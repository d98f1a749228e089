"""The generated page of help texts."""

from pathlib import Path

import pytest

from xgen_mm.cli.help_page import build_help_page
from xgen_mm.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "help.md"


def test_help_page_in_docs_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == build_help_page(), "run `python -m xgen_mm.cli.help_page`"


def test_help_page_has_a_section_per_command() -> None:
    headings = [line for line in build_help_page().splitlines() if line.startswith("## ")]
    commands = [heading for heading in headings if len(heading.split()) <= 3]
    assert commands == ["## xgen-mm", *(f"## xgen-mm {command}" for command in COMMANDS)]
    assert "## xgen-mm data check" in headings


def test_help_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_help_page()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert build_help_page() == before
