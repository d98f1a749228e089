"""What a benchmark is: where its data are, what is asked, how replies are scored, and which figures were published.

One YAML file per benchmark in `tasks/`; `suites.yaml` names groups of them.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeAlias

import yaml

from ..errors import XGenMMError
from ..sections import nearest, parse_section

TargetKind: TypeAlias = Literal["letter", "index", "option", "text", "texts", "yes_no", "none"]
MarkerKind: TypeAlias = Literal["none", "numbered", "plain", "file_names"]
OptionText: TypeAlias = Literal["none", "lines", "inline"]
Style: TypeAlias = Literal["chat", "text"]
JudgeUse: TypeAlias = Literal["never", "optional", "required"]
DemoKind: TypeAlias = Literal["caption", "vqa"]

SUITES_FILE = "suites.yaml"
_MOST_VALUES, _DEEPEST = 20_000, 50


class TaskError(XGenMMError):
    """A benchmark is unknown, its file is wrong, or its data are missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubData:
    """A data set of the Hub.

    Attributes:
        id: `owner/name`.
        split: Split with the questions.
        config: Configuration, if it has several; or all those that belong to the benchmark.
        train_split: Split that few-shot demonstrations are drawn from, if it has one.
    """

    id: str
    split: str
    config: tuple[str, ...] = ()
    train_split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one published form of a data set names its columns.

    A column is a key of the row, or a path such as `answers.*.answer`: a number takes an element of a list, `*` all
    elements that have the rest of the path, `first` the first of these. `a+b` joins the texts of two columns by `_`,
    `a/2` is the third part of a text with `_` between its parts, `a%10` the remainder of a number, and `a>b` the path
    of `b` in the directory `a`. Every row of a file also has `__file__`, the file's name without its ending, and rows
    that a file keeps in an object by name have `__key__`, their name.

    Attributes:
        name: `hub` for the data set of the Hub, `vlmevalkit` for that harness's TSV file, or another word.
        question: Column of the question; empty for tasks that ask the same of every picture.
        target: Column of the right answer.
        target_as: What it holds: an option's `letter`, its `index` from 0 or its text (`option`), a `text`, several
            `texts`, `yes_no` in any spelling (1 and 0 too), or `none`.
        id: Column that tells rows from one another; the row's number if empty.
        pictures: Columns of pictures, in order; one may hold a list. Columns that are absent or empty count as none.
        options: Columns of the options, or one column that holds a list.
        markers: How texts mark places of pictures: not at all, `numbered` (`<image 1>`), `plain` (`<image>` or
            `<img>`, in order), or `file_names` (as `plain`; options that are names of picture files are pictures too).
        texts: Further columns for the prompt, by name.
        groups: Columns that metrics group by, by name.
        keep: Columns with the values that rows must have to take part.
        options_in_question: How options stand in the question's text: not at all (`none`), one `A. ...` per line
            (`lines`), or behind "Options:" as `A: ..., B: ...` (`inline`). The question then ends before them.
        folders: Directories beside the file in which the release keeps pictures.
    """

    name: str
    question: str = ""
    target: str = ""
    target_as: TargetKind = "text"
    id: str = ""
    pictures: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    markers: MarkerKind = "none"
    texts: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    keep: dict[str, Any] = field(default_factory=dict)
    options_in_question: OptionText = "none"
    folders: tuple[str, ...] = ()

    def required_columns(self, *, groups: Sequence[str] = ()) -> tuple[str, ...]:
        """Columns without which the data are no data of this layout.

        Args:
            groups: Groups without which there is no figure; others may be missing, as texts and further options may.
        """
        named = (
            self.question,
            self.target,
            *self.keep,
            *(self.groups[name] for name in groups if name in self.groups),
        )
        return _column_names((*named, *self.pictures[:1], *self.options[:1]))

    def columns(self) -> tuple[str, ...]:
        """All columns that the layout names, one of its options standing for all."""
        return self.required_columns(groups=tuple(self.groups)) + _column_names((self.id, *self.texts.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How replies are generated: always without sampling.

    Attributes:
        max_new_tokens: Longest reply.
        num_beams: 1 takes the likeliest token at every step.
        length_penalty: Of beam search; 0 ranks by the sum of log-probabilities.
        stop: Texts that end a reply.
    """

    max_new_tokens: int = 1024
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperFigure:
    """A published figure.

    Attributes:
        value: The figure.
        metric: Name of the metric it is compared with.
        source: Where it stands.
        model: Of which model it is.
        shots: Examples in the prompt; `None` for none and no such protocol.
    """

    value: float
    metric: str
    source: str
    model: str
    shots: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstrations:
    """How examples stand in the prompt of a base model.

    Attributes:
        kind: `caption` or `vqa`; decides the wording and how replies are cut.
        max_new_tokens: Longest reply.
    """

    kind: DemoKind
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One benchmark.

    Attributes:
        name: What the command line calls it; the file's name.
        title: What readers call it.
        layouts: Forms of the data; the first whose columns a row has is used.
        scorer: Function of `scoring.py` that judges one reply.
        aggregate: Function of `metrics/aggregates.py` that makes metrics of all scores.
        main_metric: The metric that stands beside the paper's.
        prompt: Jinja template of the user's text. It gets `question`, `options` (lines `A. ...`), `letters`,
            the layout's `texts`, and the places of pictures that no text places itself: `pictures`, a space behind
            each, `pictures_if_unplaced`, the same unless a text places any, and the list `places`.
        hub: Data set of the Hub.
        generator: Name of the generator that draws the questions, for tasks without files.
        generation: How replies are generated.
        style: `chat`, or `text` for base models without chat template.
        scorer_options: Arguments of the scorer.
        aggregate_options: Arguments of the aggregate.
        higher_is_better: Direction of the main metric.
        demonstrations: How examples are written, for tasks that take them.
        judge: Whether a language model judges replies: `never`, `optional` (rules decide without it), `required`.
        paper: Published figures.
        split: Split in words.
        metric: Main metric in words.
        harness_task: The task of lmms-eval that comes nearest.
        differs: How that task differs from this one.
        note: What has to be known to read the figure.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    scorer: str
    aggregate: str
    main_metric: str
    metric: str
    split: str
    prompt: str = ""
    hub: HubData | None = None
    generator: str = ""
    generation: Generation = field(default_factory=Generation)
    style: Style = "chat"
    scorer_options: dict[str, Any] = field(default_factory=dict)
    aggregate_options: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True
    demonstrations: Demonstrations | None = None
    judge: JudgeUse = "never"
    paper: tuple[PaperFigure, ...] = ()
    harness_task: str = ""
    differs: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A group of benchmarks.

    Attributes:
        title: What it reproduces.
        tasks: Names of tasks.
        shots: Numbers of examples each task is run with; empty for none.
    """

    title: str
    tasks: tuple[str, ...]
    shots: tuple[int, ...] = ()


def _column_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Columns of the data behind columns of a layout, each once."""
    names = (part for column in columns for part in re.split(r"[+>]|[/%][0-9]+$", column))
    return tuple(dict.fromkeys(name for name in names if name))


