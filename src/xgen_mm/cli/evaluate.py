"""Measure a model on benchmarks, or on whole tables of the papers.

TASK is a benchmark, a suite of them, or `lmms:NAME`, a task of the lmms-eval harness; `--list` shows all. Data are
files you have (`--data`); nothing is fetched unless you say `--download`. What is missing is said before the model is
loaded; the tasks that lack nothing are run all the same, and the exit status is 1, as it is if all samples of a task
fail.

Results go to a directory: `results.json` with every question, reply and score, `results.md` with the papers' figures
beside ours, a plot, and small copies of the pictures. An interrupted run goes on with `--resume`. With several
accelerators or machines, start it by `accelerate launch -m xgen_mm.cli.main evaluate ...` or `torchrun`; the results
do not depend on the number of processes.

`xgen-mm evaluate debug` needs no data and no download and takes a minute.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UserError, local_path, log, one_line, print_json, print_text
from .data import positive_number
from .generate import add_model_arguments

if TYPE_CHECKING:
    from ..evaluation.answering import ModelAnswerer
    from ..evaluation.few_shot import FewShotSettings
    from ..evaluation.judge import ServerJudge
    from ..evaluation.plans import TaskPlan
    from ..evaluation.processes import Processes
    from ..evaluation.results import Results

SUMMARY = "measure a model on benchmarks and compare with the papers"
USAGE = "TASK... [options]"
HARNESS_PREFIX = "lmms:"
DEFAULT_BATCH_TOKENS = 16_384
SEED = 42
TRAIN_SUFFIX = ":train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evaluate`."""
    parser.add_argument("tasks", metavar="TASK", nargs="*", help="benchmark, suite, or lmms:NAME")
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="TASK=PATH",
        dest="data",
        action="append",
        default=[],
        type=data_option,
        help="file or directory with the questions; TASK:train=PATH for those that examples come from; repeatable",
    )
    parser.add_argument("--download", action="store_true", help="fetch data that --data does not name from the Hub")
    parser.add_argument("--limit", metavar="N", type=positive_number, help="first N questions of each task only")
    parser.add_argument("--output", metavar="DIR", help="directory of the run (default: outputs/evaluation/MODEL)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output directory")
    parser.add_argument(
        "--batch-tokens",
        metavar="N",
        type=positive_number,
        default=DEFAULT_BATCH_TOKENS,
        help=f"most tokens per batch, padding and reply included (default: {DEFAULT_BATCH_TOKENS})",
    )
    parser.add_argument(
        "--max-tiles", metavar="N", type=positive_number, help="most tiles per picture, thumbnail included"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_number, help="longest reply (default: that of each task)"
    )
    parser.add_argument(
        "--few-shot",
        metavar="K",
        type=example_count,
        help="examples in the prompts of a base model; 0 has two as text",
    )
    parser.add_argument(
        "--decoding",
        metavar="NAME",
        choices=("openflamingo", "mm1"),
        help="with examples: openflamingo (3 beams, default) or mm1 (greedy)",
    )
    parser.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible server of a model that reads replies")
    parser.add_argument("--judge-model", metavar="NAME", help="its name; its key is read from XGEN_MM_JUDGE_KEY")
    parser.add_argument("--no-pictures", action="store_true", help="write no small copies of the pictures")
    parser.add_argument("--list", action="store_true", help="list benchmarks and suites")
    parser.add_argument("--dry-run", action="store_true", help="check tasks and data, load no model")
    parser.add_argument("--json", action="store_true", help="print metrics as JSON")


