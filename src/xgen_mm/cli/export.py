"""Write a checkpoint that loads anywhere.

DIR gets weights, settings, processor, chat template, a model card and the code that loads them: people who have this
package use it as it is, people who have transformers alone pass trust_remote_code=True. A LoRA adapter given as MODEL
is merged into its base.
"""

import argparse

from .console import log, print_json, print_text
from .convert import size_in_bytes

SUMMARY = "write a self-contained checkpoint"
USAGE = "[options] DIR"
TINY_CARD = "xgen-mm-tiny"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `export`."""
    parser.add_argument("destination", metavar="DIR", help="directory to create")
    parser.add_argument(
        "--model",
        metavar="DIR|ID",
        help="checkpoint in any layout, or LoRA adapter (default: the small packaged model)",
    )
    parser.add_argument("--processor", metavar="DIR|ID", help="processor, if not beside the model")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="type to write (default: auto, as stored)", metavar="NAME"
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=size_in_bytes,
        default=size_in_bytes("5GB"),
        help="most bytes per weight file, such as 5GB or 500MB (default: 5GB)",
    )
    parser.add_argument(
        "--card", metavar="NAME", help="a card of `xgen-mm card` (default: the source's README.md, or a new card)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and tell what is in it."""
    from ..publishing.export import export_checkpoint
    from .loading import resolve_checkpoint

    source = resolve_checkpoint(args.model)
    card = TINY_CARD if args.model is None else args.card
    log(f"Reading {source} ...")
    report = export_checkpoint(
        source,
        args.destination,
        processor=args.processor,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        card=card,
    )
    if args.json:
        print_json(report.to_dict())
        return 0
    lines = [
        f"Wrote {report.destination}: {report.num_parameters:,} parameters in {report.dtype}, "
        f"{sum(report.files.values()) / 1e6:,.1f} MB in {len(report.files)} files",
        *([f"The adapter was merged into {report.base}."] if report.base else []),
        *(f"  {size:>14,}  {name}" for name, size in report.files.items()),
    ]
    print_text("\n".join(lines))
    return 0
