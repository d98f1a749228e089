"""VLGuard: unsafe pictures, and safe pictures with unsafe instructions."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Conversation, Record, Text, Turn
from .row import FormatReader, Row

SUBSETS = ("unsafes", "safe_unsafes", "safe_safes")


@dataclass(frozen=True)
class VlGuardReader(FormatReader):
    """VLGuard (`train.json`, `test.json`).

    `{"id", "image", "safe", "harmful_category", "harmful_subcategory", "instr-resp"}`. An unsafe picture has one
    `{"instruction", "response"}`; a safe one has a `{"safe_instruction", "response"}` and an `{"unsafe_instruction",
    "response"}`, each of which becomes a conversation of its own.

    The 5,000 helpful samples that go with it are no part of the data set: `reading.safety_sources` draws them from a
    fine-tuning set.

    Attributes:
        subsets: What is read: `unsafes` (unsafe pictures), `safe_unsafes` (safe pictures, unsafe instructions) and
            `safe_safes` (safe pictures, safe instructions).

    Verified in code of its users: the layout, the subsets, the names of the fields. Assumed: that every response of an
    unsafe picture is a refusal; it is not looked at.
    """

    subsets: tuple[str, ...] = SUBSETS

    dataset: ClassVar[str] = "vlguard"

    def __post_init__(self) -> None:
        """Check the choice."""
        wrong = [name for name in self.subsets if name not in SUBSETS]
        if wrong or not self.subsets:
            raise ValueError(f"`subsets` is {self.subsets}; expected some of: {', '.join(SUBSETS)}.")

    def read(self, row: Row) -> list[Record]:
        """No conversation, one or two, as the subsets ask for."""
        is_safe = row.require("safe")
        if not isinstance(is_safe, bool):
            raise row.error("wrong type", "safe", f"expected true or false, found {is_safe!r}")
        picture = row.picture(row.require("image"), "image")
        fields = (
            {"safe_instruction": "safe_safes", "unsafe_instruction": "safe_unsafes"}
            if is_safe
            else {"instruction": "unsafes"}
        )
        found: set[str] = set()
        records: list[Record] = []
        for index, entry in enumerate(row.items("instr-resp")):
            where = f"instr-resp[{index}]"
            pair = row.as_mapping(entry, where)
            name = self._instruction_field(row, pair, list(fields), where)
            found.add(name)
            if fields[name] not in self.subsets:
                continue
            turns = (
                Turn("user", (picture, Text(row.as_text(pair[name], f"{where}.{name}")))),
                Turn("assistant", (Text(row.as_text(pair.get("response"), f"{where}.response")),)),
            )
            category = row.values.get("harmful_category")
            records.append(Conversation(turns, row.provenance(subset=fields[name], harmful_category=category)))
        if found != set(fields):
            expected = " and ".join(f"`{name}`" for name in fields)
            raise row.error("wrong nesting", "instr-resp", f"expected {expected}, found {sorted(found) or 'nothing'}")
        return records

    def _instruction_field(self, row: Row, pair: dict[str, Any], names: list[str], where: str) -> str:
        for name in names:
            if name in pair:
                return name
        raise row.error(
            "missing field", where, f"expected one of {', '.join(names)}, found {', '.join(pair) or 'none'}"
        )
