"""Build an untrained model from a pretrained vision tower and a pretrained language model.

Weights of both are taken over exactly; a new connector joins them. Image tokens are added to the tokenizer, and the
language model's own chat template learns to place pictures. The result is a checkpoint to start pre-training from.

Example: xgen-mm init --vision google/siglip2-so400m-patch14-384 --text Qwen/Qwen3-1.7B -o my-model
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UserError, log, print_json, print_text
from .generate import positive_int

if TYPE_CHECKING:
    import torch

    from ..conversion.assemble import AssemblyPlan

SUMMARY = "build an untrained model from a vision tower and a language model"
USAGE = "[options] --vision ID|DIR --text ID|DIR -o DIR"
RELEASED_GRIDS = "2x1,1x2,2x2,1x3,3x1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `init`."""
    parser.add_argument(
        "--vision",
        metavar="ID|DIR",
        required=True,
        help="vision tower of fixed input size: SigLIP, SigLIP 2, CLIP ...",
    )
    parser.add_argument(
        "--text", metavar="ID|DIR", required=True, help="decoder-only language model: Phi, Qwen, Llama ..."
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="directory to create")
    parser.add_argument(
        "--connector",
        choices=("perceiver", "mlp"),
        metavar="NAME",
        default="perceiver",
        help="perceiver (fixed number of tokens per tile) or mlp (one token per patch) (default: perceiver)",
    )
    parser.add_argument(
        "--num-latents", metavar="N", type=positive_int, help="image tokens per tile of a perceiver (default: 128)"
    )
    parser.add_argument(
        "--resampler-layers", metavar="N", type=positive_int, help="layers of the connector (default: 6; mlp: 2)"
    )
    parser.add_argument(
        "--grids",
        metavar="RxC,...",
        type=parse_grids,
        default=RELEASED_GRIDS,
        help=f"canvases in tiles, rows x columns, the first wins ties (default: {RELEASED_GRIDS})",
    )
    parser.add_argument(
        "--tile-grouping",
        choices=("tile", "raster_chunks", "image"),
        metavar="HOW",
        default="tile",
        help="what the resampler reads at once: tile, raster_chunks (as released) or image (default: tile)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16 (default: auto, which rounds no weight of either part)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the new weights (default: 0)")
    parser.add_argument("--tokenizer", metavar="ID|DIR", help="tokenizer, if not next to the language model")
    parser.add_argument("--image-processor", metavar="ID|DIR", help="pixel settings, if not next to the vision tower")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="Jinja template for text messages, instead of the language model's own"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be built; loads and writes no weights")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Build and write the model."""
    chat_template = _read_template(args.chat_template)

    from ..conversion.assemble import build_from_plan, plan_assembly
    from ..modeling.assembly import AssemblySettings
    from ..output_directory import check_new_directory
    from .loading import resolve_checkpoint

    check_new_directory(args.output)
    log("Reading configurations, tokenizer and image processor ...")
    plan = plan_assembly(
        resolve_checkpoint(args.vision),
        resolve_checkpoint(args.text),
        settings=AssemblySettings(
            connector=args.connector,
            num_latents=args.num_latents,
            resampler_layers=args.resampler_layers,
            grids=args.grids,
            tile_grouping=args.tile_grouping,
            seed=args.seed,
        ),
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        image_processor=args.image_processor,
        chat_template=chat_template,
    )
    if args.dry_run:
        report = build_report(plan, output=args.output, dtype=_likely_dtype(plan), files=None)
    else:
        assembly = build_from_plan(plan, progress=log)
        log(f"Writing {args.output} ...")
        assembly.save(args.output)
        files = sorted(path.name for path in Path(args.output).expanduser().iterdir())
        report = build_report(plan, output=args.output, dtype=assembly.model.dtype, files=files)
    if args.json:
        print_json(report)
    else:
        print_text("\n".join(format_report(report)))
    return 0


