"""Rewards of `grpo`: how good a generated answer is, from 0 to 1, compared with the one in the data."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ...data.refusals import OTHER_REFUSAL_PHRASES, REFUSAL_PHRASES
from ...sections import nearest
from ..recipe_sections import RecipeError, RewardSection

# An answer and the solution to their reward.
Reward: TypeAlias = Callable[[str, str], float]
RewardFunction: TypeAlias = Callable[..., list[float]]

# A minus sign belongs to a number unless it stands behind another, as in "3-5".
_NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\d+(?:,\d{3})*(?:\.\d+)?")
_ARTICLES_AND_MARKS = re.compile(r"\b(?:a|an|the)\b|[^\w\s.%$-]|\.(?!\d)")


def exact_match(answer: str, solution: str) -> float:
    """1 if both are the same but for case, articles, punctuation and white space.

    >>> exact_match("The cat.", "cat")
    1.0
    """
    return float(_plain(answer) == _plain(solution))


def number_distance(answer: str, solution: str) -> float:
    """1 for the right number, less the further away the last number of the answer is; 0 without one.

    The distance is relative to the larger of both numbers, so that half or twice the number is worth 0.5.

    Raises:
        ValueError: If the solution holds no number.

    >>> number_distance("I count 15.", "30")
    0.5
    """
    expected = _last_number(solution)
    if expected is None:
        raise ValueError(f"Reward `number_distance` needs a number in the solution, which is {solution!r}.")
    found = _last_number(answer)
    if found is None:
        return 0.0
    scale = max(abs(found), abs(expected))
    return 1.0 if scale == 0 else max(0.0, 1.0 - abs(found - expected) / scale)


def length(answer: str, solution: str) -> float:
    """1 for an answer no longer than the solution, and its share of the answer's characters for a longer one.

    >>> length("It is 42", "42")
    0.25
    """
    if not answer.strip():
        return 0.0
    return min(1.0, len(solution.strip()) / len(answer.strip()))


def refusal(answer: str, solution: str) -> float:
    """1 if the answer refuses where the solution does, and answers where the solution does.

    >>> refusal("I'm sorry, but no.", "42")
    0.0
    """
    return float(is_refusal(answer) == is_refusal(solution))


def is_refusal(text: str) -> bool:
    """Whether a text refuses: by VLGuard's phrases, or in wordings that it does not know; apostrophes may be curly."""
    lowered = text.lower().replace("\u2019", "'")
    return any(phrase in lowered for phrase in (*REFUSAL_PHRASES, *OTHER_REFUSAL_PHRASES))


def format_reward(pattern: str) -> Reward:
    """1 if the whole answer, without white space around it, fits a regular expression.

    Args:
        pattern: The expression, in Python's notation.

    Raises:
        RecipeError: If it is none.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise RecipeError(f"`reward: pattern` is {pattern!r}, no regular expression: {error}.") from error

    def score(answer: str, solution: str) -> float:
        del solution
        return float(compiled.fullmatch(answer.strip()) is not None)

    return score


REWARDS: dict[str, Reward] = {
    "exact_match": exact_match,
    "number_distance": number_distance,
    "length": length,
    "refusal": refusal,
}
FORMAT = "format"


def reward_functions(section: RewardSection) -> list[RewardFunction]:
    """The rewards of a recipe as TRL calls them; metrics bear their names.

    Args:
        section: Names and settings.

    Raises:
        RecipeError: If a name is unknown, or `format` has no pattern.
    """
    functions = []
    for name in section.rewards:
        if name == FORMAT:
            if section.pattern is None:
                raise RecipeError("`reward: rewards` has `format`, which needs `reward: pattern`, what to fit.")
            functions.append(for_trl(format_reward(section.pattern), name=name))
        elif name in REWARDS:
            functions.append(for_trl(REWARDS[name], name=name))
        else:
            raise RecipeError(f"`reward: rewards` has `{name}`; {nearest(name, [*REWARDS, FORMAT])}")
    return functions


def for_trl(reward: Reward, *, name: str) -> RewardFunction:
    """A reward of one answer as a function of a batch, as `GRPOTrainer` calls it.

    Args:
        reward: Of an answer and its solution.
        name: What metrics call it.
    """

    def score(completions: Sequence[Any], solution: Sequence[str], **_: Any) -> list[float]:
        return [reward(answer_text(answer), right) for answer, right in zip(completions, solution, strict=True)]

    score.__name__ = name
    return score


def answer_text(completion: Any) -> str:
    """Text of a completion: a plain text, or messages whose content is a text or parts."""
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        texts += parts
    return "".join(texts)


def _plain(text: str) -> str:
    return " ".join(_ARTICLES_AND_MARKS.sub(" ", text.lower()).split())


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
