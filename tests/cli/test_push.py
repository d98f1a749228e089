"""`xgen-mm push` against a Hub on the loopback interface."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publishing.hub_server import HubServer, running_hub
from tests.publishing.pushable import PICKLED, SECRET, TOKEN, use_hub, write_adapter, write_checkpoint
from xgen_mm.cli.main import main

REPO = "someone/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running_hub() as server:
        server.tokens[TOKEN] = ("someone",)
        use_hub(server, monkeypatch=monkeypatch, home=tmp_path / "hub_home")
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def test_push_lists_what_was_sent_and_why_the_rest_was_not(
    hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(directory), REPO, "--message", "First try"]) == 0
    captured = capsys.readouterr()
    assert f"Pushed model to {hub.url}/{REPO} (private), main: 8 files, 0.0 MB" in captured.out
    assert "config.json" in captured.out
    assert "Left out (hidden): .env\n" in captured.out
    assert "Left out (state of the training run, a pickle): optimizer.pt, training_args.bin\n" in captured.out
    assert "Uploading" in captured.err
    assert TOKEN not in captured.out + captured.err
    repository = hub.repositories[REPO]
    assert repository.commits[repository.branches["main"]].title == "First try"
    assert PICKLED not in hub.received


def test_push_again_says_that_nothing_changes(
    hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["push", str(directory), REPO, "--json"])
    capsys.readouterr()
    assert main(["push", str(directory), REPO]) == 0
    assert capsys.readouterr().out.startswith(
        f"Nothing to change: {hub.url}/{REPO} (private), main, has these 8 files"
    )


def test_push_dry_run_sends_nothing(hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(directory), REPO, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Would push model to {REPO} (private if new), main: 8 files")
    assert captured.err == ""
    assert hub.requests == []


def test_push_json_holds_the_report_and_nothing_else(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base="someone/base")
    assert main(["push", str(adapter), REPO, "--public", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert report["commit"] == hub.repositories[REPO].branches["main"]
    assert (report["kind"], report["private"], report["dry_run"]) == ("adapter", False, False)
    assert report["num_bytes"] == sum(report["files"].values()) > 0


def test_push_to_a_branch_as_pull_request_prints_its_page(
    hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = hub.create(REPO, private=True, files={"model.safetensors": b"old"})
    repository.branches["next"] = repository.branches["main"]
    assert main(["push", str(directory), REPO, "--revision", "next", "--create-pr"]) == 0
    output = capsys.readouterr().out
    assert f"Pull request: {hub.url}/{REPO}/discussions/1\n" in output
    assert "Removed there, replaced by the new weights: model.safetensors\n" in output
    assert set(repository.branches) == {"main", "next", "refs/pr/1"}


def test_push_of_a_secret_fails_with_one_line_that_does_not_show_it(
    hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "README.md").write_text(f"use {SECRET}")
    assert main(["push", str(directory), REPO]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("xgen-mm: error: ")
    assert captured.err.count("\n") == 1
    assert "README.md, line 1: an API key (sk-...); remove it and revoke it." in captured.err
    assert SECRET not in captured.out + captured.err
    assert hub.requests == []


def test_push_without_the_right_to_write_fails_with_one_line(
    hub: HubServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(directory), "other/model", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("xgen-mm: error: the token may not write to `other/model` (403)")
    assert captured.err.count("\n") == 1
    assert TOKEN not in captured.err
