"""Train a model as a recipe says: pre-training, fine-tuning, preference tuning.

A recipe is one YAML file; `recipes/` holds one for every stage, on one CPU, one GPU and many. Values can be changed
from the command line, and contradictions are refused before anything is loaded. Started through `torchrun` or
`accelerate launch`, the run uses all processes. Results are in the recipe's `output: dir`; the trained model is in
`final/` there. Ctrl-C or SIGTERM ends a run behind its step with a checkpoint, from which `--resume` goes on.

Example: xgen-mm train recipes/sft/debug.yaml --set optim.max_steps=20
"""

import argparse
import textwrap
from typing import TYPE_CHECKING

from .console import UserError, log, print_json, print_text

if TYPE_CHECKING:
    from ..training.recipe import Recipe
    from ..training.run import RunResult

SUMMARY = "train a model as a recipe says"
USAGE = "[options] RECIPE.yaml"
# What a shell adds to the number of the signal that ended a process.
EXIT_SIGNAL = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `train`."""
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the run")
    parser.add_argument(
        "--set",
        metavar="A.B=C",
        action="append",
        default=[],
        dest="changes",
        help="change a value of the recipe, such as optim.learning_rate=1e-5 or data.0.path=mine.json; repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be trained and what it would need; loads no weights"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint of this run")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="send the trained model there when the run ends (private)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Plan or train.

    Raises:
        UserError: If a package is missing that the run needs.
    """
    try:
        return _run(args)
    except ImportError as error:
        raise UserError(f"{error}. Training needs more packages: pip install 'xgen-mm[train]'.") from error


def _run(args: argparse.Namespace) -> int:
    from ..training.recipe import load_recipe

    changes = list(args.changes)
    if args.push_to_hub:
        changes += ["output.push_to_hub=true", f"output.hub_id={args.push_to_hub}"]
    recipe = load_recipe(args.recipe, changes=changes)
    if args.dry_run:
        return _show_plan(recipe, as_json=args.json)
    from ..training.interruption import RunInterrupted
    from ..training.run import is_main_process, train

    try:
        result = train(recipe, resume=args.resume)
    except RunInterrupted as stop:
        if is_main_process():
            log(str(stop))
        return EXIT_SIGNAL + stop.signal_number
    if not is_main_process():
        return 0
    _write_card(recipe, result)
    address = _push(recipe, result) if recipe.output.push_to_hub else None
    if args.json:
        print_json(
            {
                "directory": str(result.directory),
                "final": str(result.final),
                "adapter": None if result.adapter is None else str(result.adapter),
                "steps": result.steps,
                "loss": result.loss,
                "pushed_to": address,
            }
        )
        return 0
    print_text(f"Trained {result.steps} steps, mean loss {result.loss:.4g}: {result.final}")
    if address is not None:
        print_text(f"Pushed to {address}")
    return 0


def _show_plan(recipe: "Recipe", *, as_json: bool) -> int:
    from ..training.planning.plan import describe, make_plan
    from ..training.recipe import dump_recipe

    plan = make_plan(recipe)
    if as_json:
        print_json(plan.to_dict())
    else:
        print_text(describe(plan))
        print_text("\nResolved recipe\n" + textwrap.indent(dump_recipe(recipe).rstrip(), "  "))
    return 0


def _write_card(recipe: "Recipe", result: "RunResult") -> None:
    """Put an honest card beside the weights."""
    from pathlib import Path

    from ..publishing.model_card import card_for_directory, write_card

    facts: dict[str, object] = {"training_args": result.arguments}
    checkpoint = recipe.model.checkpoint
    if "/" in checkpoint and not Path(checkpoint).exists():
        facts["base_models"] = (checkpoint,)
    write_card(card_for_directory(result.final, **facts), result.final / "README.md")


def _push(recipe: "Recipe", result: "RunResult") -> str:
    from ..publishing.push import push_checkpoint

    log(f"Sending {result.final} to {recipe.output.hub_id}")
    report = push_checkpoint(
        result.final, str(recipe.output.hub_id), private=not recipe.output.hub_public, show_progress=True
    )
    return str(report.url)