def run(args: argparse.Namespace) -> int:
    """Run tasks and print a table."""
    from ..evaluation.task import expand_names

    if args.list:
        return _list(as_json=args.json)
    if not args.tasks:
        raise UserError("name a benchmark or a suite; `--list` shows them, and `debug` needs no data")
    judge = _judge(args)
    ours = [name for name in args.tasks if not name.startswith(HARNESS_PREFIX)]
    theirs = [name.removeprefix(HARNESS_PREFIX) for name in args.tasks if name.startswith(HARNESS_PREFIX)]
    colon = next((name for name in ours if ":" in name), None)
    if colon is not None:
        raise UserError(f"there is no task `{colon}`; those of lmms-eval are called `{HARNESS_PREFIX}NAME`")
    members = expand_names(ours)
    _check_examples(args, members)
    _check_data_names(args, [*(name for name, _ in members), *(f"{HARNESS_PREFIX}{name}" for name in theirs)])
    try:
        plans, problems = _plan(args, members)
        _check_harness(args, theirs)
    except ImportError as error:
        raise UserError(one_line(error)) from error
    if problems and not plans and not theirs:
        raise UserError("; ".join(problems))
    for problem in problems:
        log(f"Left out: {problem}.")
    status = 1 if problems else 0
    if args.dry_run:
        _show_plans(plans, theirs, as_json=args.json)
        return status
    return max(status, _run(args, plans, theirs, judge=judge))


def data_option(text: str) -> tuple[str, Path]:
    """Parse `TASK=PATH`."""
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} names no data; write TASK=PATH")
    return name, Path(local_path(path))


