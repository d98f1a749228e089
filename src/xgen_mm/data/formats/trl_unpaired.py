"""TRL's unpaired preference format: `images`, `prompt`, `completion`, `label`."""

from dataclasses import dataclass
from typing import ClassVar

from ..records import Conversation, Record
from .messages import read_question
from .row import FormatReader, Row
from .trl_preference import read_answer


@dataclass(frozen=True)
class TrlUnpairedReader(FormatReader):
    """`{"images": [...], "prompt", "completion", "label"}`: one answer, and whether it is a good one.

    `prompt` and `completion` are a text or a list of messages, with pictures as in format `messages`. The label is
    kept as `label` in the details of the provenance, where stage `kto` looks for it; bad answers are not for any other
    stage.

    Verified with TRL's code: the columns, both forms, that labels are true or false, and that pictures stand in the
    prompt only. Assumed: nothing.
    """

    dataset: ClassVar[str] = "trl_unpaired"

    def read(self, row: Row) -> list[Record]:
        """One conversation with a label."""
        label = row.require("label")
        if not isinstance(label, bool):
            raise row.error("wrong type", "label", f"expected true or false, found {label!r}")
        prompt = read_question(row, "prompt")
        if not prompt or prompt[-1].role != "user":
            raise row.error("wrong turn order", "prompt", "expected it to end with a user's turn")
        return [Conversation((*prompt, read_answer(row, "completion")), row.provenance(label=label))]
