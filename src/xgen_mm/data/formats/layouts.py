"""Conversations and pairs in other layouts than that of chat templates, brought into it row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..records import Conversation, Part, Record, Text, Turn
from .columns import check_words_are_read
from .llava_json import find_pictures
from .placeholders import PLACEHOLDER, check_image_count, put_in_place
from .row import FormatReader, Row, is_list, is_missing

QUESTION_COLUMNS = ("question", "query", "instruction", "prompt", "problem")
ANSWER_COLUMNS = ("answer", "response", "output", "completion", "solution")
_MESSAGE_COLUMNS = ("conversations", "conversation", "dialog", "dialogue")
SYSTEM_COLUMNS = ("system", "system_prompt")
_ROLE_NAMES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class QuestionAnswerReader(FormatReader):
    """A question and an answer per row, in columns of any name: `{"image", "question", "answer"}`.

    Pictures stand before the question, or in the places of as many `<image>` in it. Rows without a picture are text.

    Attributes:
        image: Field of the picture or pictures; `None` takes the first of the usual names that is there.
        question: Field of the question; `None` takes the first of `QUESTION_COLUMNS` that is there.
        answer: Field of the answer, a text or a number; `None` takes the first of `ANSWER_COLUMNS` that is there.
        system: Field of the system's message; `None` takes `system` or `system_prompt`, if there.
        ignore: Fields that look like part of a question and are to be left out; otherwise a row with such a field,
            `choices` for instance, is refused.

    Verified and assumed: nothing, the names are the user's.
    """

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    system: str | None = None
    ignore: tuple[str, ...] = ()

    dataset: ClassVar[str] = "question_answer"

    def read(self, row: Row) -> list[Record]:
        """One conversation of a question and an answer."""
        question_field = self.question or row.first_of(*QUESTION_COLUMNS)
        answer_field = self.answer or row.first_of(*ANSWER_COLUMNS)
        check_words_are_read(row, read=(question_field, answer_field, self.image or ""), ignored=self.ignore)
        system_field = self.system or next((name for name in SYSTEM_COLUMNS if row.has(name)), None)
        if self.image is None:
            pictures = find_pictures(row, "image", "images")
        else:
            pictures = row.pictures(row.require(self.image), self.image)
        question = row.text(question_field)
        if PLACEHOLDER in question:
            check_image_count(row, question.count(PLACEHOLDER), pictures)
            parts: tuple[Part, ...] = put_in_place(question, pictures)
        else:
            parts = (*pictures, Text(question))
        answer = row.as_text(_written(row.require(answer_field)), answer_field)
        turns = [Turn("user", parts), Turn("assistant", (Text(answer),))]
        if system_field is not None:
            turns.insert(0, Turn("system", (Text(row.text(system_field)),)))
        return [Conversation(tuple(turns), row.provenance())]


def with_messages(row: Row) -> Row:
    """A row with its conversation in `messages`, as `{"role", "content"}`.

    Besides `messages`, rows may have

    - `conversations` or `conversation` of `{"from", "value"}`,
    - `texts` of `{"user", "assistant"}` (The Cauldron, FineVision),
    - `prompt` and `completion`, each a text or messages (TRL),
    - a question and an answer by any of their usual names, with `input` behind the question and `history` before it.

    Raises:
        DataError: If it has none of these, or a column that would be dropped and must not be.
    """
    if isinstance(row.values.get("label"), bool):
        remedy = "good and bad answers are read by format `trl_unpaired`, for stage kto"
        raise row.error("unread column", "label", remedy)
    if row.has("messages"):
        return row
    return replace(row, values={**row.values, "messages": _other_messages(row)})


def with_pair(row: Row) -> Row:
    """A row with a preference pair in `prompt`, `chosen` and `rejected`.

    Besides these, rows may have

    - `messages` that end with the better answer, and the other one as `rejected_response`, a text or messages,
    - the prompt as `question`, `query` or `instruction`,
    - the prompt as `conversations`, and answers that are one message each, not in a list.

    Raises:
        DataError: If messages do not end with an answer.
    """
    values = dict(row.values)
    if row.has("rejected_response") and not row.has("rejected"):
        messages = _message_list(row, with_messages(row).items("messages"), "messages")
        if not messages or messages[-1]["role"] != "assistant":
            raise row.error("wrong turn order", "messages", "expected them to end with the better answer")
        values |= {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": row.values["rejected_response"]}
    elif not row.has("prompt"):
        name = next((name for name in (*QUESTION_COLUMNS, *_MESSAGE_COLUMNS) if row.has(name)), None)
        if name is not None:
            question = row.values[name]
            values["prompt"] = _message_list(row, question, name) if is_list(question) else question
    for name in ("chosen", "rejected"):
        # One message, and messages with the names of ShareGPT.
        answer: Any = values.get(name)
        entries: Any = [answer] if isinstance(answer, Mapping) else answer
        if is_list(entries) and all(isinstance(entry, Mapping) for entry in entries):
            values[name] = _message_list(row, entries, name)
    return replace(row, values=values)


def _other_messages(row: Row) -> list[Any]:
    for name in _MESSAGE_COLUMNS:
        if row.has(name):
            return _message_list(row, row.items(name), name)
    if row.has("texts"):
        return _message_pairs(row)
    if row.has("prompt") and row.has("completion"):
        messages: list[Any] = []
        for name, role in (("prompt", "user"), ("completion", "assistant")):
            value = row.values[name]
            messages += [{"role": role, "content": value}] if isinstance(value, str) else row.items(name)
        return messages
    if any(row.has(name) for name in QUESTION_COLUMNS) and any(row.has(name) for name in ANSWER_COLUMNS):
        return _question_and_answer(row)
    raise row.error(
        "missing field",
        "messages",
        "expected `messages`, `conversations`, `texts`, `prompt` and `completion`, or `question` and `answer`; the "
        f"row has {row.names()}",
    )


def _message_list(row: Row, messages: Sequence[Any], name: str) -> list[dict[str, Any]]:
    """Messages of either spelling as `{"role", "content"}`."""
    found = []
    for index, entry in enumerate(messages):
        fields = row.as_mapping(entry, f"{name}[{index}]")
        role = fields.get("role", fields.get("from"))
        known = _ROLE_NAMES.get(role, role) if isinstance(role, str) else role
        content = fields.get("content", fields.get("value"))
        found.append({"role": known, "content": content})
    return found


def _message_pairs(row: Row) -> list[dict[str, Any]]:
    messages = []
    for index, entry in enumerate(row.items("texts")):
        pair = row.as_mapping(entry, f"texts[{index}]")
        for role in ("user", "assistant"):
            if role not in pair:
                found = ", ".join(map(str, pair)) or "none"
                raise row.error("missing field", f"texts[{index}]", f"expected `user` and `assistant`, found {found}")
            messages.append({"role": role, "content": pair[role]})
    return messages


def _question_and_answer(row: Row) -> list[dict[str, Any]]:
    question_field, answer_field = row.first_of(*QUESTION_COLUMNS), row.first_of(*ANSWER_COLUMNS)
    check_words_are_read(row, read=(question_field, answer_field, "input", "history"), ignored=())
    question = row.values[question_field]
    if row.has("input"):
        question = f"{row.text(question_field)}\n{row.text('input')}"
    messages = []
    for index, entry in enumerate(row.items("history") if row.has("history") else []):
        pair = row.as_list(entry, f"history[{index}]")
        if len(pair) != 2:
            raise row.error("wrong nesting", f"history[{index}]", f"expected question and answer, found {len(pair)}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _written(row.values[answer_field])},
    ]
    return messages


def _written(answer: Any) -> Any:
    """A number as it is written; anything else as it is."""
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and not is_missing(answer)
    return str(answer) if is_number else answer
