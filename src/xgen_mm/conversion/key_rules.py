"""The one place that knows how tensors of the released checkpoints are named and cut.

A rule ties names of the released layout to names of `XGenMMForConditionalGeneration`. Everything else is derived from
the rules: the mapping for loading on the fly, the conversion of files, its reversal, and the inventory of what a
checkpoint must hold. Every operation moves whole rows (slices along the first axis), so a conversion is exact in any
dtype.

Names are templates: `{i}` stands for a layer number, and a template that ends in `.` stands for all names that begin
so. The first rule that fits a name decides. Source: released code of xGen-MM v1.5.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from ..modeling.released_config import RELEASED_PREFIX

LAYER = "{i}"


@dataclass(frozen=True, slots=True)
class Rename:
    """The same tensor under another name.

    Attributes:
        released: Template in the released layout.
        ours: Template in our layout.
    """

    released: str
    ours: str


@dataclass(frozen=True, slots=True)
class Split:
    """One released tensor that is several of ours, stacked in equal parts along the first axis.

    Attributes:
        released: Template in the released layout.
        into: Our templates, in the order of the parts.
    """

    released: str
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinRows:
    """A token table and the separate table of added tokens that are one table of ours.

    The rows of `table` beyond the original tokenizer are never looked up and are left out.

    Attributes:
        table: Name in the released layout; holds at least as many rows as the tokenizer had tokens.
        added: Name of the table of added tokens in the released layout.
        into: Our name.
    """

    table: str
    added: str
    into: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Released tensors that our model does not have.

    Attributes:
        released: Template in the released layout.
        reason: Why nothing is lost, in a few words.
    """

    released: str
    reason: str


Rule = Rename | Split | JoinRows | Drop

V1_5_RULES: tuple[Rule, ...] = (
    Drop("vision_encoder.head.", reason="SigLIP pooling head, never called by this model"),
    Rename("vision_encoder.", "model.vision_tower."),
    Rename("vision_tokenizer.layers.{i}.0.norm_media.", "model.resampler.layers.{i}.attention.norm_media."),
    Rename("vision_tokenizer.layers.{i}.0.norm_latents.", "model.resampler.layers.{i}.attention.norm_latents."),
    Rename("vision_tokenizer.layers.{i}.0.to_q.", "model.resampler.layers.{i}.attention.q_proj."),
    Split(
        "vision_tokenizer.layers.{i}.0.to_kv.weight",
        into=(
            "model.resampler.layers.{i}.attention.k_proj.weight",
            "model.resampler.layers.{i}.attention.v_proj.weight",
        ),
    ),
    Rename("vision_tokenizer.layers.{i}.0.to_out.", "model.resampler.layers.{i}.attention.o_proj."),
    Rename("vision_tokenizer.layers.{i}.1.0.", "model.resampler.layers.{i}.mlp.norm."),
    Rename("vision_tokenizer.layers.{i}.1.1.", "model.resampler.layers.{i}.mlp.up_proj."),
    Rename("vision_tokenizer.layers.{i}.1.3.", "model.resampler.layers.{i}.mlp.down_proj."),
    Rename("vision_tokenizer.", "model.resampler."),
    JoinRows(
        "lang_model.model.embed_tokens.weight",
        "lang_model.model.embed_tokens.additional_embedding.weight",
        into="model.language_model.embed_tokens.weight",
    ),
    JoinRows("lang_model.lm_head.weight", "lang_model.lm_head.additional_fc.weight", into="lm_head.weight"),
    JoinRows("lang_model.lm_head.bias", "lang_model.lm_head.additional_fc.bias", into="lm_head.bias"),
    Rename("lang_model.model.", "model.language_model."),
)
# Names that only one layout has; they tell which one a checkpoint is in.
V1_5_MARK = "vision_tokenizer.latents"
V1_MARK = "vision_tokenizer.text_projection."
OUR_MARK = "model.resampler.latents"


@dataclass(frozen=True, slots=True)
class RowCopy:
    """Rows that stand in one tensor of each layout.

    Attributes:
        released: Name in the released layout, without the `vlm.` prefix.
        released_start: First row there.
        ours: Name in our layout.
        ours_start: First row there.
        num_rows: How many rows.
    """

    released: str
    released_start: int
    ours: str
    ours_start: int
    num_rows: int


