"""TRL's preference format: `images`, `prompt`, `chosen`, `rejected`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Picture, PreferencePair, Record, Turn
from .layouts import with_pair
from .messages import PictureQueue, read_question, read_turns
from .row import FormatReader, Row


@dataclass(frozen=True)
class TrlPreferenceReader(FormatReader):
    """`{"images": [...], "prompt", "chosen", "rejected"}`, each of the three a text or a list of messages.

    Without `prompt`, `chosen` and `rejected` are whole conversations that differ in their last message. Pictures are
    placed as in format `messages`.

    Verified with TRL's code: the columns, both forms, and that pictures stand in the prompt only. Assumed: nothing.
    """

    dataset: ClassVar[str] = "trl_preference"

    def read(self, row: Row) -> list[Record]:
        """One preference pair."""
        row = with_pair(row)
        if "prompt" in row.values:
            prompt = read_question(row, "prompt")
            chosen, rejected = read_answer(row, "chosen"), read_answer(row, "rejected")
        else:
            prompt, chosen = self._split(row, "chosen")
            other, rejected = self._split(row, "rejected")
            if prompt != other:
                raise row.error("wrong nesting", "rejected", "another conversation than in `chosen` before the answer")
        return [make_pair(row, prompt, chosen, rejected)]

    def _split(self, row: Row, name: str) -> tuple[tuple[Turn, ...], Turn]:
        turns = read_question(row, name)
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise row.error("wrong turn order", name, "expected a conversation that ends with an answer")
        if any(isinstance(part, Picture) for part in turns[-1].parts):
            raise row.error("wrong nesting", name, "a picture in the answer; expected pictures in the prompt only")
        return turns[:-1], turns[-1]


def read_answer(row: Row, name: str) -> Turn:
    """The only message of a field, which is the assistant's.

    Raises:
        DataError: If it is not.
    """
    turns = read_turns(row, name, pictures=_no_pictures())
    if len(turns) != 1 or turns[0].role != "assistant":
        raise row.error("wrong turn order", name, f"expected one answer, found {[turn.role for turn in turns]}")
    return turns[0]


def make_pair(row: Row, prompt: tuple[Turn, ...], chosen: Turn, rejected: Turn, **details: Any) -> PreferencePair:
    """A pair whose prompt ends with the user and whose answers differ.

    Raises:
        DataError: If not.
    """
    if not prompt or prompt[-1].role != "user":
        raise row.error("wrong turn order", "prompt", "expected it to end with a user's turn")
    if chosen == rejected:
        raise row.error("no preference", "chosen", "the same answer as in `rejected`")
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, provenance=row.provenance(**details))


def _no_pictures() -> PictureQueue:
    return PictureQueue(Row(values={}, dataset="", key=""))