def parse_task(content: Mapping[str, Any], *, where: str) -> Task:
    """A task from plain values.

    Raises:
        SectionError: If a key is unknown or missing, or a value has the wrong type.
        TaskError: If the prompt is no text, the task has neither a prompt nor demonstrations, or there are too many
            values.
    """
    _check_size(content, where=where)
    prompt = content.get("prompt", "")
    if not isinstance(prompt, str):
        raise TaskError(f"`{where}: prompt` is {prompt!r}; expected a text.")
    task = parse_section(Task, content, where=where)
    if not prompt and task.demonstrations is None:
        raise TaskError(f"`{where}` has neither `prompt` nor `demonstrations`; give one of them.")
    # White space at the end of a prompt is part of the protocol, so it is not stripped as other texts are.
    return dataclasses.replace(task, prompt=prompt)


def _check_size(content: Any, *, where: str) -> None:
    """Refuse values that would fill the memory or the stack where they are copied or shown.

    Files are bounded where they are read (`sections.load_yaml`); these values may come from anywhere.

    Raises:
        TaskError: If there are too many, or they are nested too deeply.
    """
    pending, count = [(content, 0)], 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise TaskError(f"`{where}` holds more than {_MOST_VALUES} values or {_DEEPEST} levels; no task does.")
        if isinstance(value, Mapping):
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | tuple):
            pending += [(inner, depth + 1) for inner in value]


@functools.cache
def task_names() -> tuple[str, ...]:
    """Names of the packaged tasks in alphabetical order."""
    names = (entry.name for entry in _tasks().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


@functools.cache
def load_task(name: str) -> Task:
    """A packaged task.

    Raises:
        TaskError: If there is none of that name, or its file bears another one.
    """
    if name not in task_names():
        raise TaskError(f"there is no task or suite `{name}`; {nearest(name, [*task_names(), *load_suites()])}")
    task = parse_task(_read(_tasks() / f"{name}.yaml"), where=f"{name}.yaml")
    if task.name != name:
        raise TaskError(f"`{name}.yaml` calls itself `{task.name}`; name file and task alike.")
    return task


@functools.cache
def load_suites() -> dict[str, Suite]:
    """Packaged suites by name."""
    content = _read(files(__package__) / SUITES_FILE)
    return {name: parse_section(Suite, values, where=f"{SUITES_FILE}: {name}") for name, values in content.items()}


def expand_names(names: Sequence[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Tasks that suites and tasks stand for, each once, in order, with the shots its suite asks for.

    Raises:
        TaskError: If a name is neither.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        suite = load_suites().get(name)
        if suite is None:
            found.setdefault(load_task(name).name, ())
        else:
            for member in suite.tasks:
                found[member] = found.get(member) or suite.shots
    return tuple(found.items())


def _tasks() -> Traversable:
    return files(__package__) / "tasks"


def _read(path: Traversable) -> dict[str, Any]:
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TaskError(f"`{path.name}` is no YAML: {' '.join(str(error).split())}") from error
    return content
