"""VLFeedback: answers of many models, rated on three axes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Record, Text, Turn
from .llava_json import find_pictures
from .placeholders import PLACEHOLDER
from .row import FormatReader, Row, is_empty, is_missing
from .trl_preference import make_pair

AXES = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")


@dataclass(frozen=True, slots=True)
class _Answer:
    model: str
    text: str
    score: float


@dataclass(frozen=True)
class VlFeedbackReader(FormatReader):
    """VLFeedback (`MMInstruction/VLFeedback`), parquet or jsonl.

    `{"id", "prompt", "img_path" or "image", "completions"}`. `completions` is a list of `{"model", "response",
    "annotations"}`, or (as `datasets` stores it) an object of three lists of the same length. `annotations` holds
    `{"Rating": "1" to "5" or "N/A", "Rationale"}` per axis.

    The answer with the highest mean of the three ratings is chosen, the one with the lowest is rejected; of several
    with the same mean the first counts. An answer without all three ratings ("N/A", not a number, none) takes no part;
    one without words does only where there is no other to be rejected.

    Attributes:
        min_margin: Refuse rows whose best and worst means differ by less.

    Verified in code of its users: both layouts, the names of the axes, that ratings are texts and "N/A" occurs. The
    choice of the pair follows the first release's paper. Assumed: that a rating that is not in 1 to 5 is a fault
    rather than a scale of its own; such answers take no part either.
    """

    min_margin: float = 0.0

    dataset: ClassVar[str] = "vlfeedback"

    def read(self, row: Row) -> list[Record]:
        """One preference pair."""
        pictures = find_pictures(row, "img_path", "image", "images")
        if not pictures:
            raise row.error("missing image", "img_path", f"expected a picture; the row has {row.names()}")
        question = row.text("prompt").replace(PLACEHOLDER, "").strip()
        completions = _as_rows(row, row.require("completions"))
        rated = [
            answer
            for index, completion in enumerate(completions)
            if (answer := _rate(row, completion, f"completions[{index}]")) is not None
        ]
        if len(rated) < 2:
            raise row.error(
                "no rating", "completions", f"{len(rated)} of {len(completions)} answers have all ratings; expected 2"
            )
        written = [answer for answer in rated if answer.text]
        if not written:
            raise row.error("empty text", "completions", "expected an answer with words, found none")
        best = max(written, key=lambda answer: answer.score)
        worst = min(written if len(written) > 1 else rated, key=lambda answer: answer.score)
        if best.score <= worst.score or best.score - worst.score < self.min_margin:
            margin = best.score - worst.score
            raise row.error("no preference", "completions", f"best and worst mean differ by {margin:.2f} only")
        prompt = Turn("user", (*pictures, Text(question)))
        details = {
            "chosen_model": best.model,
            "rejected_model": worst.model,
            "chosen_score": best.score,
            "rejected_score": worst.score,
            "num_unrated": len(completions) - len(rated),
        }
        chosen, rejected = (Turn("assistant", (Text(answer.text),)) for answer in (best, worst))
        return [make_pair(row, (prompt,), chosen, rejected, **details)]


def _as_rows(row: Row, completions: Any) -> list[dict[str, Any]]:
    """Completions one by one, from either layout."""
    if not isinstance(completions, Mapping):
        entries = row.as_list(completions, "completions")
        return [row.as_mapping(entry, f"completions[{index}]") for index, entry in enumerate(entries)]
    columns = {name: row.as_list(value, f"completions.{name}") for name, value in completions.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise row.error("wrong nesting", "completions", f"expected lists of one length, found {lengths}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rate(row: Row, completion: dict[str, Any], where: str) -> _Answer | None:
    """The answer with its mean rating; `None` if there is no answer or a rating is missing."""
    response = completion.get("response")
    if is_missing(response) or is_empty(completion.get("annotations")):
        return None
    text = "" if is_empty(response) else row.as_text(response, f"{where}.response")
    annotations = row.as_mapping(completion["annotations"], f"{where}.annotations")
    if not any(axis in annotations for axis in AXES):
        found = ", ".join(map(str, annotations))
        raise row.error("missing field", f"{where}.annotations", f"expected the axes {', '.join(AXES)}, found {found}")
    ratings = [_rating(row, annotations.get(axis), f"{where}.annotations.{axis}") for axis in AXES]
    known = [rating for rating in ratings if rating is not None]
    if len(known) < len(AXES):
        return None
    return _Answer(str(completion.get("model", "")), text, sum(known) / len(known))


def _rating(row: Row, annotation: Any, where: str) -> float | None:
    if is_missing(annotation):
        return None
    value = row.as_mapping(annotation, where).get("Rating")
    try:
        rating = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) and 1 <= rating <= 5 else None
