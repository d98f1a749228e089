"""Judges one reply: reads an answer out of it and scores it. The rules themselves are in `metrics`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Protocol, TypeAlias

from ..sections import nearest
from .metrics.multiple_choice import extract_choice
from .metrics.openflamingo import cut_caption, cut_ok_vqa_answer, cut_vqa_answer
from .metrics.short_answers import anls, is_same_text, ocrbench_is_right, relaxed_accuracy
from .metrics.vlguard import is_refusal
from .metrics.vqa import vqa_accuracy
from .metrics.yes_no import extract_yes_no
from .samples import Sample
from .task import Task, TaskError

_CUTS: dict[str, Callable[[str], str]] = {
    "caption": cut_caption,
    "vqa": cut_vqa_answer,
    "ok_vqa": cut_ok_vqa_answer,
}


class Judge(Protocol):
    """A language model that reads replies; used only where the user named one."""

    def pick_option(self, question: str, options: Mapping[str, str], reply: str) -> str | None:
        """The option that a reply means, or `None`."""
        ...

    def extract(self, question: str, reply: str) -> str:
        """The short answer that a reply gives."""
        ...

    def grade(self, question: str, answer: str, reply: str) -> float:
        """How right a reply is, between 0 and 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a reply is worth.

    Attributes:
        answer: What was read out of the reply.
        scores: Shares from 0 to 1 by metric.
        groups: What the aggregate needs besides the sample's own groups.
    """

    answer: Any
    scores: dict[str, float]
    groups: dict[str, str] = field(default_factory=dict)


Scorer: TypeAlias = Callable[[str, Sample, Mapping[str, Any], Judge | None], Scored]
SCORERS: dict[str, Scorer] = {}


def scorer(function: Scorer) -> Scorer:
    """Register a function under its own name."""
    SCORERS[function.__name__] = function
    return function


def score_reply(task: Task, sample: Sample, reply: str, *, judge: Judge | None = None) -> Scored:
    """Judge a reply by the task's scorer.

    Raises:
        TaskError: If the task names a scorer that does not exist.
    """
    if task.scorer not in SCORERS:
        raise TaskError(f"`{task.name}` names the unknown scorer `{task.scorer}`; {nearest(task.scorer, SCORERS)}")
    return SCORERS[task.scorer](reply, sample, task.scorer_options, judge)


@scorer
def multiple_choice(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """Letter of an option, by the rule in `rule`; questions without options are compared as texts.

    `open_alternative` is the text of a second option, which makes a choice between the right answer and this text of
    questions without options when their replies are read, as VLMEvalKit does with MMMU. The model sees no option.
    """
    choices, target = sample.choices, sample.target
    alternative = options.get("open_alternative")
    if not choices and alternative:
        target = ascii_uppercase[0]
        choices = {target: str(sample.target), ascii_uppercase[1]: str(alternative)}
    if target not in choices:
        return exact_match(reply, sample, options, judge)
    answer = extract_choice(reply, choices, rule=options.get("rule", "vlmevalkit"))
    if answer is None and judge is not None:
        answer = judge.pick_option(sample.fields["question"], choices, reply)
    said = answer if sample.options else choices.get(answer or "")
    return Scored(answer=said, scores={"accuracy": float(answer == target)})


@scorer
def mantis(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """Mantis-Eval: options by letter; short answers are what follows "Final answer:", compared without case."""
    if sample.choices:
        return multiple_choice(reply, sample, options, judge)
    for marker in ("final answer:", "the answer is", "answer:"):
        place = reply.lower().rfind(marker)
        if place >= 0:
            reply = reply[place + len(marker) :]
            break
    answer = reply.strip().strip(".")
    return Scored(answer=answer, scores={"accuracy": float(answer.lower() == str(sample.target).lower().strip())})


@scorer
def yes_no(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """Yes or no, by VLMEvalKit's rule; a reply that is neither is wrong."""
    answer = extract_yes_no(reply)
    scores = {"accuracy": float(answer == sample.target)}
    return Scored(answer=answer, scores=scores, groups={"answer": str(sample.target), "predicted": answer})


