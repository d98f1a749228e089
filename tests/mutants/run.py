"""Puts each fault into a copy of the source, runs the tests that should notice it, and counts those that did.

    python -m tests.mutants.run [--only WORD ...] [--jobs N]

Exit status: 0 if enough faults were noticed, 1 if not, 2 if an edit or the tests themselves are broken.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from .edits import GROUPS, Edit

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "xgen_mm"
TESTS = ROOT / "tests"
NEEDED_SHARE = 0.9
# A fault may keep a loop from ending; the tests of one edit take a minute on a busy machine.
TIMEOUT_SECONDS = 300


class BrokenEditError(Exception):
    """An edit that does not fit the source, or tests that fail without one."""


class Outcome(NamedTuple):
    """What became of one fault.

    Attributes:
        was_noticed: Whether a test failed.
        seconds: How long the tests took.
        detail: First test that failed, or why there is none.
    """

    was_noticed: bool
    seconds: float
    detail: str


def edited(edit: Edit) -> str:
    """Text of the file with the fault in it.

    Raises:
        BrokenEditError: If the old text does not stand there exactly once, or the result is no Python.
    """
    path = PACKAGE / edit.file
    if not path.is_file():
        raise BrokenEditError(f"{edit.title}: there is no file `{edit.file}`.")
    text = path.read_text(encoding="utf-8")
    count = text.count(edit.old)
    if count != 1:
        raise BrokenEditError(f"{edit.title}: the old text stands there {count} times, expected once.")
    changed = text.replace(edit.old, edit.new)
    try:
        compile(changed, edit.file, "exec")
    except SyntaxError as error:
        raise BrokenEditError(f"{edit.title}: with the new text the file is no Python ({error}).") from error
    missing = [name for name in edit.tests.split() if not (TESTS / name).is_file()]
    if missing or edit.old == edit.new:
        raise BrokenEditError(f"{edit.title}: tests {missing} are missing, or nothing changes.")
    return changed


def chosen(words: Sequence[str]) -> list[Edit]:
    """Edits whose group is one of the words, or whose file or text holds one; all of them without a word."""
    return [
        edit
        for group, edits in GROUPS.items()
        for edit in edits
        if not words or any(word == group or word in edit.file or word in edit.old for word in words)
    ]


def run_tests(source: Path, tests: Sequence[str]) -> Outcome:
    """Run test files on the package below `source` until one test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    start = time.monotonic()
    try:
        result = subprocess.run(
            [*command, *(str(TESTS / name) for name in tests)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(True, time.monotonic() - start, "did not end")
    seconds = time.monotonic() - start
    # 1: a test failed; 2: a test file could not be imported. Anything else says nothing about the fault.
    if result.returncode not in (0, 1, 2):
        raise BrokenEditError(f"pytest ended with {result.returncode}: {result.stdout[-500:]}{result.stderr[-500:]}")
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Outcome(result.returncode != 0, seconds, failed[0].split(" - ")[0] if failed else "every test passed")


def try_edit(edit: Edit, directory: Path) -> Outcome:
    """Run the tests of one edit on a copy of the package that has it."""
    source = directory / "src"
    # Times of the files are kept, so that only the edited one has to be compiled anew.
    shutil.copytree(PACKAGE, source / PACKAGE.name)
    (source / PACKAGE.name / edit.file).write_text(edited(edit), encoding="utf-8")
    try:
        return run_tests(source, edit.tests.split())
    finally:
        shutil.rmtree(source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the edits; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help=f"{', '.join(GROUPS)}, or part of a line"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="edits tried at the same time")
    options = parser.parse_args(arguments)
    edits = chosen(options.only)
    try:
        if not edits:
            raise BrokenEditError(f"No edit fits {options.only}; groups are {', '.join(GROUPS)}.")
        for edit in edits:
            edited(edit)
        outcomes = try_all(edits, jobs=options.jobs)
    except BrokenEditError as error:
        print(error, file=sys.stderr)
        return 2
    return report(edits, outcomes)


def try_all(edits: Sequence[Edit], *, jobs: int) -> dict[Edit, Outcome]:
    """Try edits side by side, and say what became of each.

    Raises:
        BrokenEditError: If a test fails without any edit, which would pass for having noticed one.
    """
    tests = sorted({name for edit in edits for name in edit.tests.split()})
    print(f"The {len(tests)} test files on the unchanged source", flush=True)
    untouched = run_tests(PACKAGE.parent, tests)
    if untouched.was_noticed:
        raise BrokenEditError(f"Without any edit: {untouched.detail}. Mend that first.")
    outcomes: dict[Edit, Outcome] = {}
    with TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(try_edit, edit, Path(directory) / str(number)): edit for number, edit in enumerate(edits)
        }
        for future in as_completed(futures):
            edit, outcome = futures[future], future.result()
            outcomes[edit] = outcome
            verdict = "killed  " if outcome.was_noticed else "SURVIVED"
            print(f"{len(outcomes):3}/{len(edits)}  {verdict} {outcome.seconds:5.0f} s  {edit.title}", flush=True)
    return outcomes


def report(edits: Sequence[Edit], outcomes: dict[Edit, Outcome]) -> int:
    """Print the table of groups and the faults that nobody noticed; returns the exit status."""
    print(f"\n{'part':12} {'killed':>6} {'all':>4}")
    for group, members in GROUPS.items():
        tried = [outcomes[edit] for edit in members if edit in outcomes]
        if tried:
            print(f"{group:12} {sum(outcome.was_noticed for outcome in tried):6} {len(tried):4}")
    survivors = [edit for edit in edits if not outcomes[edit].was_noticed]
    num_killed = len(edits) - len(survivors)
    print(f"{'together':12} {num_killed:6} {len(edits):4}  ({num_killed / len(edits):.0%}, needed {NEEDED_SHARE:.0%})")
    for edit in survivors:
        print(f"\nSurvived {edit.file}, tests {edit.tests}\n  - {edit.old}\n  + {edit.new}")
    return 0 if num_killed >= NEEDED_SHARE * len(edits) else 1


if __name__ == "__main__":
    sys.exit(main())
