"""From judged samples to a benchmark's figures, by name, so that reports can compute any figure from any samples.

| name | needs in `scores` | needs in `groups` | figures |
|---|---|---|---|
| `mean`, `accuracy` | any | those named in `by` | percentage of each score; also per group |
| `pope` | `accuracy` | `answer`, `predicted`; `category` | accuracy, precision, recall, f1, yes_share |
| `mme` | `accuracy` | `category`, `image` | perception, cognition, total, normalised, points per category |
| `hallusion` | `accuracy` | `index` or its parts; `category`, `l2_category` | aAcc, fAcc, qAcc, and their average |
| `circular` | `accuracy` | `index` or `question` | accuracy over questions, single_accuracy over rotations |
| `category_mean` | any | `category` or the group named in `by` | mean over groups of the mean within each |
| `cv_bench` | `accuracy` | `source` | 2D, 3D and their mean, accuracy |
| `ocrbench` | `accuracy` | `category` | accuracy; score, the number of right answers, in all and per kind |
| `cider` | `cider`, or `answer` and `target` of the sample | | cider, times 100 |

All are computed in two steps: samples that belong together (the questions about one picture, say) are tallied, and
figures follow from the sum of all tallies. So a report can draw such units at random, add up their tallies, and knows
how far each figure may be off.

Scores are shares from 0 to 1, figures percentages, except MME's points, OCRBench's counts and CIDEr.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from .caption_scores import cider_scores
from .multiple_choice import CIRCULAR_STEP
from .short_answers import whole_number

Figures: TypeAlias = dict[str, float]
# Amounts by what is counted and the group it is counted in; the group of everything has no name.
Tally: TypeAlias = defaultdict[tuple[str, str], float]
Options: TypeAlias = Mapping[str, Any]

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# 14 categories with 200 points each.
MME_MAXIMUM = 200 * (len(MME_PERCEPTION) + len(MME_COGNITION))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScore:
    """One judged sample.

    Attributes:
        scores: Shares from 0 to 1 by name.
        groups: What figures over sets of samples need to know.
        answer: What was read out of the reply; figures of all replies together need it.
        target: The right answer or answers, likewise.
    """

    scores: Mapping[str, float]
    groups: Mapping[str, str] = field(default_factory=dict)
    answer: Any = None
    target: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """How samples become figures. Call it with samples and options.

    Attributes:
        tally: What counts in the samples of one unit.
        figures: Figures from the sum of tallies.
        unit: Key of what samples belong together; `None` where each stands alone.
        complete: Fills in scores that depend on all samples together.
        needs: Groups of the data without which the figures would be others, and no error.
    """

    tally: Callable[[Sequence[SampleScore], Options], Tally]
    figures: Callable[[Tally], Figures]
    unit: Callable[[SampleScore], Hashable] | None = None
    complete: Callable[[Sequence[SampleScore]], list[SampleScore]] = list
    needs: tuple[str, ...] = ()

    def __call__(self, samples: Sequence[SampleScore], **options: Any) -> Figures:
        """Figures by name; none without samples."""
        if not samples:
            return {}
        return self.figures(self.total(samples, options))

    def by_group(self, samples: Sequence[SampleScore], **options: Any) -> dict[str, Figures]:
        """Figures of the whole, under `Overall` and even without samples, and of each group."""
        total = self.total(samples, options)
        figures: dict[str, Figures] = {}
        for group in dict.fromkeys(("", *_groups(total))):
            own = {(name, ""): amount for (name, of), amount in total.items() if of == group}
            # An amount of nothing, so that the whole has figures without samples too.
            figures[group or "Overall"] = self.figures(defaultdict(float, {("", ""): 0.0} | own))
        return figures

    def total(self, samples: Sequence[SampleScore], options: Options) -> Tally:
        """Sum of the tallies of all units."""
        total: Tally = defaultdict(float)
        samples = self.complete(samples)
        for unit in self.units(samples):
            for key, amount in self.tally([samples[i] for i in unit], options).items():
                total[key] += amount
        return total

    def units(self, samples: Sequence[SampleScore]) -> list[list[int]]:
        """Positions of the samples that belong together, in order of appearance."""
        if self.unit is None:
            return [[i] for i in range(len(samples))]
        units: dict[Hashable, list[int]] = {}
        for i, sample in enumerate(samples):
            units.setdefault(self.unit(sample), []).append(i)
        return list(units.values())


def _tally_mean(samples: Sequence[SampleScore], options: Options) -> Tally:
    by = options.get("by", ())
    names = (by,) if isinstance(by, str) else tuple(by)
    tally: Tally = defaultdict(float)
    for sample in samples:
        for group in dict.fromkeys(("", *(sample.groups.get(name, "") for name in names))):
            tally["count", group] += 1
            for name, score in sample.scores.items():
                tally[f"sum {name}", group] += score
    return tally


def _figures_mean(tally: Tally) -> Figures:
    return {_named(name, group): 100 * value for (name, group), value in _means(tally).items()}


def _means(tally: Tally) -> dict[tuple[str, str], float]:
    """Mean of each score in each group that has samples; the whole first."""
    sums = sorted((group, name) for name, group in tally if name.startswith("sum "))
    return {
        (name.removeprefix("sum "), group): tally[name, group] / tally["count", group]
        for group, name in sums
        if tally["count", group]
    }


def _tally_category_mean(samples: Sequence[SampleScore], options: Options) -> Tally:
    tally: Tally = defaultdict(float)
    for sample in samples:
        group = sample.groups.get(str(options.get("by", "category")), "")
        tally["count", group] += 1
        for name, score in sample.scores.items():
            tally[f"sum {name}", group] += score
    return tally


def _figures_category_mean(tally: Tally) -> Figures:
    means = _means(tally)
    figures = {}
    for score in sorted({name for name, _ in means}):
        shares = [value for (name, _), value in means.items() if name == score]
        figures[score] = 100 * sum(shares) / len(shares)
    return figures | {f"{name}/{group}": 100 * value for (name, group), value in means.items() if group}


def _tally_source(samples: Sequence[SampleScore], options: Options) -> Tally:
    return _tally_category_mean(samples, {"by": "source"})


def _figures_cv_bench(tally: Tally) -> Figures:
    shares = {group: 100 * value for (name, group), value in _means(tally).items() if name == "accuracy"}
    # The benchmark's own formula: both sources of the 2D part weigh the same, and so do 2D and 3D.
    flat = [shares[source] for source in ("ADE20K", "COCO") if source in shares]
    parts = {"2D": sum(flat) / len(flat)} if flat else {}
    parts |= {"3D": shares["Omni3D"]} if "Omni3D" in shares else {}
    mean = {"accuracy": sum(parts.values()) / len(parts)} if parts else {}
    return mean | parts | {f"accuracy/{source}": share for source, share in shares.items()}


def _tally_pope(samples: Sequence[SampleScore], options: Options) -> Tally:
    tally: Tally = defaultdict(float)
    for sample in samples:
        is_yes = sample.groups.get("answer", "").lower() == "yes"
        predicted = sample.groups.get("predicted", "").lower()
        says_yes = predicted == "yes"
        # lmms-eval leaves replies that are neither yes nor no out of recall.
        says_no = predicted == "no" if options.get("has_strict_no") else not says_yes
        # A question of several categories counts once in each of them, and as often in the total.
        for category in sample.groups.get("category", "").split(","):
            for group in dict.fromkeys(("", category)):
                tally["total", group] += 1
                tally["right", group] += _is_right(sample)
                tally["hits", group] += is_yes and says_yes
                tally["misses", group] += is_yes and says_no
                tally["false_alarms", group] += says_yes and not is_yes
    return tally


def _figures_pope(tally: Tally) -> Figures:
    figures: Figures = {}
    for group in _groups(tally):
        hits, false_alarms = tally["hits", group], tally["false_alarms", group]
        precision = _share(hits, hits + false_alarms)
        recall = _share(hits, hits + tally["misses", group])
        shares = {
            "accuracy": _share(tally["right", group], tally["total", group]),
            "precision": precision,
            "recall": recall,
            "f1": _share(2 * precision * recall, precision + recall),
            "yes_share": _share(hits + false_alarms, tally["total", group]),
        }
        figures |= {_named(name, group): 100 * share for name, share in shares.items()}
    return figures


def _category_and_image(sample: SampleScore) -> tuple[str, str]:
    return sample.groups.get("category", ""), sample.groups.get("image", "")


def _tally_mme(samples: Sequence[SampleScore], options: Options) -> Tally:
    category, right = samples[0].groups.get("category", ""), [_is_right(sample) for sample in samples]
    counts = {"right": sum(right), "questions": len(right), "whole_images": int(all(right)), "images": 1}
    return _tally_of({(name, category): count for name, count in counts.items()})


def _figures_mme(tally: Tally) -> Figures:
    points = {
        category: 100 * _share(tally["right", category], tally["questions", category])
        + 100 * _share(tally["whole_images", category], tally["images", category])
        for category in _groups(tally)
    }
    perception = sum(points.get(category, 0.0) for category in MME_PERCEPTION)
    cognition = sum(points.get(category, 0.0) for category in MME_COGNITION)
    total = perception + cognition
    sums = {"perception": perception, "cognition": cognition, "total": total, "normalised": 100 * total / MME_MAXIMUM}
    return sums | points


def _hallusion_parts(sample: SampleScore) -> dict[str, str]:
    # category_subcategory_visual_set_figure_question
    parts = [*sample.groups.get("index", "").split("_"), *[""] * 6]
    names = ("category", "l2_category", "", "set_id", "figure_id", "question_id")
    return {name: sample.groups.get(name, part) for name, part in zip(names, parts, strict=False) if name}


def _hallusion_set(sample: SampleScore) -> tuple[str, str]:
    """Figures and questions that are judged together all belong to one set."""
    parts = _hallusion_parts(sample)
    return parts["l2_category"], parts["set_id"]


def _tally_hallusion(samples: Sequence[SampleScore], options: Options) -> Tally:
    figures: dict[tuple[str, str], list[bool]] = {}
    questions: dict[tuple[str, str], list[bool]] = {}
    tally: Tally = defaultdict(float)
    for sample in samples:
        parts = _hallusion_parts(sample)
        # The benchmark's own program leaves questions that come without a figure out of fAcc.
        is_bare = bool(options.get("has_figure_rule")) and (parts["category"], parts["figure_id"]) == ("VS", "0")
        for group in dict.fromkeys(("", parts["category"], parts["l2_category"])):
            tally["right", group] += _is_right(sample)
            tally["replies", group] += 1
            questions.setdefault((group, parts["question_id"]), []).append(_is_right(sample))
            if not is_bare:
                figures.setdefault((group, parts["figure_id"]), []).append(_is_right(sample))
    for name, members in (("figures", figures), ("questions", questions)):
        for (group, _), right in members.items():
            tally[f"whole_{name}", group] += all(right)
            tally[name, group] += 1
    return tally


def _figures_hallusion(tally: Tally) -> Figures:
    figures: Figures = {}
    for group in _groups(tally):
        shares = {
            "aAcc": 100 * _share(tally["right", group], tally["replies", group]),
            "fAcc": 100 * _share(tally["whole_figures", group], tally["figures", group]),
            "qAcc": 100 * _share(tally["whole_questions", group], tally["questions", group]),
        }
        shares["average"] = sum(shares.values()) / len(shares)
        figures |= {_named(name, group): share for name, share in shares.items()}
    return figures


def _question(sample: SampleScore) -> Hashable:
    """What the rotations of one question share: a name, or the index up to multiples of a million."""
    if "question" in sample.groups:
        return sample.groups["question"]
    index = sample.groups.get("index", "")
    number = whole_number(index)
    return index if number is None else number % CIRCULAR_STEP


def _tally_circular(samples: Sequence[SampleScore], options: Options) -> Tally:
    right = [_is_right(sample) for sample in samples]
    counts = {"right": sum(right), "rotations": len(right), "whole": int(all(right)), "questions": 1}
    by = options.get("by", ())
    groups = ("", *(samples[0].groups.get(name, "") for name in ((by,) if isinstance(by, str) else by)))
    return _tally_of({(name, group): count for name, count in counts.items() for group in groups})


def _figures_circular(tally: Tally) -> Figures:
    shares = {
        _named("accuracy", group): 100 * _share(tally["whole", group], tally["questions", group])
        for group in _groups(tally)
    }
    return shares | {"single_accuracy": 100 * _share(tally["right", ""], tally["rotations", ""])}


def _tally_ocrbench(samples: Sequence[SampleScore], options: Options) -> Tally:
    tally: Tally = defaultdict(float)
    for sample in samples:
        for group in dict.fromkeys(("", sample.groups.get("category", ""))):
            tally["right", group] += _is_right(sample)
            tally["questions", group] += 1
    return tally


def _figures_ocrbench(tally: Tally) -> Figures:
    scores = {_named("score", group): float(tally["right", group]) for group in _groups(tally)}
    return {"accuracy": 100 * _share(tally["right", ""], tally["questions", ""])} | scores


def complete_cider(samples: Sequence[SampleScore]) -> list[SampleScore]:
    """Samples with their part in the corpus score as the score `cider`, from 0 to 10.

    Args:
        samples: Captions in `answer`, reference captions in `target`.

    Raises:
        ValueError: If a reference is no text.
    """
    if all("cider" in sample.scores for sample in samples):
        return list(samples)
    captions = [str(sample.answer or "") for sample in samples]
    references = [[sample.target] if isinstance(sample.target, str) else list(sample.target) for sample in samples]
    if not all(isinstance(text, str) for texts in references for text in texts):
        raise ValueError("a reference caption is no text; CIDEr compares texts.")
    values = cider_scores(captions, references)
    return [
        replace(sample, scores={**sample.scores, "cider": value})
        for sample, value in zip(samples, values, strict=True)
    ]


def _tally_of(amounts: Mapping[tuple[str, str], float]) -> Tally:
    return defaultdict(float, amounts)


def _is_right(sample: SampleScore) -> bool:
    return sample.scores.get("accuracy", 0.0) >= 1


def _groups(tally: Iterable[tuple[str, str]]) -> list[str]:
    """Names of groups, the whole first."""
    return sorted({group for _, group in tally})


def _named(name: str, group: str) -> str:
    return f"{name}/{group}" if group else name


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_MEAN = Aggregate(tally=_tally_mean, figures=_figures_mean)

AGGREGATES: dict[str, Aggregate] = {
    "mean": _MEAN,
    "accuracy": _MEAN,
    "pope": Aggregate(tally=_tally_pope, figures=_figures_pope),
    "mme": Aggregate(tally=_tally_mme, figures=_figures_mme, unit=_category_and_image, needs=("category", "image")),
    "hallusion": Aggregate(
        tally=_tally_hallusion,
        figures=_figures_hallusion,
        unit=_hallusion_set,
        needs=("category", "l2_category", "set_id", "figure_id", "question_id"),
    ),
    "circular": Aggregate(tally=_tally_circular, figures=_figures_circular, unit=_question, needs=("question",)),
    "category_mean": Aggregate(tally=_tally_category_mean, figures=_figures_category_mean),
    "cv_bench": Aggregate(tally=_tally_source, figures=_figures_cv_bench, needs=("source",)),
    # Kinds of questions differ in how replies are read.
    "ocrbench": Aggregate(tally=_tally_ocrbench, figures=_figures_ocrbench, needs=("category",)),
    "cider": Aggregate(tally=_tally_mean, figures=_figures_mean, complete=complete_cider),
}