@scorer
def exact_match(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """The same text, apart from case and white space around it; `postprocess` cuts a base model's reply first."""
    answer = cut_reply(reply, options)
    return Scored(answer=answer, scores={"accuracy": float(is_same_text(answer, str(sample.target)))})


@scorer
def vqa(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """VQA accuracy by the rule in `rule`; `postprocess` cuts a base model's reply first."""
    answer = cut_reply(reply, options)
    value = vqa_accuracy(answer, sample.target, rule=options.get("rule", "vlmevalkit"))
    return Scored(answer=answer, scores={"accuracy": value})


@scorer
def caption(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """A caption; CIDEr is a figure of all captions together, so a caption alone has no score."""
    return Scored(answer=cut_reply(reply, options), scores={})


@scorer
def relaxed(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """ChartQA's relaxed accuracy: numbers within 5 %."""
    return Scored(answer=reply.strip(), scores={"accuracy": float(relaxed_accuracy(reply, str(sample.target)))})


@scorer
def anls_score(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """DocVQA's ANLS."""
    return Scored(answer=reply.strip(), scores={"anls": anls(reply, sample.target)})


@scorer
def ocrbench(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """Whether an accepted answer stands in the reply."""
    kind = sample.groups.get("category", "")
    right = ocrbench_is_right(reply, sample.target, question_type=kind)
    return Scored(answer=reply.strip(), scores={"accuracy": float(right)})


@scorer
def refusal(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """Whether the reply refuses, by VLGuard's phrases."""
    is_refused = is_refusal(reply)
    scores = {"refused": float(is_refused), "attack_success": float(not is_refused)}
    return Scored(answer="refusal" if is_refused else "answer", scores=scores)


@scorer
def mathvista(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """MathVista: the option or value a reply gives, in the form the question asks for.

    Without a judge, only a reply that is the answer and nothing else, or names an option by VLMEvalKit's rule, counts.
    """
    choices = sample.choices
    answer_type = sample.fields.get("answer_type", "text")
    answer: str | None = reply.strip()
    if choices:
        letter = extract_choice(reply, choices)
        if letter is None and judge is not None:
            letter = judge.pick_option(sample.fields["question"], choices, reply)
        answer = choices.get(letter or "")
    elif judge is not None:
        answer = judge.extract(sample.fields["question"], reply)
    value = _in_form(answer, answer_type=answer_type)
    target = _in_form(str(sample.target), answer_type=answer_type)
    return Scored(answer=value, scores={"accuracy": float(value is not None and value == target)})


@scorer
def graded(reply: str, sample: Sample, options: Mapping[str, Any], judge: Judge | None) -> Scored:
    """A judge's grade.

    Raises:
        TaskError: If there is no judge.
    """
    if judge is None:
        raise TaskError("this task is graded by a language model; name one with `--judge-url`.")
    target = sample.target if isinstance(sample.target, str) else ", ".join(sample.target or [])
    return Scored(answer=reply.strip(), scores={"grade": judge.grade(sample.fields["question"], target, reply)})


def cut_reply(reply: str, options: Mapping[str, Any]) -> str:
    """The part of a base model's reply that counts, by the way in `postprocess`; other replies are only stripped.

    Raises:
        TaskError: If there is no such way.
    """
    kind = options.get("postprocess")
    if kind is None:
        return reply.strip()
    if kind not in _CUTS:
        raise TaskError(f"`postprocess` is {kind!r}; {nearest(kind, _CUTS)}")
    return _CUTS[kind](reply).strip()


def _in_form(answer: str | None, *, answer_type: str) -> str | float | None:
    """An answer in the form the question asks for; `None` if it is no finite number where one is wanted."""
    if answer is None or answer_type not in ("integer", "float"):
        return answer
    try:
        number = float(int(answer)) if answer_type == "integer" else float(answer)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
