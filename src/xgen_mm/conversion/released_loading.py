"""Lets `from_pretrained` read the released files as they are: the key rules in the host's own terms.

transformers renames keys one pattern after the other and then applies at most one converter per key. The mapping below
is derived from the key rules; nothing here knows a name of its own. Patterns are anchored at the released prefix, so a
checkpoint in our layout is never touched.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

from ..modeling.pretrained_xgen_mm import XGenMMPreTrainedModel
from .blip3o_rules import BLIP3O
from .key_rules import LAYER, V1_5, Drop, JoinRows, KeyRules, Rename, Split, template_pattern
from .v1_rules import V1

BASE_PREFIX = "model."
_READING = threading.RLock()
# Rules of each released layout, and the classes that its checkpoints load into: with head and, if any, without.
LAYOUTS: tuple[tuple[Any, ...], ...] = (
    (V1_5, "XGenMMForConditionalGeneration", "XGenMMModel"),
    (V1, "XGenMMV1ForConditionalGeneration", "XGenMMV1Model"),
    (BLIP3O, "Blip3oForConditionalGeneration"),
)


class JoinTokenRows(ConversionOps):  # type: ignore[misc]
    """Joins a released token table, cut to the original tokenizer, and the table of added tokens."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Join the two tables.

        Args:
            input_dict: Loaded tensors by source pattern, each alone or in a list.
            source_patterns: Pattern of the table, pattern of the added rows.
            target_patterns: Pattern of the joined table.
            config: Configuration of the model; its vocabulary says how many rows the joined table has.
            **kwargs: Further arguments of the host's interface, unused.

        Raises:
            ValueError: If one of the tables is missing or has too few rows.
        """
        missing = [pattern for pattern in source_patterns if pattern not in input_dict]
        if missing:
            raise ValueError(f"The checkpoint lacks {missing}; token tables come in pairs in the released layout.")
        table, added = (_first(input_dict[pattern]) for pattern in source_patterns)
        first_added_row = config.get_text_config().vocab_size - added.shape[0]
        if table.shape[0] < first_added_row:
            raise ValueError(f"{source_patterns[0]} has {table.shape[0]} rows; expected at least {first_added_row}.")
        return {target_patterns[0]: torch.cat([table[:first_added_row], added])}

    @property
    def reverse_op(self) -> ConversionOps:
        """Not available: rows that were left out cannot be written back.

        Raises:
            NotImplementedError: Always; `xgen-mm convert --reverse` writes the released layout.
        """
        raise NotImplementedError(
            "Models are saved in our layout; `xgen-mm convert --reverse` writes the released one."
        )


def host_mapping(rules: KeyRules, *, base_model: bool) -> list[WeightRenaming | WeightConverter]:
    """Key rules as the host's mapping.

    Args:
        rules: Rules of one layout.
        base_model: Whether the names are those of the model without head (no `model.` in front, no `lm_head`).

    Returns:
        Renamings and converters in the order in which they apply.
    """
    prefix = re.escape(rules.prefix)
    # Names that no renaming may touch: they are left out, or wait for a converter under their released name.
    kept = [template_pattern(name) for rule in rules.rules for name in _kept_names(rule)]
    mapping: list[WeightRenaming | WeightConverter] = []
    for rule in rules.rules:
        if isinstance(rule, Drop) or (base_model and not _targets(rule)[0].startswith(BASE_PREFIX)):
            continue
        targets = [name.removeprefix(BASE_PREFIX) if base_model else name for name in _targets(rule)]
        if isinstance(rule, Rename):
            source = template_pattern(rule.released)
            inside = [name.removeprefix(source) for name in kept if name.startswith(source)]
            guard = f"(?!{'|'.join(inside)})" if inside else ""
            end = "" if rule.released.endswith(".") else "$"
            mapping.append(WeightRenaming(f"^{prefix}{source}{guard}{end}", targets[0].replace(LAYER, r"\1")))
        elif isinstance(rule, Split):
            mapping += _split_steps(rule, targets, prefix)
        else:
            sources = [f"^{prefix}{template_pattern(name)}$" for name in _kept_names(rule)]
            mapping.append(WeightConverter(sources, targets[0], operations=[JoinTokenRows()]))
    return mapping


def register_released_layouts() -> None:
    """Have `from_pretrained` of our models read the released layouts. Calling it again changes nothing."""
    XGenMMPreTrainedModel._reading = staticmethod(released_names)


@contextmanager
def released_names() -> Iterator[None]:
    """Tell the host how to read the released layouts while a model is loaded.

    Not for longer: the host takes a known layout for the one that models are written in, and ours are written in our
    own. Models are loaded one after the other, because what the host knows holds for all threads.
    """
    with _READING:
        # The class names are registered, not the model type: targets are absolute for the class they belong to.
        for rules, *class_names in LAYOUTS:
            for class_name, is_base in zip(class_names, (False, True), strict=False):
                mapping = host_mapping(rules, base_model=is_base)
                register_checkpoint_conversion_mapping(class_name, mapping, overwrite=True)
        try:
            yield
        finally:
            for _, *class_names in LAYOUTS:
                for class_name in class_names:
                    register_checkpoint_conversion_mapping(class_name, [], overwrite=True)


def _split_steps(rule: Split, targets: list[str], prefix: str) -> list[WeightRenaming | WeightConverter]:
    # A converter may not hold a layer number, so the part up to the layer is renamed first and the leaf converted.
    ours_stem = targets[0].partition(LAYER)[0] + LAYER
    leaf = rule.released.partition(LAYER)[2]
    return [
        WeightRenaming(f"^{prefix}{template_pattern(rule.released)}$", (ours_stem + leaf).replace(LAYER, r"\1")),
        WeightConverter(
            template_pattern(leaf) + "$", [name.removeprefix(ours_stem) for name in targets], operations=[Chunk(dim=0)]
        ),
    ]


def _kept_names(rule: Rename | Split | JoinRows | Drop) -> tuple[str, ...]:
    if isinstance(rule, JoinRows):
        return rule.table, rule.added
    return (rule.released,) if isinstance(rule, Drop) else ()


def _targets(rule: Rename | Split | JoinRows) -> tuple[str, ...]:
    if isinstance(rule, Split):
        return rule.into
    return (rule.ours,) if isinstance(rule, Rename) else (rule.into,)


def _first(tensors: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if isinstance(tensors, list) else tensors