def example_count(text: str) -> int:
    """Parse a number of examples, 0 included."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of examples")
    return int(text)


def _list(*, as_json: bool) -> int:
    from ..evaluation.task import load_suites, load_task, task_names

    tasks = [load_task(name) for name in task_names()]
    if as_json:
        suites = {name: {"title": suite.title, "tasks": suite.tasks} for name, suite in load_suites().items()}
        listed = {task.name: {"title": task.title, "metric": task.metric, "judge": task.judge} for task in tasks}
        print_json({"suites": suites, "tasks": listed})
        return 0
    width = max(len(name) for name in (*task_names(), *load_suites()))
    print_text("Suites")
    for name, suite in load_suites().items():
        shots = f", with {', '.join(map(str, suite.shots))} examples" if suite.shots else ""
        print_text(f"  {name:<{width}}  {suite.title} ({len(suite.tasks)} tasks{shots})")
    print_text("\nTasks")
    notes = {"never": "", "optional": "; a judge may read replies", "required": "; needs a judge"}
    for task in tasks:
        print_text(f"  {task.name:<{width}}  {task.title}, {task.split}: {task.metric}{notes[task.judge]}")
    return 0


def _check_examples(args: argparse.Namespace, members: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    """Refuse options about examples where no task, or not every task, takes any."""
    from ..evaluation.task import load_task

    without = [name for name, _ in members if load_task(name).demonstrations is None]
    if args.few_shot is not None and without:
        verb = "takes" if len(without) == 1 else "take"
        raise UserError(f"`--few-shot`: {', '.join(f'`{name}`' for name in without)} {verb} no examples in the prompt")
    if args.decoding is not None and len(without) == len(members):
        raise UserError("`--decoding` is for tasks with examples in the prompt, and none is among these")


def _check_data_names(args: argparse.Namespace, names: list[str]) -> None:
    from ..sections import nearest

    given = [name.removesuffix(TRAIN_SUFFIX) for name, _ in args.data]
    for name in given:
        if name not in names:
            raise UserError(f"`--data {name}=...`: this run has no task `{name}`; {nearest(name, names)}")


def _plan(
    args: argparse.Namespace, members: tuple[tuple[str, tuple[int, ...]], ...]
) -> "tuple[list[TaskPlan], list[str]]":
    """Tasks that can be run, and why others cannot, as far as that shows without a model."""
    from ..errors import XGenMMError
    from ..evaluation.plans import plan_task
    from ..evaluation.task import load_task
    from ..tiny.packaged_digits import digit_generators

    plans: list[TaskPlan] = []
    problems: list[str] = []
    for name, shots in members:
        task = load_task(name)
        if task.judge == "required" and args.judge_url is None:
            problems.append(f"`{name}` is graded by a language model: name one with `--judge-url` and `--judge-model`")
            continue
        for settings in _few_shot_settings(args, shots):
            try:
                plan = plan_task(
                    task,
                    paths=dict(args.data),
                    generators=digit_generators(),
                    download=args.download,
                    few_shot=settings,
                )
                plans.append(plan)
            except (XGenMMError, ValueError, OSError) as error:
                problems.append(one_line(error).rstrip("."))
                break
    if args.max_new_tokens is not None:
        plans = [
            replace(plan, generation=replace(plan.generation, max_new_tokens=args.max_new_tokens)) for plan in plans
        ]
    return plans, list(dict.fromkeys(problems))


def _few_shot_settings(args: argparse.Namespace, shots: tuple[int, ...]) -> "list[FewShotSettings | None]":
    from ..evaluation.few_shot import FewShotSettings

    wanted = shots if args.few_shot is None else (args.few_shot,)
    return [FewShotSettings(shots=count, decoding=args.decoding or "openflamingo", seed=SEED) for count in wanted] or [
        None
    ]


def _check_harness(args: argparse.Namespace, theirs: list[str]) -> None:
    """Check what the harness needs, before the model is loaded."""
    if not theirs:
        return
    from importlib.util import find_spec

    if find_spec("lmms_eval") is None:
        raise UserError("tasks of lmms-eval need that package: `pip install 'xgen-mm[eval]'`")
    given = dict(args.data)
    without = [name for name in theirs if f"{HARNESS_PREFIX}{name}" not in given]
    if without and not args.download:
        raise UserError(
            f"`{HARNESS_PREFIX}{without[0]}` has no data: give `--data {HARNESS_PREFIX}{without[0]}=PATH`, or "
            "`--download` to let lmms-eval get them from the Hub"
        )


def _show_plans(plans: "list[TaskPlan]", theirs: list[str], *, as_json: bool) -> None:
    rows = [{"task": plan.name, "data": plan.source.describe(), "layout": plan.layout.name} for plan in plans]
    rows += [{"task": f"{HARNESS_PREFIX}{name}", "data": "of lmms-eval", "layout": "of lmms-eval"} for name in theirs]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_text(f"{row['task']}: {row['data']}, layout {row['layout']}")


def _run(args: argparse.Namespace, plans: "list[TaskPlan]", theirs: list[str], *, judge: "ServerJudge | None") -> int:
    from ..evaluation.processes import join_processes

    processes = join_processes()
    try:
        answerer = _load(args, processes)
        output = Path(args.output) if args.output else Path("outputs/evaluation", Path(answerer.name).name)
        try:
            with _locked(output, processes):
                results = _run_tasks(
                    args, plans, answerer, output=output, processes=processes, theirs=theirs, judge=judge
                )
                if theirs:
                    results = _run_harness(args, theirs, answerer, output=output, results=results)
        except KeyboardInterrupt:
            if processes.is_main:
                log(f"Interrupted; `--output {output} --resume` goes on with it.")
            raise
    finally:
        processes.leave()
    return 0 if results is None else _report(args, results, output)


@contextmanager
def _locked(output: Path, processes: "Processes") -> Iterator[None]:
    """Keep other runs out of the directory; all processes stop where the main one finds it in use."""
    from ..output_directory import DirectoryInUseError, locked_directory

    problem = None
    with ExitStack() as stack:
        if processes.is_main:
            try:
                stack.enter_context(locked_directory(output))
            except DirectoryInUseError as error:
                problem = error
        problem = processes.share(problem)
        if problem is not None:
            raise problem
        yield


def _run_tasks(
    args: argparse.Namespace,
    plans: "list[TaskPlan]",
    answerer: "ModelAnswerer",
    *,
    output: Path,
    processes: "Processes",
    theirs: list[str],
    judge: "ServerJudge | None",
) -> "Results | None":
    from tqdm import tqdm

    from ..evaluation.runner import RunSettings, run_tasks

    settings = RunSettings(
        limit=args.limit,
        seed=SEED,
        max_tiles=args.max_tiles,
        batch_tokens=args.batch_tokens,
        versions=_versions(),
    )
    # The bar shows itself at a terminal only.
    disable = None if processes.is_main else True
    with tqdm(unit=" samples", desc="Evaluating", disable=disable, leave=False) as bar:

        def on_progress(task: str, count: int) -> None:
            bar.set_description(task, refresh=False)
            bar.update(count)

        return run_tasks(
            plans,
            answerer,
            settings=settings,
            output=output,
            resume=args.resume,
            processes=processes,
            judge=judge,
            with_pictures=not args.no_pictures,
            progress=on_progress,
            also=tuple(f"{HARNESS_PREFIX}{name}" for name in theirs),
        )


def _run_harness(
    args: argparse.Namespace, names: list[str], answerer: "ModelAnswerer", *, output: Path, results: "Results | None"
) -> "Results | None":
    """Run tasks of lmms-eval and add them to the results."""
    from ..evaluation.harness.front import run_harness_tasks
    from ..evaluation.results import RESULTS_FILE, write_results

    prefixed = {f"{HARNESS_PREFIX}{name}": name for name in names}
    found = run_harness_tasks(
        answerer.model,
        answerer.processor,
        names,
        data={prefixed[name]: path for name, path in args.data if name in prefixed},
        download=args.download,
        limit=args.limit,
        seed=SEED,
        batch_tokens=args.batch_tokens,
        resume_dir=output / "journal" / "lmms-eval",
        submission_dir=output / "submissions",
        thumbnails_dir=None if args.no_pictures else output,
    )
    if results is None or found is None:
        return None
    results["tasks"] |= {f"{HARNESS_PREFIX}{name}": task for name, task in found.items()}
    write_results(results, output / RESULTS_FILE)
    return results


def _report(args: argparse.Namespace, results: "Results", output: Path) -> int:
    """Write and print the table; the status says whether every task has a figure."""
    from ..evaluation.runner import failed_tasks
    from ..evaluation.table import format_table

    table = format_table(results)
    (output / "results.md").write_text(table, encoding="utf-8")
    _draw(results, output)
    if args.json:
        print_json({task: found["metrics"] for task, found in results["tasks"].items()})
    else:
        print_text(table, end="")
    log(f"Wrote {output / 'results.json'}")
    for name in failed_tasks(results):
        log(_why_no_figure(name, results["tasks"][name]))
    return 1 if failed_tasks(results) else 0


def _why_no_figure(name: str, task: dict[str, Any]) -> str:
    if not task["num_samples"]:
        return f"`{name}` has no figure: no row of its data takes part in it."
    first = next((sample["error"] for sample in task["samples"] if sample["error"] is not None), "")
    reason = " ".join(str(first).split())
    return f"`{name}` has no figure: all {task['num_samples']} samples failed, the first with: {reason}"


def _load(args: argparse.Namespace, processes: "Processes") -> "ModelAnswerer":
    from ..evaluation.answering import ModelAnswerer, limit_tiles
    from .loading import load_model, resolve_checkpoint

    device = args.device
    if processes.world_size > 1 and device == "auto":
        import torch

        if torch.accelerator.is_available():
            device = f"{torch.accelerator.current_accelerator()}:{processes.local_rank}"
    loaded = load_model(resolve_checkpoint(args.model), device=device, dtype=args.dtype)
    name = "xgen-mm-tiny" if args.model is None else str(args.model)
    if args.max_tiles is not None:
        limit_tiles(loaded.model, loaded.processor, args.max_tiles)
    return ModelAnswerer(loaded.model, loaded.processor, name=name)


def _judge(args: argparse.Namespace) -> "ServerJudge | None":
    if args.judge_url is None and args.judge_model is None:
        return None
    from ..evaluation.judge import ServerJudge

    if args.judge_model is None:
        raise UserError("`--judge-url` needs `--judge-model`, the name of the model on that server")
    if args.judge_url is None:
        raise UserError("`--judge-model` needs `--judge-url`, the address of the server that runs it")
    return ServerJudge(args.judge_url, model=args.judge_model)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("xgen-mm", "torch", "transformers")}


def _draw(results: dict[str, Any], output: Path) -> None:
    """Draw the plot if matplotlib is there; nobody should lose results over a picture."""
    from ..evaluation.plot import draw_results

    try:
        draw_results(results, output / "results.png")
    except ImportError:
        log("No plot: matplotlib is not installed (`pip install matplotlib`).")
