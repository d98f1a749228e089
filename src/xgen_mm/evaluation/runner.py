"""Computes replies in batches, by one or several processes, and goes on after an interruption.

Batches are planned from the data alone: samples are taken in windows of the data's order, sorted by length within a
window, and filled up to a budget of tokens. Process `r` of `n` computes every n-th batch. So a sample stands in the
same batch however many processes there are and wherever a run was interrupted, and its reply, which may depend on its
neighbours by rounding, is the same. An unfinished batch is computed again as a whole.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from ..errors import one_line
from .answering import Answerer
from .journal import Journal
from .plans import BrokenSample, TaskPlan, prompt_of, read_samples
from .processes import Processes
from .results import (
    RESULTS_FILE,
    Results,
    SampleRecord,
    TaskResult,
    find_sample_faults,
    make_results,
    write_results,
)
from .samples import Sample
from .scoring import Judge, score_reply
from .summaries import main_interval, summarise
from .thumbnails import write_thumbnail

logger = logging.getLogger(__name__)

# Samples that are sorted together; large enough to make batches of like lengths, small enough to stay in memory.
WINDOW = 512

# Batches that fail alike before any succeeds, after which the rest of a task is not tried.
MOST_ALIKE = 3
# What differs between failures of one kind: numbers, and what is quoted.
_DETAILS = re.compile(r"`[^`]*`|'[^']*'|\d+")

# Called with a task's name and the number of its samples that are settled.
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What decides results, beside model and tasks.

    Attributes:
        limit: Samples per task; `None` takes all.
        seed: Of whatever is drawn.
        max_tiles: Most tiles per picture, thumbnail included; `None` leaves it to the checkpoint.
        batch_tokens: Most tokens per batch, replies and padding included. Rounding depends on it, so it counts.
        versions: Of the packages that compute.
    """

    limit: int | None
    seed: int
    max_tiles: int | None
    batch_tokens: int
    versions: dict[str, str]


class _AllAlike(Exception):
    """A task fails at every sample for the same reason."""


@dataclass(frozen=True, slots=True)
class _Measured:
    sample: Sample
    num_tokens: int


def run_tasks(
    plans: Sequence[TaskPlan],
    answerer: Answerer,
    *,
    settings: RunSettings,
    output: Path,
    resume: bool = False,
    processes: Processes | None = None,
    judge: Judge | None = None,
    with_pictures: bool = True,
    progress: Progress | None = None,
    also: Sequence[str] = (),
) -> Results | None:
    """Run tasks and write `results.json`.

    Args:
        plans: Checked tasks, see `plans.plan_task`.
        answerer: The model.
        settings: What decides the results.
        output: Directory of the run.
        resume: Whether to go on with a run that is there.
        processes: This process among others.
        judge: Language model that reads replies; `None` scores by rules.
        with_pictures: Whether thumbnails are written.
        progress: Told how many samples are settled.
        also: Names of what else will be part of this run, so that a later one with other names is refused.

    A task whose data cannot be read, or whose first batches all fail alike, does not stop the others.

    Returns:
        The results in the main process, `None` in others.

    Raises:
        JournalError: If `output` holds another run.
    """
    processes = processes or Processes()
    journal = Journal(output, rank=processes.rank, find_faults=find_sample_faults)
    described = {
        "model": asdict(answerer.describe()),
        **asdict(settings),
        "with_pictures": with_pictures,
        "judge": None if judge is None else str(judge),
        "tasks": {plan.name: plan.settings() for plan in plans},
        "also": list(also),
    }
    problem = None
    if processes.is_main:
        try:
            journal.start(described, resume=resume)
        except ValueError as error:
            problem = error
    # All processes stop where the main one refuses.
    problem = processes.share(problem)
    if problem is not None:
        raise problem
    journal.load()
    worker = _Worker(answerer, journal, output=output, judge=judge, with_pictures=with_pictures)
    for plan in plans:
        worker.run(plan, settings=settings, processes=processes, progress=progress)
    journal.close()
    processes.wait()
    if not processes.is_main:
        return None
    journal.load()
    results = make_results(
        model=described["model"],
        settings={
            **asdict(settings),
            "judge": described["judge"],
            "generation": {plan.name: plan.settings() for plan in plans},
        },
        tasks={plan.name: finish_task(plan, worker.records_of(plan.name)) for plan in plans},
    )
    write_results(results, output / RESULTS_FILE)
    return results


def failed_tasks(results: Results) -> list[str]:
    """Names of tasks that have no figure, because all their samples failed or they have none."""
    return [
        name
        for name, task in results["tasks"].items()
        if task["num_errors"] == task["num_samples"] and (task["num_samples"] or task["harness"] is None)
    ]


