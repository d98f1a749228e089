"""The journal keeps what its writer gave it, whoever writes: replies of harnesses too, which are no scored samples."""

from pathlib import Path

from xgen_mm.evaluation.journal import Journal
from xgen_mm.evaluation.results import find_sample_faults

REPLY = {"id": "a", "position": 0, "text": "yes", "error": None}


def read_again(directory: Path, *lines: str, **arguments: object) -> Journal:
    journal = Journal(directory, **arguments)
    journal.directory.mkdir(parents=True)
    journal.append("generate", [REPLY])
    journal.close()
    with (journal.directory / "rank-000.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    again = Journal(directory, **arguments)
    again.load()
    return again


def test_replies_without_scores_are_found_again(tmp_path: Path) -> None:
    assert read_again(tmp_path).finished("generate", "a") == REPLY


def test_lines_that_are_no_records_do_not_count(tmp_path: Path) -> None:
    damaged = [
        '{"task": "generate", "sample": [1]}',
        '{"task": "generate", "sample": {"id": 3, "position": 1, "error": null}}',
        '{"task": "generate", "sample": {"id": "b", "position": "x", "error": null}}',
        '{"task": "generate", "sample": {"id": "c", "position": 1}}',
        '{"task": 7, "sample": {"id": "d", "position": 1, "error": null}}',
    ]
    assert read_again(tmp_path, *damaged).records("generate") == [REPLY]


def test_run_of_our_own_takes_scored_samples_alone(tmp_path: Path) -> None:
    assert read_again(tmp_path, find_faults=find_sample_faults).finished("generate", "a") is None
