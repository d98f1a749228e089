"""Check that a checkpoint gives the numbers it should.

With A and B, whatever their layouts, stored weights are compared bit by bit; then the same picture and text go through
both, and every stage is compared. With --golden, A is compared with numbers recorded from the original code. With A
alone, only its files are compared with the checksums that `convert` wrote, or with the hashes noted when they were
downloaded. Exit status 1 means that something differs.
"""

import argparse
from pathlib import Path

from .console import UserError, print_json, print_text

SUMMARY = "compare two checkpoints stage by stage"
USAGE = "[options] A [B]"
EXIT_DIFFERENT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `verify`."""
    parser.add_argument("first", metavar="A", help="checkpoint or LoRA adapter: directory or Hub id")
    parser.add_argument("second", metavar="B", nargs="?", help="checkpoint to compare with")
    parser.add_argument("--golden", metavar="DIR", type=Path, help="recorded cases to compare with instead of B")
    parser.add_argument(
        "--atol", metavar="X", type=float, default=1e-4, help="largest difference that passes (default: 1e-4)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Compare and print one row per stage."""
    from ..conversion.verify_checkpoint import (
        check_files,
        compare_checkpoints,
        compare_weights,
        compare_with_recordings,
        format_results,
    )
    from .loading import fetch_checkpoint

    if args.second is not None and args.golden is not None:
        raise UserError("give either B or --golden, not both")
    first = fetch_checkpoint(args.first)
    second = None if args.second is None else fetch_checkpoint(args.second)
    for path in (first, second, args.golden):
        if path is not None and not path.is_dir():
            raise UserError(f"{path} is not a directory")
    checked = [check_files(path) for path in (first, second) if path is not None]
    if second is not None:
        checked.append(compare_weights(first, second, tolerance=args.atol))
    results = [result for result in checked if result is not None]
    if second is not None:
        results += compare_checkpoints(first, second, tolerance=args.atol)
    elif args.golden is not None:
        results += compare_with_recordings(first, args.golden, tolerance=args.atol)
    elif not results:
        raise UserError(
            f"{first} has no checksums and no record of a download; name a second checkpoint, or --golden DIR"
        )
    if args.json:
        print_json([result.to_dict() for result in results])
    else:
        print_text("\n".join(format_results(results)))
    return 0 if all(result.has_passed for result in results) else EXIT_DIFFERENT