def finish_task(plan: TaskPlan, records: Sequence[SampleRecord]) -> TaskResult:
    """Metrics of a task from the records of its samples."""
    task = plan.task
    samples = [{key: value for key, value in record.items() if key != "position"} for record in records]
    interval = main_interval(task, records)
    return {
        "title": task.title,
        "split": task.split,
        "metric": task.metric,
        "metrics": summarise(task, records),
        "main_metric": task.main_metric,
        "interval": None if interval is None else list(interval),
        "higher_is_better": task.higher_is_better,
        "paper": [asdict(figure) for figure in task.paper if _is_comparable(figure.shots, plan)],
        "num_samples": len(samples),
        "num_errors": sum(record["error"] is not None for record in records),
        "harness": None,
        "samples": samples,
    }


def plan_batches(
    lengths: Sequence[int], *, kinds: Sequence[Hashable], budget: int, num_new: int, max_size: int | None = None
) -> list[list[int]]:
    """Indices of samples, batch by batch: sorted by length, as many as fit into a budget.

    Args:
        lengths: Tokens of each prompt.
        kinds: What must be equal within a batch; processors want pictures for all prompts of a batch or for none.
        budget: Most tokens per batch; a sample that is longer gets a batch of its own.
        num_new: Longest reply.
        max_size: Most samples per batch.

    >>> plan_batches([5, 50, 6, 5], kinds="aaaa", budget=40, num_new=2)
    [[1], [2, 0, 3]]
    """
    batches: list[list[int]] = []
    for kind in dict.fromkeys(kinds):
        members = [index for index in range(len(lengths)) if kinds[index] == kind]
        batch: list[int] = []
        # The longest first, so that a batch that does not fit into memory shows at the beginning.
        for index in sorted(members, key=lambda member: (-lengths[member], member)):
            longest = lengths[batch[0]] + num_new if batch else 0
            if batch and (longest * (len(batch) + 1) > budget or len(batch) == max_size):
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    return batches


