"""Describe a checkpoint.

Shows the parts of the model, its parameters per module, and how many tokens a picture of a given size costs. Only the
configuration is read, so it works without the weights; with --preset, without any file.
"""

import argparse
import re
from typing import TYPE_CHECKING, Any

from .console import UserError, print_json, print_text

if TYPE_CHECKING:
    from .description import Description

SUMMARY = "describe a checkpoint: parts, parameters, tokens per picture"
USAGE = "[options] [MODEL]"
# A small picture, a photo, a banner and an A4 page at 150 dots per inch.
TYPICAL_SIZES = ((224, 224), (480, 640), (400, 1200), (1754, 1240))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `info`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="checkpoint directory or Hub id (default: the small packaged model)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="a published model by name instead of MODEL; a wrong name lists them"
    )
    parser.add_argument(
        "--image-size",
        metavar="HxW",
        dest="image_sizes",
        type=image_size,
        action="append",
        help="count the tokens of a picture of this height and width in pixels; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from ..conversion.presets import preset_config
    from .description import describe_checkpoint, describe_config
    from .loading import resolve_checkpoint

    if args.preset is not None and args.model is not None:
        raise UserError("give either MODEL or --preset, not both")
    image_sizes = args.image_sizes or TYPICAL_SIZES
    if args.preset is not None:
        description = describe_config(preset_config(args.preset), name=args.preset, image_sizes=image_sizes)
    else:
        description = describe_checkpoint(resolve_checkpoint(args.model), image_sizes=image_sizes)
    if args.json:
        print_json(description.to_dict())
    else:
        print_text("\n".join(format_description(description)))
    return 0


def image_size(text: str) -> tuple[int, int]:
    """Parse `HxW` into `(height, width)`, both at least 1."""
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height x width in pixels, such as 480x640")
    return int(match[1]), int(match[2])


def format_description(description: "Description") -> list[str]:
    """Lines of text that say everything in `description`."""
    parameters = description.parameters
    total = parameters["total"]
    lines = [
        f"Checkpoint     {description.checkpoint}",
        f"Model type     {description.model_type}",
        f"Weights        {_format_weights(description.weights)}",
        *_format_adapter(description.adapter),
        "",
        "Parts",
        *(f"  {name:<16} {text}" for name, text in description.parts.items()),
        "",
        "Parameters",
        *(f"  {name:<16} {count:>13,}  {count / total:6.1%}" for name, count in parameters.items()),
    ]
    if description.is_lm_head_tied:
        lines.append("  lm_head shares its weight with the embedding table of language_model.")
    lines += [
        "",
        "Pictures (height x width)",
        f"  tile             {description.tile_size} x {description.tile_size} pixels",
        f"  canvases         {', '.join(_format_size(canvas) for canvas in description.canvases)}",
        f"  tokens per tile  {description.num_latents}",
        f"  tile grouping    {description.tile_grouping}",
        f"  context length   {description.context_length:,} tokens",
        "",
        *_format_table([("picture", "canvas", "tiles", "tokens")] + [_format_cost(row) for row in description.images]),
    ]
    return lines


def _format_weights(weights: dict[str, Any] | None) -> str:
    if weights is None:
        return "not on this machine"
    dtypes = ", ".join(sorted(weights["dtypes"], key=weights["dtypes"].get, reverse=True)) or "unknown precision"
    files = "1 file" if weights["num_files"] == 1 else f"{weights['num_files']} files"
    return f"{weights['num_bytes'] / 1e6:,.1f} MB in {files}, {dtypes}"


def _format_adapter(adapter: dict[str, Any] | None) -> list[str]:
    if adapter is None:
        return []
    rank = "" if adapter["rank"] is None else f" of rank {adapter['rank']}"
    return [f"Adapter        {adapter['kind']}{rank} for {adapter['base']}, which is described below"]


def _format_cost(row: dict[str, Any]) -> tuple[str, ...]:
    canvas = "-" if row["canvas"] is None else _format_size(row["canvas"])
    return _format_size(row["image_size"]), canvas, str(row["num_tiles"]), str(row["num_image_tokens"])


def _format_size(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _format_table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
