"""What a checkpoint holds in the released layout and in ours, and where every row stands in both."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.models.auto import AutoModel, AutoModelForImageTextToText

from ..checkpoint_config import reading_checkpoint
from ..errors import ConversionError
from ..modeling.configuration_xgen_mm import TOWERS_WITH_POOLING_HEAD, XGenMMConfig
from .key_rules import KeyRules, RowCopy
from .streaming import OutputTensor, Piece
from .tensor_files import StoredTensor

Shape = tuple[int, ...]
TOWER = "model.vision_tower."


@dataclass(frozen=True)
class Inventory:
    """Names, shapes and row positions for one configuration.

    Attributes:
        rules: Rules of the released layout.
        ours: Shapes in our layout.
        copies: Where the rows of each of our tensors stand in the released layout.
        dropped: Released tensors that we leave out, with their shapes where known; a checkpoint holds all or none.
    """

    rules: KeyRules
    ours: dict[str, Shape]
    copies: dict[str, tuple[RowCopy, ...]]
    dropped: dict[str, Shape | None]

    @cached_property
    def copies_by_released(self) -> dict[str, list[RowCopy]]:
        """All copies of each released tensor, in row order."""
        by_name: dict[str, list[RowCopy]] = {}
        for copies in self.copies.values():
            for row_copy in copies:
                by_name.setdefault(row_copy.released, []).append(row_copy)
        return {name: sorted(copies, key=lambda item: item.released_start) for name, copies in by_name.items()}

    @cached_property
    def released(self) -> dict[str, Shape]:
        """Shapes that a released checkpoint must have, without prefix; open tables may have more rows."""
        shapes = {}
        for name, copies in self.copies_by_released.items():
            num_rows = sum(row_copy.num_rows for row_copy in copies)
            shapes[name] = (num_rows, *self.ours[copies[0].ours][1:])
        return shapes

    def check(self, tensors: Mapping[str, StoredTensor], *, prefix: str, hint: str = "") -> None:
        """Check that a released checkpoint holds exactly what it should.

        Args:
            tensors: Its tensors, names without prefix.
            prefix: What to put before the names in the message.
            hint: Sentence that ends the message.

        Raises:
            ConversionError: If tensors are missing, unknown or of the wrong shape; all of them are named.
        """
        expected: dict[str, Shape | None] = dict(self.released)
        if any(name in tensors for name in self.dropped):
            expected |= self.dropped
        problems = [
            _listing("missing", [prefix + name for name in expected if name not in tensors]),
            _listing("unknown", [prefix + name for name in tensors if name not in expected]),
            _listing(
                "of the wrong shape",
                [
                    f"{prefix}{name} {list(tensors[name].shape)} instead of {list(shape or ())}"
                    for name, shape in expected.items()
                    if name in tensors and not self._fits(name, tensors[name].shape, shape)
                ],
            ),
        ]
        found = [problem for problem in problems if problem]
        if found:
            raise ConversionError(
                " ".join(["The checkpoint does not fit its layout:", "; ".join(found) + ".", hint]).strip()
            )

    def our_tensors(self, tensors: Mapping[str, StoredTensor], *, dtype: str | None) -> list[OutputTensor]:
        """Our tensors, put together from a released checkpoint that passed `check`.

        Args:
            tensors: Its tensors, names without prefix.
            dtype: Type to write floats in; `None` keeps each tensor's own.
        """
        outputs = []
        for name, shape in self.ours.items():
            pieces = tuple(Piece(tensors[c.released], c.released_start, c.num_rows) for c in self.copies[name])
            outputs.append(OutputTensor(name, output_dtype(pieces, dtype), shape, pieces))
        return outputs

    def left_over(self, tensors: Mapping[str, StoredTensor], *, dtype: str | None) -> list[OutputTensor]:
        """Rows of a released checkpoint that our layout has no place for: dropped tensors and unused table rows."""
        outputs = []
        for name, tensor in tensors.items():
            used = self.released[name][0] if name in self.released else 0
            if used < tensor.num_rows:
                piece = Piece(tensor, used, tensor.num_rows - used)
                shape = (piece.num_rows, *tensor.shape[1:])
                outputs.append(
                    OutputTensor(left_over_name(name, used), output_dtype((piece,), dtype), shape, (piece,))
                )
        return outputs

    def released_pieces(
        self, name: str, num_rows: int, *, ours: Mapping[str, StoredTensor], extras: Mapping[str, StoredTensor]
    ) -> tuple[Piece, ...] | None:
        """Rows of one released tensor, put together from our checkpoint and what was left over.

        Args:
            name: Its name, without prefix.
            num_rows: How many rows it has.
            ours: Tensors in our layout.
            extras: What `left_over` named.

        Returns:
            The rows in order, or `None` if some are nowhere.
        """
        copies = self.copies_by_released.get(name, [])
        pieces = [Piece(ours[c.ours], c.ours_start, c.num_rows) for c in copies if c.ours in ours]
        used = sum(piece.num_rows for piece in pieces)
        if used < num_rows and left_over_name(name, used) in extras:
            rest = extras[left_over_name(name, used)]
            pieces.append(Piece(rest, 0, rest.num_rows))
        return tuple(pieces) if sum(piece.num_rows for piece in pieces) == num_rows else None

    def _fits(self, name: str, shape: Shape, expected: Shape | None) -> bool:
        if expected is None:
            return True
        if name in self.rules.open_tables and shape[1:] == expected[1:]:
            return bool(shape) and shape[0] >= expected[0]
        return shape == expected


def build_inventory(config: XGenMMConfig, rules: KeyRules) -> Inventory:
    """Derive the inventory of a configuration; no memory is taken for weights.

    Args:
        config: Sizes of the model.
        rules: Rules of the released layout.

    Raises:
        ConversionError: If a weight of the model has no rule.
    """
    with reading_checkpoint("The configuration"), torch.device("meta"):
        ours = _shapes(AutoModelForImageTextToText.from_config(config, trust_remote_code=False))
    copies = {
        name: rules.row_copies(name, num_rows=shape[0], first_added_row=config.image_token_id)
        for name, shape in ours.items()
    }
    missing = [name for name, found in copies.items() if found is None]
    if missing:
        raise ConversionError(f"No key rule leads to {', '.join(missing)}. Extend `conversion/key_rules.py`.")
    found_copies = {name: found for name, found in copies.items() if found is not None}
    return Inventory(rules, ours, found_copies, _dropped(config, rules))


def _dropped(config: XGenMMConfig, rules: KeyRules) -> dict[str, Shape | None]:
    dropped: dict[str, Shape | None] = {rule.released: None for rule in rules.drops if not rule.released.endswith(".")}
    tower_config: Any = copy.deepcopy(config.vision_config)
    if tower_config.model_type in TOWERS_WITH_POOLING_HEAD:
        tower_config.vision_use_head = True
        with torch.device("meta"):
            tower = _shapes(AutoModel.from_config(tower_config, trust_remote_code=False))
        for name, shape in tower.items():
            released = rules.dropped_name(TOWER + name)
            if released is not None:
                dropped[released] = shape
    return dropped


def left_over_name(name: str, first_row: int) -> str:
    """Name under which rows from `first_row` on are kept aside."""
    return f"{name}[{first_row}:]" if first_row else name


def output_dtype(pieces: tuple[Piece, ...], wanted: str | None) -> str:
    """Type to write rows in: the wanted one, else their own; rows of several types are widened to float32."""
    if wanted is not None:
        return wanted
    stored = {piece.tensor.dtype for piece in pieces}
    return stored.pop() if len(stored) == 1 else "F32"


def _shapes(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _listing(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {', '.join(names)}" if names else ""