class _Worker:
    """Computes the batches of one process."""

    def __init__(
        self, answerer: Answerer, journal: Journal, *, output: Path, judge: Judge | None, with_pictures: bool
    ) -> None:
        self._answerer = answerer
        self._journal = journal
        self._output = output
        self._judge = judge
        self._with_pictures = with_pictures
        # Batches of all tasks are counted together, so that small tasks too are shared out.
        self._num_batches = 0
        self._num_replies: dict[str, int] = defaultdict(int)
        self._failures: dict[str, list[str]] = defaultdict(list)
        self._seen: dict[str, set[str]] = defaultdict(set)
        self._broken_data: dict[str, SampleRecord] = {}

    def records_of(self, task: str) -> list[SampleRecord]:
        """Records of a task; failures of an earlier run of samples that the data no longer have are left out."""
        found = self._journal.records(task)
        records = [record for record in found if record["error"] is None or record["id"] in self._seen[task]]
        return records + ([self._broken_data[task]] if task in self._broken_data else [])

    def run(self, plan: TaskPlan, *, settings: RunSettings, processes: Processes, progress: Progress | None) -> None:
        """Compute what is not finished of one task."""
        try:
            for window in _windows(self._read(plan, limit=settings.limit)):
                self._run_window(plan, window, settings=settings, processes=processes, progress=progress)
        except _AllAlike as error:
            logger.error("`%s` was given up: %s", plan.name, error)

    def _read(self, plan: TaskPlan, *, limit: int | None) -> Iterator[Sample | BrokenSample]:
        """Samples up to a fault of the data, which is the task's and not the run's."""
        try:
            yield from read_samples(plan, limit=limit)
        except Exception as error:
            logger.error("The data of `%s` cannot be read further: %s", plan.name, one_line(error))
            record = _new_record(f"data of {plan.name}", len(self._seen[plan.name]))
            self._broken_data[plan.name] = record | {"error": one_line(error)}

    def _run_window(
        self,
        plan: TaskPlan,
        window: Sequence[Sample | BrokenSample],
        *,
        settings: RunSettings,
        processes: Processes,
        progress: Progress | None,
    ) -> None:
        self._seen[plan.name] |= {item.id for item in window}
        broken = [item for item in window if isinstance(item, BrokenSample)]
        measured: list[_Measured] = []
        for item in window:
            if isinstance(item, Sample):
                found = self._measure(plan, item)
                if isinstance(found, BrokenSample):
                    broken.append(found)
                else:
                    measured.append(found)
        if processes.is_main:
            self._journal.append(plan.name, map(_broken_record, broken))
        if progress is not None:
            progress(plan.name, len(broken))
        batches = plan_batches(
            [item.num_tokens for item in measured],
            kinds=[bool(item.sample.pictures) for item in measured],
            budget=settings.batch_tokens // plan.generation.num_beams,
            num_new=plan.generation.max_new_tokens,
            max_size=self._answerer.max_batch_size,
        )
        members = [[measured[index].sample for index in indices] for indices in batches]
        for samples in members:
            if self._num_batches % processes.world_size == processes.rank:
                self._failures[plan.name] += self._run_batch(plan, samples)
                self._check_failures(plan, last=members[-1])
            if progress is not None:
                progress(plan.name, len(samples))
            self._num_batches += 1

    def _measure(self, plan: TaskPlan, sample: Sample) -> "_Measured | BrokenSample":
        try:
            return _Measured(sample, self._answerer.count_tokens(prompt_of(plan, sample)))
        except Exception as error:
            return BrokenSample(id=sample.id, position=sample.position, error=one_line(error))

    def _run_batch(self, plan: TaskPlan, samples: Sequence[Sample]) -> list[str]:
        """Compute a batch.

        Returns:
            The failure of the batch if all of its samples failed alike, nothing otherwise.
        """
        if all(self._journal.finished(plan.name, sample.id) is not None for sample in samples):
            return []
        records = []
        for sample, reply in zip(samples, self._reply(plan, samples), strict=True):
            if self._journal.finished(plan.name, sample.id) is None:
                records.append(self._record(plan, sample, reply))
        self._journal.append(plan.name, records)
        self._num_replies[plan.name] += sum(record["error"] is None for record in records)
        kinds = {_DETAILS.sub("", record["error"] or "") for record in records}
        return [str(records[0]["error"])] if len(kinds) == 1 and records[0]["error"] is not None else []

    def _check_failures(self, plan: TaskPlan, *, last: Sequence[Sample]) -> None:
        """Give a task up whose first batches all failed alike, and the last one too, which has the shortest prompts.

        Raises:
            _AllAlike: If so.
        """
        failures = self._failures[plan.name]
        if len(failures) != MOST_ALIKE or self._num_replies[plan.name] or self._journal.has_success(plan.name):
            return
        failures += self._run_batch(plan, last) or [""]
        if len({_DETAILS.sub("", failure) for failure in failures}) == 1:
            raise _AllAlike(f"its first {MOST_ALIKE} batches failed, and a short one too: {failures[-1]}")

    def _reply(self, plan: TaskPlan, samples: Sequence[Sample]) -> "list[str | Exception]":
        """Replies, or why there is none. A batch that fails is computed sample by sample, so one costs only itself."""
        prompts = [prompt_of(plan, sample) for sample in samples]
        try:
            return list(self._answerer.answer(prompts, plan.generation))
        except Exception as error:
            if len(prompts) == 1:
                logger.warning("Sample `%s` of `%s` failed: %s", samples[0].id, plan.name, one_line(error))
                return [error]
            return [self._reply(plan, [sample])[0] for sample in samples]

    def _record(self, plan: TaskPlan, sample: Sample, reply: "str | Exception") -> SampleRecord:
        record = _new_record(sample.id, sample.position)
        record |= {"prompt": prompt_of(plan, sample).text, "target": sample.target, "groups": dict(sample.groups)}
        if isinstance(reply, Exception):
            return record | {"error": one_line(reply)}
        record["reply"] = reply
        try:
            if self._with_pictures:
                record["pictures"] = [write_thumbnail(picture, self._output) for picture in sample.pictures]
            scored = score_reply(plan.task, sample, reply, judge=self._judge)
        except Exception as error:
            return record | {"error": one_line(error)}
        groups = {**sample.groups, **scored.groups}
        return record | {"answer": scored.answer, "scores": scored.scores, "groups": groups}


def _windows(samples: Iterator[Sample | BrokenSample]) -> Iterator[list[Sample | BrokenSample]]:
    while window := list(islice(samples, WINDOW)):
        yield window


def _broken_record(broken: BrokenSample) -> SampleRecord:
    return _new_record(broken.id, broken.position) | {"error": broken.error}


def _new_record(id: str, position: int) -> SampleRecord:
    return {
        "id": id,
        "position": position,
        "prompt": "",
        "pictures": [],
        "target": None,
        "reply": "",
        "answer": None,
        "scores": {},
        "groups": {},
        "error": None,
    }


def _is_comparable(shots: int | None, plan: TaskPlan) -> bool:
    return shots == (None if plan.few_shot is None else plan.few_shot.shots)
