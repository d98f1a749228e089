"""What one training run is: a frozen recipe read from one YAML file, checked before anything is loaded.

A recipe is complete by itself: no imports, no inheritance between files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.mixture_presets import load_preset
from ..sections import SectionError, nearest, parse_section, parse_yaml, read_yaml, shown
from .recipe_sections import (
    BatchSection,
    DataSection,
    DistributedSection,
    HeldOutSection,
    MixtureSection,
    ModelSection,
    OptimSection,
    OutputSection,
    PictureSection,
    PreferenceSection,
    RecipeError,
    RewardSection,
    Stage,
    TextSection,
)

# Stages whose data are text and pictures to be learned; the others compare or judge answers.
LIKELIHOOD_STAGES: tuple[Stage, ...] = ("pretrain", "sft", "safety")
PREFERENCE_FORMATS = ("trl_preference", "vlfeedback")
# Good and bad answers one by one; only kto knows what to do with the bad ones.
LABELLED_FORMATS = ("trl_unpaired",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One run.

    Attributes:
        stage: What kind of training.
        model: What is trained.
        data: On which data sets.
        optim: How weights change.
        batches: How samples become batches.
        output: Where results go.
        seed: Seed of the data's order, new weights and sampling.
        mixture: How data sets are mixed.
        text: How samples are written.
        pictures: How pictures are cut.
        preference: Settings of `dpo` and `kto`.
        reward: Settings of `grpo`.
        distributed: How the model lies on several processes.
        held_out: What is measured during the run.
    """

    stage: Stage
    model: ModelSection
    data: tuple[DataSection, ...]
    optim: OptimSection
    batches: BatchSection
    output: OutputSection
    seed: int = 17
    mixture: MixtureSection = field(default_factory=MixtureSection)
    text: TextSection = field(default_factory=TextSection)
    pictures: PictureSection = field(default_factory=PictureSection)
    preference: PreferenceSection | None = None
    reward: RewardSection | None = None
    distributed: DistributedSection = field(default_factory=DistributedSection)
    held_out: HeldOutSection | None = None

    def __post_init__(self) -> None:
        """Refuse contradictions between sections."""
        for check in (
            self._check_data,
            self._check_stage,
            self._check_batches,
            self._check_lengths,
            self._check_distributed,
        ):
            check()

    def _check_data(self) -> None:
        names = [entry.title for entry in self.data]
        if not names or len(set(names)) != len(names):
            raise RecipeError(f"`data` needs at least one data set and distinct names; found {names}.")
        weighted = [entry.title for entry in self.data if entry.weight is not None]
        if self.mixture.preset is not None:
            if weighted:
                raise RecipeError(
                    f"`mixture: preset` says the weights but `data` gives some too ({weighted}); leave those out."
                )
            try:
                known = {entry.name for entry in load_preset(self.mixture.preset).data_sets}
            except ValueError as error:
                raise RecipeError(f"`mixture: preset`: {error}") from error
            for name in names:
                if name not in known:
                    raise RecipeError(
                        f"`data` has `{name}`, not in preset `{self.mixture.preset}`; {nearest(name, known)}"
                    )
            missing = sorted(known - set(names))
            if missing and not self.mixture.allow_missing:
                raise RecipeError(
                    f"`data` lacks {missing} of preset `{self.mixture.preset}`; add them, or set `mixture: "
                    "allow_missing: true` to share out their part."
                )
        elif len(names) > 1 and len(weighted) != len(names):
            raise RecipeError(f"`data` has several data sets and weights for {weighted} only; give each a `weight`.")

    def _check_stage(self) -> None:
        is_preference = self.stage in ("dpo", "kto")
        if self.preference is not None and not is_preference:
            raise RecipeError(f"`preference` is for the stages dpo and kto; `stage` is `{self.stage}`.")
        if self.reward is not None and self.stage != "grpo":
            raise RecipeError(f"`reward` is for the stage grpo; `stage` is `{self.stage}`.")
        if self.preference and self.preference.noised_pictures and self.stage != "dpo":
            raise RecipeError("`preference: noised_pictures` is a second step of dpo; kto has no pairs.")
        if self.preference and self.preference.reference and self.model.lora:
            raise RecipeError(
                "`preference: reference` is set and `model: lora` too: with adapters the reference is the model "
                "without them. Leave out one of them."
            )
        labelled = [entry.title for entry in self.data if entry.format in LABELLED_FORMATS]
        if labelled and self.stage != "kto":
            raise RecipeError(f"`data` has the good and bad answers of {labelled}, which only stage kto can use.")
        pairs = [entry.title for entry in self.data if entry.format in PREFERENCE_FORMATS]
        if self.stage == "dpo" and len(pairs) != len(self.data):
            raise RecipeError(f"Stage dpo learns from pairs; of `data` only {pairs} hold any ({PREFERENCE_FORMATS}).")
        if self.stage in LIKELIHOOD_STAGES and pairs:
            raise RecipeError(f"Stage {self.stage} cannot learn from the preference pairs of {pairs}; see stage dpo.")

    def _check_batches(self) -> None:
        if self.batches.grouping == "packed":
            if self.stage not in LIKELIHOOD_STAGES:
                raise RecipeError(f"`batches: grouping: packed` is not possible in stage {self.stage}.")
            limit = self.text.max_tokens
            row = self.batches.row_length
            if row is not None and (limit is None or limit > row):
                raise RecipeError(
                    f"`batches: row_length` is {row} but `text: max_tokens` is {limit}: a longer sample would not "
                    f"fit. Set `text: max_tokens: {row}`."
                )
        if self.reward is not None and self.batches.global_batch_size % self.reward.num_generations:
            raise RecipeError(
                f"`batches: global_batch_size` {self.batches.global_batch_size} counts answers and is no multiple "
                f"of `reward: num_generations` {self.reward.num_generations}."
            )

    def _check_lengths(self) -> None:
        if self.optim.tokens is not None and self.batches.grouping != "packed":
            raise RecipeError(
                "`optim: tokens` needs rows of a known length: set `batches: grouping: packed`, or give `max_steps`."
            )
        streamed = [entry.title for entry in self.data if not entry.in_memory]
        if self.optim.epochs is not None and (streamed or self.mixture.preset):
            raise RecipeError(
                f"`optim: epochs` needs data sets of a known size, but {streamed or 'the preset'} "
                "cannot be counted beforehand; give `max_steps` or `tokens`."
            )

    def _check_distributed(self) -> None:
        if self.distributed.fsdp_size is None:
            return
        if self.output.save_steps is not None:
            raise RecipeError(
                "`distributed: fsdp_size` divides the model while it is loaded, and transformers cannot write the "
                "optimiser of such a model: no checkpoint to go on from. Set `output: save_steps: null`, or use the "
                "FSDP2 of accelerate, `accelerate launch --config_file recipes/accelerate/fsdp2_1node_8gpu.yaml`."
            )
        if self.model.lora is not None or self.model.quantization is not None:
            raise RecipeError(
                "`distributed: fsdp_size` is for whole models; with `model: lora` use the FSDP2 of accelerate."
            )


