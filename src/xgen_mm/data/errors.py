"""What becomes of rows that cannot be used: counted by reason and reported, or raised. Never dropped in silence."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import DataError

Policy: TypeAlias = Literal["skip", "raise"]
Reason: TypeAlias = Literal[
    "wrong JSON",
    "wrong nesting",
    "missing field",
    "wrong type",
    "empty text",
    "missing image",
    "unreadable image",
    "unsafe path",
    "more <image> than images",
    "more images than <image>",
    "too many images",
    "unknown role",
    "wrong turn order",
    "missing granularity",
    "no rating",
    "no preference",
    "too large",
    "unread column",
    "unread media",
    "unexpected error",
]

POLICIES: tuple[Policy, ...] = ("skip", "raise")
_EXAMPLES_PER_REASON = 3


@dataclass(kw_only=True)
class ReadReport:
    """What was read so far, and what was wrong with the rest.

    Attributes:
        num_rows: Rows seen, broken ones included.
        num_records: Records made of them; a row can hold several, such as the pages of a document.
        bad_rows: Number of broken rows by reason.
        pictures_left_out: Pictures that could not be fetched, by reason, of documents that were kept without them.
        examples: The first messages of every reason.
    """

    num_rows: int = 0
    num_records: int = 0
    bad_rows: Counter[str] = field(default_factory=Counter)
    pictures_left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_bad_rows(self) -> int:
        """Broken rows of all reasons."""
        return self.bad_rows.total()

    def take(self, error: DataError, *, policy: Policy) -> None:
        """Count a broken row, or raise what is wrong with it.

        Raises:
            DataError: The error itself, if the policy is `raise`.
        """
        if policy == "raise":
            raise error
        self.bad_rows[error.reason] += 1
        self.remember(error)

    def leave_out(self, error: DataError, *, policy: Policy) -> None:
        """Count a picture that a document goes without, or raise what is wrong with it.

        Raises:
            DataError: The error itself, if the policy is `raise`.
        """
        if policy == "raise":
            raise error
        self.pictures_left_out[error.reason] += 1
        self.remember(error)

    def check_usable(self, name: str) -> None:
        """Refuse a data set of which nothing can be used.

        Args:
            name: What the message calls the data set.

        Raises:
            DataError: If rows were broken and none gave a record; it tells the first faults.
        """
        if not self.num_bad_rows or self.num_records:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in self.bad_rows.most_common())
        first = " ".join(self.examples[reason][0] for reason, _ in self.bad_rows.most_common(2))
        raise DataError(
            "no usable record",
            f"`{name}`: none of its {self.num_rows} rows can be used ({counts}): {first} Check `format`, its options "
            "and `image_root`; `xgen-mm data check` shows more.",
        )

    def remember(self, error: DataError) -> None:
        """Keep the message if it is among the first of its reason."""
        messages = self.examples.setdefault(error.reason, [])
        if len(messages) < _EXAMPLES_PER_REASON:
            messages.append(str(error))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the most frequent reasons first."""
        return {
            "rows": self.num_rows,
            "records": self.num_records,
            "bad_rows": dict(self.bad_rows.most_common()),
            "pictures_left_out": dict(self.pictures_left_out.most_common()),
            "examples": {reason: list(messages) for reason, messages in self.examples.items()},
        }


def check_policy(policy: str) -> Policy:
    """The policy, if it is one.

    Raises:
        ValueError: If it is none.
    """
    for known in POLICIES:
        if policy == known:
            return known
    raise ValueError(f"`policy` is {policy!r}; expected one of: {', '.join(POLICIES)}.")
