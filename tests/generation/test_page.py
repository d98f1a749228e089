"""The examples of documentation pages run and print what they say."""

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "generation.md"


def test_examples_print_what_their_comments_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    expected = re.findall(r"^print\(.*\)  # (.*)$", "".join(blocks), flags=re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("".join(blocks), PAGE.name, "exec"), {})
    assert printed.getvalue().splitlines() == expected
    assert len(expected) == 3


def test_script_of_the_page_for_users_of_the_released_code_answers() -> None:
    page = (DOCS / "coming_from_released_code.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(script, "coming_from_released_code.md", "exec"), {})
    assert printed.getvalue().strip() == "86"
