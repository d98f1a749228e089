"""What every subcommand shares: the parser class, the one-line error, and where text goes."""

import argparse
import json
import os
import re
import sys
import textwrap
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

# The commands know it by this place.
from ..errors import one_line as one_line

PROGRAM = "xgen-mm"
HELP_WIDTH = 100
# Arguments that are paths, or may be.
_PATHS = frozenset({"DIR", "FILE", "PATH", "RECIPE.yaml", "SRC", "DST", "MODEL", "RESULTS", "A", "B"})
_SURROGATE = re.compile("[\ud800-\udfff]")


class UserError(Exception):
    """The command cannot do what was asked; the message is shown as one line."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help text that is the same in every terminal."""

    def __init__(self, prog: str) -> None:
        """Fix the width; see `argparse.HelpFormatter`."""
        super().__init__(prog, width=HELP_WIDTH, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-o, --output DIR` in every Python; before 3.13 argparse repeats the value after each spelling."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class CommandParser(argparse.ArgumentParser):
    """Parser that raises `UserError` instead of printing its usage and exiting."""

    def __init__(self, **kwargs: Any) -> None:
        """Build a parser with plain, fixed-width help; see `argparse.ArgumentParser`."""
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        # Python 3.14 and newer colour their help, which would get into pipes and generated pages.
        self.color = False

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after `--help` or `--version`; the output is flushed while its errors are still ours to handle."""
        sys.stdout.flush()
        super().exit(status, message)

    def get_subparsers(self) -> dict[str, "CommandParser"]:
        """Parsers of the subcommands by name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Value of an argument; paths may be written with `~`, which shells leave alone in quotes, or as `file://`."""
        if isinstance(action.metavar, str) and not _PATHS.isdisjoint(action.metavar.split("|")):
            arg_string = local_path(arg_string)
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message} (`{self.prog} --help` lists what is possible)")


def local_path(text: str) -> str:
    """Path as the file system knows it.

    Raises:
        UserError: If it differs by a blank at an end from one that exists.

    >>> local_path("file:///data/my%20model")
    '/data/my model'
    """
    if text[:7].lower() == "file://":
        address = urlsplit(text)
        if address.netloc.lower() not in ("", "localhost"):
            raise UserError(f"`{text}` names a file of another machine; give a path of this one.")
        text = unquote(address.path)
    path = os.path.expanduser(text) if text.startswith("~") else text
    if path != path.strip() and not os.path.lexists(path) and os.path.lexists(path.strip()):
        raise UserError(f"{path!r} begins or ends with a blank; `{path.strip()}` exists.")
    return path


def check_text(text: str, *, name: str) -> None:
    """Refuse text that is none, such as bytes of another encoding on the command line.

    Raises:
        UserError: If it cannot be written as UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is no UTF-8 text (character {error.start + 1}); write it in UTF-8.") from error


def print_text(text: str = "", *, end: str = "\n") -> None:
    """Write results to stdout, at once."""
    # Names of files need not be text; what cannot be written is escaped, as Python and JSON do it.
    sys.stdout.write(_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + end)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    print_text(json.dumps(value, indent=2, ensure_ascii=False))


def log(message: str) -> None:
    """Tell the person at the terminal what is going on, on stderr."""
    sys.stderr.write(_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", message) + "\n")
    sys.stderr.flush()


def wrap_paragraphs(text: str) -> str:
    """Fill each paragraph to the width of the help; blank lines separate paragraphs."""
    return "\n\n".join(textwrap.fill(paragraph, HELP_WIDTH) for paragraph in text.strip().split("\n\n"))
