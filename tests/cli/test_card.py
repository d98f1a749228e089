"""`xgen-mm card`: list, render, write and check."""

import json
from pathlib import Path

import pytest

import xgen_mm
from xgen_mm.cli.main import main
from xgen_mm.publishing.model_card import card_names, render_card

TINY = "xgen-mm-tiny"


def test_card_without_a_name_lists_all_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(card_names())
    assert main(["card", "--json"]) == 0
    listed = {card["name"]: card["status"] for card in json.loads(capsys.readouterr().out)}
    assert (listed[TINY], listed["blip-3-14b"]) == ("packaged", "paper_only")


def test_card_by_name_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", TINY]) == 0
    assert capsys.readouterr().out == render_card(TINY)


def test_card_of_a_directory_is_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    assert main(["card", str(xgen_mm.tiny_checkpoint()), "-o", str(page)]) == 0
    assert capsys.readouterr().out == ""
    assert "| Parameters | 3,886,976 |" in page.read_text(encoding="utf-8")


def test_all_cards_are_written_and_found_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "--all", "-o", str(tmp_path)]) == 0
    assert {page.stem for page in tmp_path.iterdir()} == set(card_names())
    assert main(["card", "--all", "--check", "-o", str(tmp_path)]) == 0
    assert f"{TINY}: nothing found" in capsys.readouterr().out


def test_check_reports_a_page_that_is_not_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "--all", "-o", str(tmp_path)]) == 0
    page = tmp_path / f"{TINY}.md"
    page.write_text(page.read_text(encoding="utf-8").replace("97.6", "99.6"), encoding="utf-8")
    capsys.readouterr()
    assert main(["card", "--all", "--check", "--json", "-o", str(tmp_path)]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [name for name, lines in findings.items() if lines] == [TINY]
    assert "is not current; run `xgen-mm card --all -o" in findings[TINY][0]


def test_check_of_a_page_ends_with_1_if_something_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(render_card(TINY), encoding="utf-8")
    assert main(["card", "--check", str(page)]) == 0
    page.write_text(render_card(TINY) + "Weights: /home/someone/weights\n", encoding="utf-8")
    assert main(["card", "--check", str(page)]) == 1
    assert "holds a path of this machine" in capsys.readouterr().out


def test_check_of_a_directory_reads_the_page_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((xgen_mm.tiny_checkpoint() / "config.json").read_bytes())
    (tmp_path / "README.md").write_text("# No metadata")
    assert main(["card", "--check", str(tmp_path)]) == 1
    assert "there is no metadata" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["xgen-mm-tinny"], "did you mean `xgen-mm-tiny`"),
        (["--all", TINY], "either a card or --all"),
        (["--check"], "--check needs a card, or --all"),
        ([str(Path(__file__))], "can only be checked (--check)"),
        ([str(Path(__file__).parent)], "holds neither `config.json`"),
    ],
)
def test_wrong_use_is_one_line_on_stderr(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_page_written_by_hand_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Mine")
    assert main(["card", TINY, "-o", str(page)]) == 2
    assert page.read_text() == "# Mine"
