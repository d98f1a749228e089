"""Entry point of the `xgen-mm` command.

A subcommand is a module of this package with `SUMMARY` (one line), `USAGE` (what follows the command's name),
`add_arguments(parser)` and `run(args) -> int`; adding one means writing the module and naming it in `COMMANDS`. Such
modules import torch and transformers inside `run` only, so that `--help` answers at once.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import XGenMMError
from ..output_directory import disk_full_error, is_full_disk
from .console import PROGRAM, CommandParser, UserError, log, one_line, wrap_paragraphs

COMMANDS = (
    "demo",
    "generate",
    "info",
    "convert",
    "verify",
    "init",
    "export",
    "card",
    "push",
    "data",
    "train",
    "evaluate",
    "report",
)
# Where the commands write, in their options' names.
OUTPUT_OPTIONS = ("output", "destination", "picture")
EXIT_USER_ERROR = 2
# What a shell reports for a process that was stopped by SIGINT or SIGPIPE.
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: Words after the program's name; `None` takes them from the process.

    Returns:
        Exit status: 0, 2 after a user error, 130 if interrupted, 141 if the reader of stdout went away.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    except (UserError, XGenMMError, OSError, ValueError) as error:
        if "--debug" in words:
            traceback.print_exc()
        log(f"{PROGRAM}: error: {one_line(error)}")
        return EXIT_USER_ERROR


def build_parser() -> CommandParser:
    """Parser of the whole command line, with one subparser per entry of `COMMANDS`."""
    parser = CommandParser(
        prog=PROGRAM,
        usage="%(prog)s [--help] [--version] COMMAND [options]",
        description="xGen-MM (BLIP-3): ask questions about pictures and text in any order.",
        epilog=f"`{PROGRAM} COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name in COMMANDS:
        module = import_module(f"{__package__}.{name}")
        subparser = subparsers.add_parser(
            name,
            prog=f"{PROGRAM} {name}",
            usage=f"%(prog)s {module.USAGE}",
            help=module.SUMMARY,
            description=wrap_paragraphs(module.__doc__ or module.SUMMARY),
        )
        module.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(run=module.run)
    return parser


def _run(words: list[str]) -> int:
    parser = build_parser()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        status: int = options.run(options)
    except (XGenMMError, KeyboardInterrupt):
        raise
    except Exception as error:
        # Of whichever class: torch and safetensors have their own.
        if is_full_disk(error):
            places = (getattr(options, name, None) for name in OUTPUT_OPTIONS)
            raise disk_full_error(error, next(filter(None, places), None)) from error
        raise
    return status


def _silence_stdout() -> None:
    """Keep the interpreter from complaining about the closed pipe once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
