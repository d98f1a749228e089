"""The list of faults fits the source, and the job counts them."""

import pytest

from . import run
from .edits import GROUPS, Edit


def test_every_edit_fits_the_source_once() -> None:
    edits = [edit for members in GROUPS.values() for edit in members]
    broken = []
    for edit in edits:
        try:
            run.edited(edit)
        except run.BrokenEditError as error:
            broken.append(str(error))
    assert broken == []
    assert len(set(edits)) == len(edits) >= 60


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(Edit("anyres.py", "no such line", "", "test_anyres.py"), "0 times", id="gone"),
        pytest.param(Edit("anyres.py", "return", "", "test_anyres.py"), "expected once", id="often"),
        pytest.param(Edit("nothing.py", "a", "b", "test_anyres.py"), "no file", id="file"),
        pytest.param(Edit("anyres.py", "def _ceil", "def", "test_anyres.py"), "no Python", id="syntax"),
        pytest.param(Edit("anyres.py", "def _ceil", "def _Ceil", "test_nothing.py"), "missing", id="tests"),
    ],
)
def test_edit_that_does_not_fit_is_an_error(edit: Edit, message: str) -> None:
    with pytest.raises(run.BrokenEditError, match=message):
        run.edited(edit)


def test_job_fails_below_its_share_and_names_the_survivor(capsys: pytest.CaptureFixture[str]) -> None:
    edits = GROUPS["sampling"][:5]
    killed, survived = run.Outcome(True, 1.0, ""), run.Outcome(False, 1.0, "")
    assert run.report(edits, dict.fromkeys(edits, killed)) == 0
    assert run.report(edits, dict.fromkeys(edits, killed) | {edits[2]: survived}) == 1
    assert f"- {edits[2].old}\n" in capsys.readouterr().out


def test_words_choose_groups_files_or_lines() -> None:
    assert run.chosen(["anyres"])[:8] == GROUPS["anyres"]
    assert {edit.file for edit in run.chosen(["packing.py"])} == {"data/packing.py"}
    assert run.chosen(["no such thing"]) == []
    assert run.main(["--only", "no such thing"]) == 2
