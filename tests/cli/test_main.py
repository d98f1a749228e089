"""The command line as a whole: help, exit codes, errors."""

import os
import subprocess
import sys

import pytest

from xgen_mm import __version__
from xgen_mm.cli import info
from xgen_mm.cli.main import COMMANDS, build_parser, main

OPTIONS = {
    "demo": ["--output", "--model", "--device", "--dtype", "--debug"],
    "generate": [
        *("PROMPT", "--image", "--model", "--system", "--raw", "--max-new-tokens", "--temperature", "--num-beams"),
        *("--device", "--dtype", "--json", "--debug"),
    ],
    "info": ["MODEL", "--preset", "--image-size", "--json", "--debug"],
    "export": ["DIR", "--model", "--processor", "--dtype", "--max-shard-size", "--card", "--json", "--debug"],
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_help_of_command_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"usage: xgen-mm {command} " in shown
    assert [option for option in OPTIONS[command] if option not in shown] == []


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_help_of_command_lists_exactly_the_options_its_parser_has(command: str) -> None:
    parser = build_parser().get_subparsers()[command]
    declared = [action.option_strings[-1] for action in parser._actions if action.option_strings]
    assert set(declared) - {"--help"} <= set(OPTIONS[command])


def test_main_without_command_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [command for command in COMMANDS if f"    {command} " not in shown] == []


def test_main_version_prints_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"xgen-mm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["paint"], "invalid choice: 'paint'", id="unknown-command"),
        pytest.param(["generate"], "required: PROMPT (`xgen-mm generate --help`", id="missing-prompt"),
        pytest.param(["info", "--imagesize", "1x1"], "unrecognized arguments", id="unknown-option"),
        pytest.param(["generate", "--max-new-tokens", "0", "hi"], "'0' is no whole number", id="zero-tokens"),
        pytest.param(["generate", "--temperature", "-1", "hi"], "'-1' is no number", id="negative-temperature"),
        pytest.param(["generate", "--temperature", "nan", "hi"], "'nan' is no number", id="temperature-nan"),
        pytest.param(["generate", "--dtype", "int8", "hi"], "invalid choice: 'int8'", id="unknown-dtype"),
        pytest.param(["info", "--image-size", "0x40"], "write height x width in pixels", id="size-of-zero"),
        pytest.param(["info", "--image-size", "40"], "write height x width in pixels", id="size-of-one-number"),
    ],
)
def test_main_wrong_command_line_prints_one_line_and_returns_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xgen-mm: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_main_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--debug", ""]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.splitlines()[-1] == "xgen-mm: error: the prompt is empty; ask something."


@pytest.mark.parametrize(
    ("error", "status"),
    [pytest.param(KeyboardInterrupt(), 130, id="interrupt"), pytest.param(BrokenPipeError(), 141, id="broken-pipe")],
)
def test_main_stopped_from_outside_returns_quietly(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> int:
        raise error

    monkeypatch.setattr(info, "run", stop)
    assert main(["info"]) == status
    assert capsys.readouterr() == ("", "")


def test_main_error_of_several_lines_is_folded_into_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise OSError("first\n  second")

    monkeypatch.setattr(info, "run", fail)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "xgen-mm: error: first second\n"


def test_main_closed_stdout_leaves_no_message() -> None:
    code = "import sys; from xgen_mm.cli.main import main; sys.exit(main(['--help']))"
    # Buffered, as when a shell starts it: the pipe breaks when the text is flushed.
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        messages = process.stderr.read()
    assert messages == b""
    assert process.returncode == 141


def test_parser_of_all_commands_imports_neither_torch_nor_transformers() -> None:
    code = "import sys; from xgen_mm.cli.main import build_parser; build_parser(); print(sorted(sys.modules))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "'xgen_mm.cli.generate'" in result.stdout
    assert "'torch'" not in result.stdout
    assert "'transformers'" not in result.stdout
    assert "'PIL.ImageFont'" not in result.stdout
