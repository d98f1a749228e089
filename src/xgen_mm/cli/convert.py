"""Convert a released checkpoint into this package's layout, or back.

SRC is a directory with the files of an xGen-MM or BLIP3-o release, its Hub id, or a .pt file of xGen-MM's training
code; with --reverse, a converted checkpoint. Weights are copied file by file, so memory stays small whatever the
model's size. DST appears when everything is written; an interrupted run continues when the same command is given
again.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .console import print_json, print_text

if TYPE_CHECKING:
    from ..conversion.convert_checkpoint import ConversionReport

SUMMARY = "convert a released checkpoint, or back with --reverse"
USAGE = "[options] SRC DST"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `convert`."""
    parser.add_argument("source", metavar="SRC", help="checkpoint to read: directory, Hub id or .pt file")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to create")
    parser.add_argument("--reverse", action="store_true", help="write the original layout back")
    parser.add_argument(
        "--config", metavar="PATH", type=Path, help="config.json of a .pt file (default: the released 4B sizes)"
    )
    parser.add_argument(
        "--vision-tower",
        metavar="PATH|ID",
        help="checkpoint that holds the vision tower, for a .pt file without it",
    )
    parser.add_argument("--tokenizer", metavar="DIR|ID", help="tokenizer, if SRC has none")
    parser.add_argument(
        "--original",
        metavar="DIR",
        type=Path,
        help="with --reverse: converted checkpoint that SRC was fine-tuned from",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="type to write (default: as stored)")
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=size_in_bytes,
        default=size_in_bytes("5GB"),
        help="most bytes per weight file, such as 5GB or 500MB (default: 5GB)",
    )
    parser.add_argument(
        "--discard-original",
        action="store_true",
        help="do not keep what --reverse needs (unused rows, original file layout)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Convert and tell what was written."""
    from ..conversion.convert_blip3o import convert_blip3o, is_blip3o
    from ..conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, parse_dtype
    from ..conversion.restore_checkpoint import restore_checkpoint
    from .loading import fetch_checkpoint

    source = fetch_checkpoint(args.source)
    if args.reverse:
        report = restore_checkpoint(
            source, args.destination, original=args.original, dry_run=args.dry_run, show_progress=not args.json
        )
    else:
        options = ConversionOptions(
            config=args.config,
            vision_tower=None if args.vision_tower is None else fetch_checkpoint(args.vision_tower),
            tokenizer=None if args.tokenizer is None else fetch_checkpoint(args.tokenizer),
            dtype=None if args.dtype is None else parse_dtype(args.dtype),
            max_shard_bytes=args.max_shard_size,
            keep_original=not args.discard_original,
            dry_run=args.dry_run,
            show_progress=not args.json,
        )
        convert = convert_blip3o if is_blip3o(source) else convert_checkpoint
        report = convert(source, args.destination, options=options)
    if args.json:
        print_json(report.to_dict() | {"dry_run": args.dry_run})
    else:
        print_text("\n".join(format_report(report, is_dry_run=args.dry_run)))
    return 0


def size_in_bytes(text: str) -> int:
    """Parse a size such as `5GB`, `500 MB` or `2GiB`.

    >>> size_in_bytes("5GB")
    5000000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write a number and a unit, such as 5GB or 500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def format_report(report: "ConversionReport", *, is_dry_run: bool) -> list[str]:
    """Report as lines of text."""
    types = ", ".join(f"{count:,} {dtype}" for dtype, count in report.dtypes.items())
    verb = "Would write" if is_dry_run else "Wrote"
    lines = [
        f"{verb} {report.destination}: {report.num_tensors} tensors, {report.num_parameters:,} values ({types}), "
        f"{report.num_bytes / 1e9:.2f} GB in {len(report.files)} file{'s' * (len(report.files) != 1)}, "
        f"{report.seconds:.1f} s",
    ]
    if report.kept:
        lines.append(f"Kept from an interrupted run: {', '.join(report.kept)}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.left_over.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"Left out ({reason}): {', '.join(names)}" for reason, names in by_reason.items()]
    return lines
