"""A judge behind a server: what it is asked, how its words are read, and that its key stays with it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmark_rows import ROWS, write_rows
from tests.evaluation.scripted_answerer import ScriptedAnswerer
from xgen_mm.evaluation.judge import JudgeError, ServerJudge
from xgen_mm.evaluation.plans import TaskPlan, plan_task
from xgen_mm.evaluation.runner import RunSettings, run_tasks
from xgen_mm.evaluation.task import load_task

SETTINGS = RunSettings(limit=None, seed=42, max_tiles=None, batch_tokens=4096, versions={})


class JudgeServer(HTTPServer):
    """Says the same to everybody and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: list[str | int] = ["0.5"]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        says = self.server.says[min(len(self.server.asked), len(self.server.says)) - 1]
        self.send_response(says if isinstance(says, int) else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": says}}]}).encode())

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def make_plan(name: str, directory: Path) -> TaskPlan:
    path = write_rows(ROWS[name, "hub"], directory / "data", layout="hub")
    return plan_task(load_task(name), paths={name: path}, generators={}, download=False, few_shot=None)


def test_judge_grades_mm_vet_and_is_recorded_without_its_key(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XGEN_MM_JUDGE_KEY", "a-secret")
    plan = make_plan("mm_vet", tmp_path)
    judge = ServerJudge(server.url, model="grader")
    answerer = ScriptedAnswerer(lambda prompt: "a reply")
    found = run_tasks([plan], answerer, settings=SETTINGS, output=tmp_path / "run", judge=judge)
    assert found["tasks"]["mm_vet"]["metrics"]["grade"] == 50.0
    assert found["settings"]["judge"] == f"grader at {server.url}/chat/completions"
    assert server.keys == ["Bearer a-secret"] * 2
    assert "What 1?" in server.asked[0]["messages"][0]["content"]
    assert (server.asked[0]["model"], server.asked[0]["temperature"]) == ("grader", 0)
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"a-secret" in content for content in written)


def test_judge_reads_replies_that_rules_cannot(server: JudgeServer, tmp_path: Path) -> None:
    server.says = ["B", "The answer is NONE"]
    plan = make_plan("mmbench_en_dev", tmp_path)
    judge = ServerJudge(server.url, model="grader")
    answerer = ScriptedAnswerer(lambda prompt: "the second of them")
    found = run_tasks([plan], answerer, settings=SETTINGS, output=tmp_path / "run", judge=judge)
    assert [sample["answer"] for sample in found["tasks"]["mmbench_en_dev"]["samples"]] == ["B", None]


def test_judge_is_not_asked_where_rules_suffice(server: JudgeServer, tmp_path: Path) -> None:
    plan = make_plan("mmbench_en_dev", tmp_path)
    judge = ServerJudge(server.url, model="grader")
    run_tasks([plan], ScriptedAnswerer(lambda p: "B"), settings=SETTINGS, output=tmp_path / "run", judge=judge)
    assert server.asked == []


def test_judge_that_fails_is_the_error_of_its_samples(server: JudgeServer, tmp_path: Path) -> None:
    server.says = [500]
    plan = make_plan("mm_vet", tmp_path)
    judge = ServerJudge(server.url, model="grader")
    found = run_tasks([plan], ScriptedAnswerer(lambda p: "x"), settings=SETTINGS, output=tmp_path / "run", judge=judge)
    errors = [sample["error"] for sample in found["tasks"]["mm_vet"]["samples"]]
    assert all("did not answer (status 500)" in error for error in errors)
    assert found["tasks"]["mm_vet"]["samples"][0]["reply"] == "x"


@pytest.mark.parametrize(("says", "grade"), [("0.7", 0.7), ("Grade: 1.0", 1.0), ("10", 1.0)])
def test_judge_grades_are_read_from_words(server: JudgeServer, says: str, grade: float) -> None:
    server.says = [says]
    assert ServerJudge(server.url, model="grader").grade("q", "a", "r") == grade


def test_judge_without_a_number_is_an_error(server: JudgeServer) -> None:
    server.says = ["good"]
    with pytest.raises(JudgeError, match="the judge said 'good'; expected a number"):
        ServerJudge(server.url, model="grader").grade("q", "a", "r")


def test_judge_extracts_values_for_mathvista(server: JudgeServer, tmp_path: Path) -> None:
    # Longer prompts are asked first.
    server.says = ["1.5", "B"]
    plan = make_plan("mathvista_mini", tmp_path)
    judge = ServerJudge(server.url, model="grader")
    found = run_tasks(
        [plan], ScriptedAnswerer(lambda p: "It is so"), settings=SETTINGS, output=tmp_path / "run", judge=judge
    )
    assert found["tasks"]["mathvista_mini"]["metrics"]["accuracy"] == 100.0


def test_judge_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(JudgeError, match="expected an address that begins with http"):
        ServerJudge("localhost:8000", model="x")
