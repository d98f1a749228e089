"""Send a checkpoint to the Hub.

DIR is a checkpoint, a processor alone or a LoRA adapter. Only files that belong to it are sent; they are searched for
secrets and local paths first. Everything becomes visible at once, in one commit, and an interrupted push continues
when the same command is given again. A new repository is private unless --public is given.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .console import print_json, print_text

if TYPE_CHECKING:
    from ..publishing.push import PushReport

SUMMARY = "send a checkpoint, processor or adapter to the Hub"
USAGE = "[options] DIR OWNER/NAME"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `push`."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="what to send")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository; created if it does not exist")
    parser.add_argument("--public", action="store_true", help="create it public, or push to a public one")
    parser.add_argument("--revision", metavar="R", help="existing branch to write to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", metavar="M", help="title of the commit")
    parser.add_argument("--dry-run", action="store_true", help="check everything, send nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Send the files and tell which."""
    from ..publishing.push import push_checkpoint

    report = push_checkpoint(
        args.directory.expanduser(),
        args.repo_id,
        private=not args.public,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
        dry_run=args.dry_run,
        show_progress=not args.json,
    )
    if args.json:
        print_json(report.to_dict())
    else:
        print_text("\n".join(format_report(report)))
    return 0


def format_report(report: "PushReport") -> list[str]:
    """Report as lines of text."""
    visibility = "private" if report.private else "public"
    size = f"{len(report.files)} file{'s' * (len(report.files) != 1)}, {report.num_bytes / 1e6:,.1f} MB"
    if report.dry_run:
        first = f"Would push {report.kind} to {report.repo_id} ({visibility} if new), {report.revision}: {size}"
    elif report.commit is None:
        first = f"Nothing to change: {report.url} ({visibility}), {report.revision}, has these {size} already"
    else:
        first = (
            f"Pushed {report.kind} to {report.url} ({visibility}), {report.revision}: {size}, {report.seconds:.1f} s"
        )
    lines = [first, *(f"  {num_bytes:>14,}  {name}" for name, num_bytes in report.files.items())]
    if report.removed:
        lines.append(f"Removed there, replaced by the new weights: {', '.join(report.removed)}")
    lines += [f"Left out ({reason}): {', '.join(names)}" for reason, names in _by_reason(report.left_out.items())]
    if report.pull_request is not None:
        lines.append(f"Pull request: {report.pull_request}")
    return lines


def _by_reason(left_out: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, reason in left_out:
        groups.setdefault(reason, []).append(name)
    return groups.items()
