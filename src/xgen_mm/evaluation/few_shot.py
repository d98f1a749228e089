"""Examples in the prompts of base models, drawn and written as OpenFlamingo's evaluation does it.

2,048 training questions are drawn without replacement (numpy, seed 42); for every question some of these are drawn at
random. "0 examples" means two examples without their pictures. OpenFlamingo draws per process and batch, so that its
examples depend on both; here the n-th question gets the n-th draw, whatever the batches.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..data.records import Picture
from ..errors import DataError
from .prompts import END_OF_CHUNK, Piece, disarm
from .samples import Sample, build_sample, choose_layout, is_kept, row_id
from .sources import DataSource
from .task import DemoKind, Generation, Task, TaskError

Decoding: TypeAlias = Literal["openflamingo", "mm1"]

SEED = 42
QUERY_SET_SIZE = 2048
TEXT_ONLY_DEMONSTRATIONS = 2
# Beam search as in OpenFlamingo's evaluation; greedy search is what the MM1 paper describes.
NUM_BEAMS: dict[Decoding, int] = {"openflamingo": 3, "mm1": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotSettings:
    """How examples are drawn and replies generated.

    Attributes:
        shots: Examples with pictures; 0 takes two without.
        decoding: Preset: `openflamingo` searches with three beams and length penalty 0, `mm1` greedily.
        seed: Of both draws.
        query_set_size: Training questions that examples come from.
    """

    shots: int
    decoding: Decoding = "openflamingo"
    seed: int = SEED
    query_set_size: int = QUERY_SET_SIZE


def few_shot_generation(task: Task, settings: FewShotSettings) -> Generation:
    """Generation settings of a task under a preset.

    Raises:
        TaskError: If the task takes no examples.
    """
    if task.demonstrations is None:
        raise TaskError(f"`{task.name}` takes no examples in the prompt; leave out `--few-shot`.")
    return Generation(
        max_new_tokens=task.demonstrations.max_new_tokens,
        num_beams=NUM_BEAMS[settings.decoding],
        length_penalty=0.0,
        stop=(END_OF_CHUNK,),
    )


class Demonstrator:
    """Puts examples before questions.

    Args:
        task: The benchmark.
        source: Its training questions.
        settings: How many examples, and the seed.

    Raises:
        TaskError: If there are fewer training questions than examples.
    """

    def __init__(self, task: Task, source: DataSource, settings: FewShotSettings) -> None:
        if task.demonstrations is None:
            raise TaskError(f"`{task.name}` takes no examples in the prompt.")
        self.task = task
        self.kind: DemoKind = task.demonstrations.kind
        self.settings = settings
        self.query_set = draw_query_set(task, source, settings)
        self._random = random.Random(settings.seed)
        if len(self.query_set) < self.num_drawn:
            raise TaskError(
                f"{source.describe()} gives {len(self.query_set)} training questions for `{task.name}`; "
                f"{self.num_drawn} are needed."
            )

    @property
    def num_drawn(self) -> int:
        """Examples per prompt."""
        return self.settings.shots or TEXT_ONLY_DEMONSTRATIONS

    def complete(self, sample: Sample) -> Sample:
        """A sample with the examples of the next draw; call it in the order of the data.

        Where the training questions hold the sample's own, which would show its answer, the next one takes its place.

        Raises:
            TaskError: If there is no other.
        """
        drawn = self._random.sample(self.query_set, self.num_drawn)
        others = (example for example in self.query_set if example not in drawn and not _is_same(example, sample))
        try:
            examples = [next(others) if _is_same(example, sample) else example for example in drawn]
        except StopIteration:
            raise TaskError(
                f"`{self.task.name}`: too few training questions are left without the question itself; give others as "
                f"`--data {self.task.name}:train=PATH`."
            ) from None
        return self.put_before(sample, examples)

    def put_before(self, sample: Sample, demonstrations: Sequence[Sample]) -> Sample:
        """A sample whose prompt begins with examples."""
        pieces: list[Piece] = []
        pictures: list[Picture] = []
        for example in demonstrations:
            if self.settings.shots:
                pieces += [len(pictures)]
                pictures += example.pictures[:1]
            pieces += [f"{write_text(self.kind, example)}{first_answer(example)}{END_OF_CHUNK}\n"]
        pieces += [len(pictures), write_text(self.kind, sample)]
        return dataclasses.replace(sample, pieces=tuple(pieces), pictures=(*pictures, *sample.pictures[:1]))


def _is_same(example: Sample, sample: Sample) -> bool:
    """Whether both ask the same of the same picture; rows may be called differently in two files."""
    sources = [[picture.source for picture in found.pictures[:1]] for found in (example, sample)]
    return example.fields == sample.fields and sources[0] == sources[1]


def write_text(kind: DemoKind, sample: Sample) -> str:
    """What stands behind the picture, up to the answer."""
    if kind == "caption":
        return "Output:"
    return f"Question:{disarm(sample.fields['question'])} Short answer:"


def first_answer(sample: Sample) -> str:
    """Answer of the first annotator, or the first caption."""
    answer = sample.target[0] if isinstance(sample.target, list) else sample.target
    return disarm(str(answer).strip())


def draw_query_set(task: Task, source: DataSource, settings: FewShotSettings) -> list[Sample]:
    """Training questions that examples are drawn from; rows that cannot be read are left out.

    Raises:
        TaskError: If the columns fit no layout.
    """
    layout = choose_layout(task, source.first_rows())
    total = source.count()
    size = min(settings.query_set_size, total)
    chosen = np.random.RandomState(settings.seed).choice(total, size, replace=False)
    ranks = {int(position): rank for rank, position in enumerate(chosen)}
    found: dict[int, Sample] = {}
    for position, (values, roots) in enumerate(source.rows()):
        if position not in ranks or isinstance(values, DataError) or not is_kept(layout, values):
            continue
        try:
            found[ranks[position]] = build_sample(
                task, layout, values, id=row_id(layout, values, position), position=position, roots=roots
            )
        except Exception:
            # Whatever such a row holds: there are enough others.
            continue
    return [found[rank] for rank in sorted(found)]
