"""Look at training data before training on it.

`check` reads a data set as training will: it counts rows, records and pictures, decodes every picture, lists broken
rows by reason, measures the samples in tokens of the given model, and can draw what the model sees of the first ones.
The exit status is 1 if no row gives a record.

PATH is a file (parquet, json, jsonl, csv, tsv, tar), a directory of such files, a pattern, a YAML file of counts per
file, a folder of pictures, or a data set of the Hub as owner/name[:configuration].
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.formats.registry import FORMATS
from .console import UserError, log, one_line, print_json, print_text, wrap_paragraphs

if TYPE_CHECKING:
    from ..data.checking import DataCheck

SUMMARY = "check training data and draw what the model sees of it"
USAGE = "check PATH --format NAME [options]"
_BAR_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands of `data`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    check = actions.add_parser(
        "check",
        prog=f"{parser.prog} check",
        usage="%(prog)s PATH --format NAME [options]",
        help="count rows, pictures and faults, measure tokens, draw a contact sheet",
        description=wrap_paragraphs(__doc__ or SUMMARY),
        epilog=wrap_paragraphs(f"Formats: {', '.join(FORMATS)}."),
    )
    check.add_argument("path", metavar="PATH", help="what to read")
    check.add_argument("--format", metavar="NAME", required=True, help="format of the rows, see below")
    check.add_argument(
        "--option",
        metavar="NAME=VALUE",
        dest="options",
        action="append",
        default=[],
        type=format_option,
        help="option of the format, value in YAML, such as granularities=[0,5]; may be repeated",
    )
    check.add_argument("--limit", metavar="N", type=positive_number, help="look at the first N rows only")
    check.add_argument(
        "--policy",
        metavar="NAME",
        choices=("skip", "raise"),
        default="skip",
        help="broken rows: skip and count them (default), or raise at the first",
    )
    check.add_argument("--image-root", metavar="DIR", help="directory of pictures given by name (default: PATH's own)")
    check.add_argument(
        "--split",
        metavar="NAME",
        default="train",
        help="split of a data set of the Hub, or of a directory whose files are named for splits (default: train)",
    )
    check.add_argument(
        "--fetch", metavar="DIR", help="fetch pictures given as URLs into DIR (default: count them only)"
    )
    check.add_argument("--picture", metavar="FILE", help="write the contact sheet of the first samples, a PNG")
    check.add_argument(
        "--samples", metavar="N", type=positive_number, default=6, help="samples on the contact sheet (default: 6)"
    )
    check.add_argument(
        "--model", metavar="DIR|ID", help="checkpoint whose processor is used (default: the small packaged model)"
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    try:
        return _run_check(args)
    except ImportError as error:
        raise UserError(one_line(error)) from error


def format_option(text: str) -> tuple[str, Any]:
    """Parse `NAME=VALUE`, the value in YAML."""
    import yaml

    from ..sections import load_yaml

    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no option; write NAME=VALUE")
    try:
        return name, load_yaml(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"the value of {name!r} is no YAML: {value!r}") from error


def positive_number(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _run_check(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..adapters import load_merged_processor
    from ..data.checking import check_data
    from ..data.encoding import RecordEncoder
    from ..data.fetching import Fetcher
    from ..data.reading import RecordSource
    from .loading import load_config, resolve_checkpoint

    checkpoint = resolve_checkpoint(args.model)
    source = RecordSource(
        path=args.path,
        format=args.format,
        options=dict(args.options),
        image_root=args.image_root,
        policy=args.policy,
        split=args.split,
        fetcher=None if args.fetch is None else Fetcher(args.fetch),
    )
    config = load_config(checkpoint)
    processor = load_merged_processor(checkpoint)
    # The bar shows itself at a terminal only.
    with tqdm(total=args.limit, unit=" rows", desc="Checking", disable=None, leave=False) as bar:
        check = check_data(
            source,
            RecordEncoder(processor),
            limit=args.limit,
            num_examples=args.samples if args.picture else 0,
            on_row=bar.update,
        )
    name = "the small packaged model" if args.model is None else args.model
    if args.json:
        print_json({"path": str(args.path), "format": args.format, "model": name, **check.to_dict()})
    else:
        print_text("\n".join(format_check(check, path=str(args.path), format=args.format, model=name)))
    if args.picture is not None:
        _write_sheet(check, args, processor=processor, cells_per_tile=config.cells_per_tile, model=name)
    return 0 if check.report.num_records else 1


def format_check(check: "DataCheck", *, path: str, format: str, model: str) -> list[str]:
    """Lines of text that say everything in `check`."""
    report = check.report
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in check.kinds.items())
    lines = [
        f"Data set   {path} ({format})",
        f"Rows       {report.num_rows:,}, {report.num_bad_rows:,} of them broken",
        f"Records    {report.num_records:,}{f' ({kinds})' if kinds else ''}",
        f"Pictures   {check.num_pictures:,}"
        + (f", {check.num_urls:,} of them URLs that were not fetched (--fetch DIR)" if check.num_urls else ""),
    ]
    if report.bad_rows:
        lines += ["", "Broken rows by reason"]
        for reason, count in report.bad_rows.most_common():
            lines += [f"  {count:>8,}  {reason}", *(f"            {text}" for text in report.examples.get(reason, []))]
    if report.pictures_left_out:
        lines += ["", "Pictures left out of documents"]
        for reason, count in report.pictures_left_out.most_common():
            lines += [f"  {count:>8,}  {reason}", *(f"            {text}" for text in report.examples.get(reason, []))]
    return lines + _format_tokens(check, model=model)


def _format_tokens(check: "DataCheck", *, model: str) -> list[str]:
    tokens = check.to_dict()["tokens"]
    if not tokens:
        return []
    share = tokens["learned"] / tokens["total"]
    lines = [
        "",
        f"Tokens of {len(check.num_tokens):,} records, counted with {model}",
        f"  {tokens['total']:,} in all, {tokens['image']:,} of pictures, {tokens['learned']:,} learned ({share:.1%})",
        f"  shortest {tokens['min']:,}, median {tokens['median']:,}, 95 % up to {tokens['p95']:,}, "
        f"longest {tokens['max']:,}",
        "",
    ]
    histogram = check.histogram()
    most = max(count for _, count in histogram)
    for bound, count in histogram:
        bar = "#" * (-(-count * _BAR_WIDTH // most))
        lines.append(f"  up to {bound:>7,} {count:>9,}  {bar}".rstrip())
    return lines


def _write_sheet(
    check: "DataCheck", args: argparse.Namespace, *, processor: Any, cells_per_tile: int, model: str
) -> None:
    from .contact_sheet import draw_contact_sheet
    from .sample_panels import build_panels

    if not check.examples:
        raise UserError(
            f"`{args.path}` has no sample to draw: no good row, or pictures that were not fetched (--fetch)."
        )
    panels = [
        panel
        for example in check.examples
        for panel in build_panels(example, processor, cells_per_tile=cells_per_tile)
    ]
    report = check.report
    notes = (
        f"{report.num_rows:,} rows, {report.num_bad_rows:,} broken, {report.num_records:,} records, "
        f"{check.num_pictures:,} pictures",
        f"As seen by {model}",
    )
    target = Path(args.picture)
    target.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(panels, title=f"{args.path} ({args.format})", notes=notes).save(target, format="PNG")
    log(f"Wrote {target}")