class KeyRules:
    """Rules of one layout, applied to names.

    Args:
        rules: The rules, most specific first.
        prefix: What the released names of this layout begin with on the Hub.
    """

    def __init__(self, rules: Iterable[Rule], *, prefix: str) -> None:
        """Store the rules; see the class for the arguments."""
        self.rules = tuple(rules)
        self.prefix = prefix

    @cached_property
    def open_tables(self) -> frozenset[str]:
        """Released tables that may have more rows than are used."""
        return frozenset(rule.table for rule in self.rules if isinstance(rule, JoinRows))

    @cached_property
    def drops(self) -> tuple[Drop, ...]:
        """The rules that leave tensors out."""
        return tuple(rule for rule in self.rules if isinstance(rule, Drop))

    def drop_rule(self, released: str) -> Drop | None:
        """The rule that leaves a released name (without prefix) out, or `None`."""
        return next((rule for rule in self.drops if fill(rule.released, rule.released, released)), None)

    def dropped_name(self, ours: str) -> str | None:
        """Released name of a tensor that we leave out, from the name it would have in our layout.

        >>> V1_5.dropped_name("model.vision_tower.head.probe")
        'vision_encoder.head.probe'
        """
        for rule in self.rules:
            released = fill(rule.ours, rule.released, ours) if isinstance(rule, Rename) else None
            if released is not None and self.drop_rule(released) is not None:
                return released
        return None

    def row_copies(self, ours: str, *, num_rows: int, first_added_row: int) -> tuple[RowCopy, ...] | None:
        """Where the rows of one of our tensors stand in the released layout.

        Args:
            ours: Name of our tensor.
            num_rows: Its size along the first axis.
            first_added_row: Tokens of the original tokenizer: table rows from here on are added tokens.

        Returns:
            Copies in the order of our rows, or `None` if no rule fits.
        """
        for rule in self.rules:
            copies = _copies(rule, ours, num_rows=num_rows, first_added_row=first_added_row)
            # A general rule must not claim a name that a more specific one gives to something else.
            if copies and all(self._first_fit(copy.released) is rule for copy in copies):
                return copies
        return None

    def _first_fit(self, released: str) -> Rule | None:
        return next((rule for rule in self.rules if any(fill(t, t, released) for t in released_templates(rule))), None)


V1_5 = KeyRules(V1_5_RULES, prefix=RELEASED_PREFIX)


def released_templates(rule: Rule) -> tuple[str, ...]:
    """Templates of the released names that a rule takes."""
    return (rule.table, rule.added) if isinstance(rule, JoinRows) else (rule.released,)


def fill(template: str, other: str, name: str) -> str | None:
    """Rename `name` from one template to another.

    Args:
        template: Template that `name` may fit.
        other: Template of the answer, with the same `{i}` and the same kind of ending.
        name: Name without prefix.

    Returns:
        The new name, or `None` if `name` does not fit `template`.

    >>> fill("layers.{i}.to_q.", "layers.{i}.q_proj.", "layers.3.to_q.weight")
    'layers.3.q_proj.weight'
    >>> fill("layers.{i}.to_q.", "layers.{i}.q_proj.", "layers.3.to_k.weight") is None
    True
    """
    match = _compiled(template).fullmatch(name)
    if match is None:
        return None
    renamed = other.replace(LAYER, match["layer"]) if LAYER in template else other
    return renamed + match["rest"] if template.endswith(".") else renamed


def template_pattern(template: str) -> str:
    r"""Regular expression of a template, the layer number as group: `layers.{i}.a` -> `layers\.(\d+)\.a`."""
    return re.escape(template).replace(re.escape(LAYER), r"(\d+)")


@cache
def _compiled(template: str) -> re.Pattern[str]:
    pattern = template_pattern(template).replace(r"(\d+)", r"(?P<layer>\d+)")
    return re.compile(pattern + "(?P<rest>.+)" if template.endswith(".") else pattern)


def _copies(rule: Rule, ours: str, *, num_rows: int, first_added_row: int) -> tuple[RowCopy, ...] | None:
    if isinstance(rule, Rename):
        released = fill(rule.ours, rule.released, ours)
        return None if released is None else (RowCopy(released, 0, ours, 0, num_rows),)
    if isinstance(rule, Split):
        for part, template in enumerate(rule.into):
            released = fill(template, rule.released, ours)
            if released is not None:
                return (RowCopy(released, part * num_rows, ours, 0, num_rows),)
    if isinstance(rule, JoinRows) and ours == rule.into:
        return (
            RowCopy(rule.table, 0, ours, 0, first_added_row),
            RowCopy(rule.added, 0, ours, first_added_row, num_rows - first_added_row),
        )
    return None