def parse_grids(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `RxC,RxC` into `(rows, cols)`.

    >>> parse_grids("2x1,1x2")
    ((2, 1), (1, 2))
    """
    if not re.fullmatch(r"[1-9]\d*[xX][1-9]\d*(,[1-9]\d*[xX][1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of grids; write rows x columns, such as {RELEASED_GRIDS}"
        )
    rows_and_cols = (grid.lower().split("x") for grid in text.split(","))
    return tuple((int(rows), int(cols)) for rows, cols in rows_and_cols)


def build_report(
    plan: "AssemblyPlan", *, output: str, dtype: "torch.dtype", files: list[str] | None
) -> dict[str, Any]:
    """Facts about the new model.

    Args:
        plan: What it is built from.
        output: Directory of the result.
        dtype: Precision of the weights.
        files: Names of the written files; `None` if nothing was written.

    Returns:
        Plain values; `files` names what would be written if nothing was.
    """
    from ..modeling.parts import describe_source
    from .description import count_parameters

    config = plan.config
    parameters, _ = count_parameters(config)
    return {
        "output": output,
        "is_written": files is not None,
        "files": _planned_files(plan) if files is None else files,
        "num_bytes": parameters["total"] * dtype.itemsize,
        "dtype": str(dtype).removeprefix("torch."),
        "vision_tower": f"{describe_source(plan.vision)} ({config.vision_config.model_type})",
        "language_model": f"{describe_source(plan.text)} ({config.text_config.model_type})",
        "tile_size": config.tile_size,
        "patch_size": config.vision_config.patch_size,
        "canvases": config.image_grid_pinpoints,
        "num_latents": config.tokens_per_group,
        "tile_grouping": config.tile_grouping,
        "vocab_size": config.text_config.vocab_size,
        "image_token_id": config.image_token_id,
        "parameters": parameters,
        "notes": list(plan.notes),
    }


def format_report(report: dict[str, Any]) -> list[str]:
    """Lines of text that say what is in a report."""
    verb = "Wrote" if report["is_written"] else "Would write"
    per = "image" if report["tile_grouping"] == "image" else "tile"
    return [
        f"Vision tower    {report['vision_tower']}",
        f"Language model  {report['language_model']}",
        f"Tiles           {report['tile_size']} x {report['tile_size']} pixels, patches of {report['patch_size']}",
        f"Image tokens    {report['num_latents']} per {per} (grouping: {report['tile_grouping']})",
        f"Vocabulary      {report['vocab_size']:,} rows, <image> is {report['image_token_id']}",
        "",
        "Parameters",
        *(f"  {name:<16} {count:>14,}" for name, count in report["parameters"].items()),
        "",
        *report["notes"],
        "",
        f"{verb} {report['output']} ({report['num_bytes'] / 1e9:,.2f} GB of weights in {report['dtype']}):",
        *(f"  {name}" for name in report["files"]),
    ]


def _planned_files(plan: "AssemblyPlan") -> list[str]:
    """What saving will write: everything but the weights is written to a scratch directory to see."""
    from ..modeling.modeling_xgen_mm import XGenMMForConditionalGeneration
    from ..self_contained import connector_classes, flat_modules

    with tempfile.TemporaryDirectory() as directory:
        plan.config.save_pretrained(directory)
        plan.processor.save_pretrained(directory)
        names = {path.name for path in Path(directory).iterdir()}
    connector = connector_classes(plan.config)
    code = {f"{name}.py" for name in flat_modules([XGenMMForConditionalGeneration.__module__], connector=connector)}
    return sorted(names | code | {"generation_config.json", "model.safetensors"})


def _likely_dtype(plan: "AssemblyPlan") -> "torch.dtype":
    """Precision of the result as far as configurations tell it."""
    import torch

    if plan.dtype is not None:
        return plan.dtype
    parts = (plan.config.vision_config.dtype, plan.config.text_config.dtype)
    return torch.promote_types(*(dtype if isinstance(dtype, torch.dtype) else torch.float32 for dtype in parts))


def _read_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no such file: `{file}`.") from error