def load_recipe(path: str | Path, *, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        changes: `a.b=c` each, applied in order; values are YAML. `data.0.path=...` reaches into lists.

    Raises:
        RecipeError: If it cannot be read, has an unknown key or a wrong value, or contradicts itself.
    """
    try:
        content: Any = read_yaml(Path(path))
        for change in changes:
            _apply(content, change)
        return parse_section(Recipe, content, where=Path(path).name)
    except SectionError as error:
        raise RecipeError(str(error)) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every value written out; `load_recipe` reads it back."""
    return yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True, width=110)


def _apply(content: dict[str, Any], change: str) -> None:
    name, sign, text = change.partition("=")
    keys = name.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"`--set {change}` has no value; write `--set section.key=value`.")
    value = parse_yaml(text, where=f"--set {name}")
    place: Any = content
    for depth, key in enumerate(keys[:-1]):
        place = _step_into(place, key, where=".".join(keys[: depth + 1]), create=True)
    if isinstance(place, list):
        place[_list_index(place, keys[-1], where=name)] = value
    else:
        place[keys[-1]] = value


def _step_into(place: Any, key: str, *, where: str, create: bool) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, key, where=where)]
    if create and place.get(key) is None:
        place[key] = {}
    found = place[key]
    if not isinstance(found, dict | list):
        raise RecipeError(f"`--set {where}.…`: `{where}` is {shown(found)}, which has no keys.")
    return found


def _list_index(place: list[Any], key: str, *, where: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10) or int(key) >= len(place):
        raise RecipeError(f"`--set {where}`: expected a number below {len(place)}, since this is a list.")
    return int(key)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
