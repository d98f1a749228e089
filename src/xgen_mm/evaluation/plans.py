"""What one run computes: tasks with their data, settings and samples, all checked before a model is loaded."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, one_line
from .few_shot import Demonstrator, FewShotSettings, few_shot_generation
from .metrics.short_answers import whole_number
from .prompts import Prompt
from .samples import Sample, build_sample, choose_layout, is_kept, row_id
from .sources import DataSource, Generator, question_source, train_source
from .task import Generation, Layout, Task, TaskError

# A row of VLMEvalKit's files may name the row whose picture it shares; names are shorter than any picture.
_MAX_REFERENCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """One task of a run.

    Attributes:
        name: Key in the results: the task's name, with `:k` behind it if k examples are in the prompts.
        task: The benchmark.
        source: Its questions.
        layout: How their columns are named.
        generation: How replies are generated.
        few_shot: Examples in the prompts, for base models.
        train: Where the examples come from.
    """

    name: str
    task: Task
    source: DataSource
    layout: Layout
    generation: Generation
    few_shot: FewShotSettings | None = None
    train: DataSource | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the replies, beside the model."""
        few_shot = None if self.few_shot is None else asdict(self.few_shot)
        return {
            "prompt": self.task.prompt,
            "layout": self.layout.name,
            "generation": asdict(self.generation),
            "few_shot": few_shot,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenSample:
    """A row of which no sample could be made."""

    id: str
    position: int
    error: str


def plan_task(
    task: Task,
    *,
    paths: Mapping[str, Path],
    generators: Mapping[str, Generator],
    download: bool,
    few_shot: FewShotSettings | None,
) -> TaskPlan:
    """Find and check what a task needs.

    Args:
        task: The benchmark.
        paths: Data by task name, training questions by task name and `:train`.
        generators: Generators by name.
        download: Whether the Hub may be asked.
        few_shot: Examples in the prompts; needed by tasks that take them, refused by others.

    Raises:
        TaskError: If data are missing or their columns fit no layout.
    """
    if few_shot is None and task.demonstrations is not None:
        raise TaskError(f"`{task.name}` is for base models: say how many examples, `--few-shot 4`.")
    generation = task.generation if few_shot is None else few_shot_generation(task, few_shot)
    missing: list[str] = []
    source = train = None
    try:
        source = question_source(task, path=paths.get(task.name), generators=generators, download=download)
    except TaskError as error:
        missing.append(str(error).rstrip("."))
    try:
        if few_shot is not None:
            train = train_source(task, path=paths.get(f"{task.name}:train"), download=download)
    except TaskError as error:
        missing.append(str(error).rstrip("."))
    if source is None or missing:
        raise TaskError(f"{'; '.join(missing)}.")
    if train is not None:
        choose_layout(task, train.first_rows())
    return TaskPlan(
        name=task.name if few_shot is None else f"{task.name}:{few_shot.shots}",
        task=task,
        source=source,
        layout=choose_layout(task, source.first_rows()),
        generation=generation,
        few_shot=few_shot,
        train=train,
    )


def read_samples(plan: TaskPlan, *, limit: int | None) -> Iterator[Sample | BrokenSample]:
    """Samples of a task in the order of its data, those that cannot be made included."""
    demonstrator = None
    if plan.few_shot is not None and plan.train is not None:
        demonstrator = Demonstrator(plan.task, plan.train, plan.few_shot)
    for found in islice(_read(plan), limit):
        if demonstrator is not None and isinstance(found, Sample):
            yield demonstrator.complete(found)
        else:
            yield found


def prompt_of(plan: TaskPlan, sample: Sample) -> Prompt:
    """What the model is asked."""
    style = "text" if plan.few_shot is not None else plan.task.style
    return Prompt(pieces=sample.pieces, pictures=sample.pictures, style=style)


def _read(plan: TaskPlan) -> Iterator[Sample | BrokenSample]:
    shared = _shared_pictures(plan)
    taken: Counter[str] = Counter()
    position = 0
    for number, (values, roots) in enumerate(plan.source.rows()):
        if isinstance(values, DataError):
            yield BrokenSample(id=f"row {number}", position=position, error=str(values))
            position += 1
            continue
        if not is_kept(plan.layout, values):
            continue
        name = row_id(plan.layout, values, number)
        taken[name] += 1
        # Some data sets number pictures and not questions.
        name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        values = _with_shared_picture(plan.layout, values, shared)
        try:
            yield build_sample(plan.task, plan.layout, values, id=name, position=position, roots=roots)
        except Exception as error:
            # Rows may hold anything, and one of them never ends an evaluation.
            yield BrokenSample(id=name, position=position, error=one_line(error))
        position += 1


def _shared_pictures(plan: TaskPlan) -> dict[str, Any]:
    """Pictures that several rows share, by the id of the row that has them; empty for other layouts."""
    if plan.source.path is None or plan.source.path.suffix != ".tsv" or not plan.layout.pictures:
        return {}
    column = plan.layout.pictures[0]
    rows = (values for values, _ in plan.source.rows() if not isinstance(values, DataError))
    wanted = {name for values in rows if (name := _reference(values.get(column))) is not None}
    if not wanted:
        return {}
    rows = (values for values, _ in plan.source.rows() if not isinstance(values, DataError))
    named = ((row_id(plan.layout, values, -1), values.get(column)) for values in rows)
    return {name: picture for name, picture in named if name in wanted}


def _with_shared_picture(layout: Layout, values: dict[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    if not shared:
        return values
    column = layout.pictures[0]
    name = _reference(values.get(column))
    return {**values, column: shared[name]} if name is not None and name in shared else values


def _reference(value: Any) -> str | None:
    """Id of the row whose picture is meant, if the value is one."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    return text if len(text) < _MAX_REFERENCE and whole_number(text) is not None else None
