"""`xgen-mm demo`: with a random model for the files, with the packaged model for the answers."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xgen_mm.cli.conversation_picture import SCALE, WIDTH
from xgen_mm.cli.demo_script import SCRIPT
from xgen_mm.cli.main import main

PICTURE_NAMES = ["407.png", "392.png", "86.png", "9254.png"]


@pytest.fixture(scope="module")
def random_demo(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a demo whose answers come from random weights; `stdout.txt` holds what it printed."""
    output = tmp_path_factory.mktemp("random") / "new" / "demo"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["demo", "--model", str(checkpoint), "--output", str(output), "--device", "cpu"]) == 0
    (output / "stdout.txt").write_text(shown.getvalue(), encoding="utf-8")
    return output


@pytest.fixture(scope="module")
def packaged_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a demo with the model that ships with the package."""
    output = tmp_path_factory.mktemp("packaged")
    assert main(["demo", "--output", str(output), "--device", "cpu"]) == 0
    return output


def read_record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "conversation.json").read_text(encoding="utf-8"))
    return record


def test_demo_writes_a_picture_of_the_conversation(random_demo: Path) -> None:
    with Image.open(random_demo / "conversation.png") as drawing:
        assert drawing.mode == "RGB"
        assert drawing.width == SCALE * WIDTH
        assert drawing.height > SCALE * 800
        assert len(drawing.getcolors(1 << 24)) > 50


def test_demo_json_messages_point_to_the_copied_pictures(random_demo: Path) -> None:
    messages = read_record(random_demo)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * len(SCRIPT)
    paths = [part["path"] for message in messages for part in message["content"] if part["type"] == "image"]
    assert paths == [f"images/{name}" for name in PICTURE_NAMES]
    assert all((random_demo / path).is_file() for path in paths)


def test_demo_json_judges_every_answer(random_demo: Path) -> None:
    record = read_record(random_demo)
    assert [entry["expected"] for entry in record["answers"]] == [step.expected for step in SCRIPT]
    assert record["num_questions"] == len(SCRIPT)
    assert record["num_correct"] == sum(entry["is_correct"] for entry in record["answers"])


def test_demo_prompt_grows_with_every_turn(random_demo: Path) -> None:
    answers = read_record(random_demo)["answers"]
    lengths = [entry["num_prompt_tokens"] for entry in answers]
    assert lengths == sorted(set(lengths))
    assert [entry["num_image_tokens"] for entry in answers[-2:]] == [answers[3]["num_image_tokens"]] * 2


def test_demo_prints_conversation_verdict_and_files(random_demo: Path, checkpoint: Path) -> None:
    shown = (random_demo / "stdout.txt").read_text(encoding="utf-8")
    record = read_record(random_demo)
    assert f"{record['num_correct']} of {len(SCRIPT)} answers correct" in shown
    assert shown.count("(wrong, expected ") == len(SCRIPT) - record["num_correct"]
    assert [step.question for step in SCRIPT if step.question not in shown] == []
    assert str(random_demo / "conversation.png") in shown
    assert str(random_demo / "conversation.json") in shown
    assert shown.splitlines()[-1] == (
        f"  xgen-mm generate --model {checkpoint} --image {random_demo / 'images' / '407.png'} "
        "'What number is in the image?'"
    )


def test_demo_output_that_is_a_file_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 2
    error = capsys.readouterr().err
    assert f"cannot write to `{tmp_path / 'taken'}`" in error
    assert error.count("\n") == 1


def test_demo_packaged_model_answers_most_questions(packaged_demo: Path) -> None:
    record = read_record(packaged_demo)
    wrong = {entry["question"]: entry["text"] for entry in record["answers"] if not entry["is_correct"]}
    assert record["num_correct"] >= len(SCRIPT) - 1, wrong


def test_demo_packaged_model_answers_in_seconds(packaged_demo: Path) -> None:
    assert sum(entry["seconds"] for entry in read_record(packaged_demo)["answers"]) < 60


def test_generate_packaged_model_reads_a_number(packaged_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = packaged_demo / "images" / "407.png"
    assert main(["generate", "--image", str(picture), "What number is in the image?"]) == 0
    assert capsys.readouterr().out == "407\n"


def test_info_packaged_model_is_described_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["model_type"] == "xgenmm"
    assert description["parameters"]["total"] < 10_000_000
    assert description["weights"]["num_bytes"] < 20_000_000
