"""Runs tasks of lmms-eval with a loaded model, and brings the outcome into the form of `results.json`."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import XGenMMError
from ..results import SampleRecord, TaskResult
from .adapter import DEFAULT_MAX_BATCH_TOKENS, Reply
from .local_tasks import find_task_files, read_task, unknown_task, write_local_tasks
from .messages import PromptFormat

# Asked for likelihoods, which the harness does in its simple form only.
_LIKELIHOOD_TYPES = ("loglikelihood", "multiple_choice")
_NO_METRICS = ("alias", "samples", "name", "sample_len", "sample_count")


def run_harness_tasks(
    model: Any,
    processor: Any,
    tasks: Sequence[str],
    *,
    data: Mapping[str, Path] | None = None,
    include_path: Path | None = None,
    download: bool = False,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
    prompt_format: PromptFormat = "auto",
    max_tiles: int | None = None,
    resume_dir: Path | None = None,
    submission_dir: Path | None = None,
    thumbnails_dir: Path | None = None,
) -> dict[str, TaskResult] | None:
    """Run tasks of lmms-eval in this process.

    Metrics keep the harness's names. Shares become percentages, as everywhere in `results.json`; points stay as they
    are. The harness's own values are in `harness.metrics` of each task.

    Args:
        model: A loaded model.
        processor: Its processor.
        tasks: Names of tasks, as lmms-eval lists them.
        data: Local data by task: a file (Parquet, JSON, CSV, Arrow), a directory of such files, or one written by
            `save_to_disk`, with the columns of the task's data set.
        include_path: Directory of further task files.
        download: Whether tasks without local data may get theirs from the Hub.
        limit: Samples per task; `None` takes all.
        seed: Of whatever a task draws.
        batch_tokens: Most prompt tokens per batch.
        prompt_format: As in `ModelAdapter`.
        max_tiles: Most tiles of a picture, thumbnail included; model and processor are changed.
        resume_dir: Directory that keeps replies, so that an interrupted run goes on.
        submission_dir: Where tasks write files for evaluation servers; `None` drops them.
        thumbnails_dir: Directory of the run, which gets small copies of the pictures; `None` for none.

    Returns:
        Results by task, in the order asked for; `None` in all but the main process. Samples that failed count as empty
        replies in the harness's metrics, and carry their `error`.

    Raises:
        ImportError: If lmms-eval is not installed.
        XGenMMError: If a task does not exist, or has no data and may not get any.
    """
    data = {name: path for name, path in (data or {}).items() if name in tasks}
    own = {} if include_path is None else _own_tasks(include_path)
    hub = _tasks_of_the_hub(tasks, own.keys() | data.keys(), download=download)
    found: dict[str, TaskResult] = {}
    with TemporaryDirectory() as directory:
        local = write_local_tasks(data, Path(directory))
        files = find_task_files() if hub else {}
        shipped = {name: read_task(files[name]) for name in hub if name in files}
        # Its own task of a name wins over an included one, so local data need a run without its own tasks.
        paths = [directory, *([] if include_path is None else [str(include_path)])]
        for (is_local, is_simple), names in _by_form(tasks, own | local, shipped).items():
            wrapper = _wrapper_class(is_simple)(
                model=model,
                processor=processor,
                batch_size="auto",
                max_batch_tokens=batch_tokens,
                prompt_format=prompt_format,
                max_tiles=max_tiles,
                on_error="empty",
                resume_dir=None if resume_dir is None else str(resume_dir / ("simple" if is_simple else "chat")),
                thumbnails_dir=None if thumbnails_dir is None else str(thumbnails_dir),
            )
            outcome = _evaluate(
                wrapper,
                names,
                paths=paths if is_local else [],
                with_defaults=not is_local,
                limit=limit,
                seed=seed,
                # Some metrics look there for the directory of their files.
                cli_args=Namespace(output_path=str(submission_dir or directory), process_with_media=False),
            )
            found |= _task_results(outcome, replies=_of_all_processes(wrapper.replies))
    return found or None


def _tasks_of_the_hub(tasks: Sequence[str], local: Set[str], *, download: bool) -> list[str]:
    """Tasks without local data, which is an error unless it may be fetched."""
    hub = [name for name in tasks if name not in local]
    if hub and not download:
        raise XGenMMError(
            f"the task `{hub[0]}` of lmms-eval has no data: give `--data lmms:{hub[0]}=PATH`, or `--download` to let "
            "lmms-eval get it from the Hub."
        )
    return hub


def _task_results(
    outcome: Mapping[str, Any] | None, *, replies: Mapping[tuple[str, int], Reply]
) -> dict[str, TaskResult]:
    """Results of the tasks that have samples, which groups do not; only the main process has an outcome."""
    if outcome is None:
        return {}
    names = [name for name in outcome["results"] if name in outcome["samples"]]
    return {name: to_task_result(name, outcome, replies=replies) for name in names}


def to_task_result(name: str, outcome: Mapping[str, Any], *, replies: Mapping[tuple[str, int], Reply]) -> TaskResult:
    """One task of the harness's outcome as `results.json` has it.

    Args:
        name: Name of the task.
        outcome: What `simple_evaluate` returned.
        replies: What the model was asked and what came of it, by task and document.
    """
    values = {
        key.partition(",")[0]: float(value)
        for key, value in outcome["results"][name].items()
        if _is_number(value) and "_stderr" not in key and "_clt" not in key and key not in _NO_METRICS
    }
    metrics = to_percentages(values)
    configured = [metric["metric"] for metric in outcome["configs"][name].get("metric_list") or ()]
    main = _main_metric([metric for metric in configured if metric in metrics] or list(metrics))
    directions = outcome["higher_is_better"].get(name, {})
    samples = [
        _to_record(sample, replies.get((name, sample["doc_id"]), Reply()))
        for sample in sorted(outcome["samples"][name], key=lambda sample: int(sample["doc_id"]))
    ]
    return {
        "title": f"{name} (lmms-eval)",
        "metrics": metrics,
        "main_metric": main,
        "higher_is_better": bool(directions.get(main, True)),
        "paper": [],
        "num_samples": len(samples),
        "num_errors": sum(sample["error"] is not None for sample in samples),
        "harness": {"name": "lmms-eval", "version": version("lmms-eval"), "task": name, "metrics": values},
        "samples": samples,
    }


def _to_record(sample: Mapping[str, Any], ours: Reply) -> SampleRecord:
    """One sample; its reply is what the harness scored."""
    replies = sample.get("resps") or [[""]]
    reply = replies[0][0] if isinstance(replies[0], list) and replies[0] else replies[0]
    filtered = sample.get("filtered_resps") or [None]
    known = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "input", "token_counts"}
    values = {key: _score(value) for key, value in sample.items() if key not in known}
    scores = {key: value for key, value in values.items() if value is not None}
    return {
        "id": str(sample["doc_id"]),
        "prompt": ours.prompt,
        "pictures": list(ours.pictures),
        "target": _plain(sample.get("target")),
        # Likelihoods are pairs of a number and whether it is the greedy reply.
        "reply": reply if isinstance(reply, str) else json.dumps(_plain(replies)),
        "answer": _plain(filtered[0] if len(filtered) == 1 else filtered),
        "scores": {} if ours.error is not None else scores,
        "groups": {},
        "error": ours.error,
    }


def _own_tasks(include_path: Path) -> dict[str, dict[str, Any]]:
    settings = [read_task(path) for path in sorted(include_path.rglob("*.yaml"))]
    return {content["task"]: content for content in settings if isinstance(content.get("task"), str)}


def _by_form(
    tasks: Sequence[str], local: Mapping[str, Mapping[str, Any]], shipped: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[bool, bool], list[str]]:
    """Tasks by whether their files are ours, and whether they need the simple form."""
    forms: dict[tuple[bool, bool], list[str]] = {}
    for name in dict.fromkeys(tasks):
        settings = local.get(name) or shipped.get(name) or {}
        form = (name in local, settings.get("output_type") in _LIKELIHOOD_TYPES)
        forms.setdefault(form, []).append(name)
    return forms


def _wrapper_class(is_simple: bool) -> Any:
    from .lmms_eval_chat import XGenMMChat
    from .lmms_eval_simple import XGenMMSimple

    return XGenMMSimple if is_simple else XGenMMChat


def _evaluate(
    wrapper: Any,
    names: list[str],
    *,
    paths: list[str],
    with_defaults: bool,
    limit: int | None,
    seed: int,
    cli_args: Namespace,
) -> dict[str, Any] | None:
    import torch
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("WARNING", include_path=paths, include_defaults=with_defaults, model_name="xgen_mm")
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise XGenMMError(unknown_task(unknown[0], manager.task_index))
    outcome: dict[str, Any] | None = simple_evaluate(
        model=wrapper,
        tasks=names,
        task_manager=manager,
        limit=limit,
        cli_args=cli_args,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        distributed_executor_backend="torchrun" if torch.distributed.is_initialized() else "accelerate",
    )
    return outcome


def _of_all_processes(values: dict[tuple[str, int], Reply]) -> dict[tuple[str, int], Reply]:
    """What every process has collected, in all of them."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return values
    parts: list[dict[tuple[str, int], Reply]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return {key: value for part in parts for key, value in part.items()}


def _main_metric(names: Sequence[str]) -> str:
    """The overall figure if one says so, else the first."""
    overall = (name for name in names if any(word in name.lower() for word in ("overall", "average")))
    return next(overall, next(iter(names), ""))


def to_percentages(values: Mapping[str, float]) -> dict[str, float]:
    """Shares of the harness in percent.

    It does not say what is a share; percentages (MMBench) and points (MME) are told from them by being larger than 1.
    CIDEr may be larger as well, and is multiplied by 100 by custom.

    >>> to_percentages({"exact_match": 0.5, "mme_perception_score": 1400.0, "coco_CIDEr": 1.25})
    {'exact_match': 50.0, 'mme_perception_score': 1400.0, 'coco_CIDEr': 125.0}
    """
    return {
        metric: 100 * value if 0 <= value <= 1 or "cider" in metric.lower() else value
        for metric, value in values.items()
    }


def _score(value: Any) -> float | None:
    """Score of one sample, where a metric's payload holds one."""
    if isinstance(value, dict):
        value = value.get("score", value.get("correct"))
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0)


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    return json.loads(json.dumps(value, default=str))
