"""Questions that are answered with yes or no: what a reply means, POPE, MME and HallusionBench.

Sources: VLMEvalKit (`dataset/utils/yorn.py`) and lmms-eval 0.7.3 (`tasks/pope`, `tasks/mme`, `tasks/hallusion_bench`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

from .aggregates import AGGREGATES, Figures, SampleScore
from .short_answers import Harness
from .vqa import _process_punctuation

YesNo: TypeAlias = Literal["yes", "no", "other"]


class YesNoRow(TypedDict):
    """One question with its reply.

    Attributes:
        answer: The right answer, "Yes" or "No".
        prediction: The reply.
        category: Category; POPE names several, with commas between them, where a question belongs to each.
        l2_category: HallusionBench's subcategory.
        image: Picture of the question; MME asks two questions about each.
        index: HallusionBench's identifier, `category_subcategory_visual_set_figure_question`.
    """

    answer: str
    prediction: str
    category: NotRequired[str]
    l2_category: NotRequired[str]
    image: NotRequired[str]
    index: NotRequired[str]


def extract_yes_no(reply: str) -> YesNo:
    """What a reply means by VLMEvalKit's rule: one of the words "yes" and "no" occurs and the other does not.

    >>> extract_yes_no("The answer is yes"), extract_yes_no("Yes, no doubt"), extract_yes_no("nope")
    ('yes', 'other', 'other')
    """
    words = set(_process_punctuation(reply.lower(), rule="vlmevalkit").split())
    if ("yes" in words) == ("no" in words):
        return "other"
    return "yes" if "yes" in words else "no"


def extract_yes_no_prefix(reply: str) -> YesNo:
    """What a reply means by lmms-eval's rule for MME: "yes" or else "no" within its first four characters.

    >>> extract_yes_no_prefix("Not sure"), extract_yes_no_prefix("The answer is yes")
    ('no', 'other')
    """
    text = reply.lower().strip().replace(".", "")
    if len(text) == 1:
        return "yes" if text == "y" else "no" if text == "n" else "other"
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def extract_yes_no_exact(reply: str) -> YesNo:
    """What a reply means by lmms-eval's rule for POPE: the bare word, apart from case and white space around it."""
    text = reply.lower().strip()
    return "yes" if text == "yes" else "no" if text == "no" else "other"


def pope(rows: Sequence[YesNoRow]) -> dict[str, Figures]:
    """POPE as VLMEvalKit computes it, whose "Overall" column is `f1`.

    A question of several categories counts once in each of them, and as often in the total. A reply that is neither
    yes nor no counts as "no" in precision and recall, and as wrong in accuracy.

    Returns:
        Percentages under `Overall` and under each category's name: `accuracy`, `precision`, `recall`, `f1` and
        `yes_share`, which is how often the model said yes.

    >>> pope([{"answer": "Yes", "prediction": "Yes.", "category": "random"}])["Overall"]["f1"]
    100.0
    """
    samples = [
        _judged(row, extract_yes_no(row["prediction"]), groups={"category": row.get("category", "")}) for row in rows
    ]
    return AGGREGATES["pope"].by_group(samples)


def pope_lmms_eval(rows: Sequence[YesNoRow]) -> Figures:
    """POPE as lmms-eval computes it: only a bare "yes" or "no" counts, and recall ignores replies that are neither.

    `yes_share` differs from that harness's `yes_ratio`, which it computes from the answers by mistake.
    """
    samples = [_judged(row, extract_yes_no_exact(row["prediction"])) for row in rows]
    return AGGREGATES["pope"].by_group(samples, has_strict_no=True)["Overall"]


def mme(rows: Sequence[YesNoRow], *, harness: Harness = "vlmevalkit") -> Figures:
    """MME: per category the percentage of right replies plus that of pictures with every question right.

    Args:
        rows: Questions with `category` and `image`.
        harness: Whose rule reads the replies.

    Returns:
        Points per category (at most 200 each), `perception` (2000), `cognition` (800), `total` (2800) and
        `normalised`, the total as a percentage of 2800, which is what the paper states.
    """
    extract = extract_yes_no if harness == "vlmevalkit" else extract_yes_no_prefix
    samples = [
        _judged(
            row,
            extract(row["prediction"]),
            groups={"category": row.get("category", ""), "image": row.get("image", "")},
        )
        for row in rows
    ]
    aggregate = AGGREGATES["mme"]
    return aggregate.figures(aggregate.total(samples, {}))


def hallusion(rows: Sequence[YesNoRow], *, has_figure_rule: bool = False) -> dict[str, Figures]:
    """HallusionBench by rule, as VLMEvalKit computes it.

    Args:
        rows: Questions with `index`, `category` and `l2_category`.
        has_figure_rule: Follow the benchmark's own program where a question of category VS comes without a figure: a
            reply that is neither yes nor no is right there, and those questions do not enter fAcc.

    Returns:
        Percentages under `Overall`, each category and each subcategory: `aAcc` of right replies, `fAcc` of figures
        with all replies right, `qAcc` of questions that are right on all figures. The paper states the mean of the
        three of `Overall`.

    Raises:
        ValueError: If an `index` has fewer than six parts.
    """
    samples = [_judged_hallusion(row, has_figure_rule=has_figure_rule) for row in rows]
    splits = AGGREGATES["hallusion"].by_group(samples, has_figure_rule=has_figure_rule)
    return {name: {key: shares[key] for key in ("aAcc", "fAcc", "qAcc")} for name, shares in splits.items()}


def _judged_hallusion(row: YesNoRow, *, has_figure_rule: bool) -> SampleScore:
    parts = row.get("index", "").split("_")
    if len(parts) < 6:
        raise ValueError(
            f"`index` is {row.get('index')!r}; expected six parts with `_` between them, such as VD_illusion_1_0_1_0."
        )
    given = extract_yes_no(row["prediction"])
    category, figure = row.get("category", parts[0]), parts[4]
    if has_figure_rule and given == "other" and (category, figure) == ("VS", "0"):
        given = "yes" if row["answer"].strip().lower() == "yes" else "no"
    groups = {
        "category": category,
        "l2_category": row.get("l2_category", parts[1]),
        "set_id": parts[3],
        "figure_id": figure,
        "question_id": parts[5],
    }
    return _judged(row, given, groups=groups)


def _judged(row: YesNoRow, given: YesNo, *, groups: Mapping[str, str] | None = None) -> SampleScore:
    answer = row["answer"].strip().lower()
    return SampleScore(
        scores={"accuracy": float(given == answer)}, groups={"answer": answer, "predicted": given, **(groups or {})}
    )
