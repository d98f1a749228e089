"""Sections of a recipe, each of which checks itself.

Values that a paper publishes are marked in the recipe files; the defaults here are ours.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..data.formats.registry import make_reader
from ..errors import XGenMMError

Stage: TypeAlias = Literal["pretrain", "sft", "safety", "dpo", "kto", "grpo"]
Part: TypeAlias = Literal["vision_tower", "resampler", "language_model"]
# Losses of TRL's `DPOTrainer` that use `label_smoothing`.
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
STAGES: tuple[Stage, ...] = ("pretrain", "sft", "safety", "dpo", "kto", "grpo")


class RecipeError(XGenMMError):
    """A recipe that cannot be run as it stands."""


def _expand_home(section: Any, *names: str) -> None:
    """Replace a leading `~` in some paths of a section; a shell does not do it behind the `=` of `--set`."""
    for name in names:
        value = getattr(section, name)
        if value is not None:
            object.__setattr__(section, name, os.path.expanduser(value))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSection:
    """Low-rank adapters on linear layers of the language model.

    Attributes:
        rank: Rank of the update.
        alpha: Its scale is `alpha / rank`.
        dropout: Dropout before the adapter.
        targets: Names of linear layers in the language model's blocks; `language_model` stands for all of them.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("language_model",)

    def __post_init__(self) -> None:
        """Refuse what PEFT would take and nobody wants."""
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"`model: lora` has rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected rank >= 1, "
                "alpha > 0 and dropout in [0, 1)."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSection:
    """What is trained.

    Attributes:
        checkpoint: Directory, Hub id, or `tiny` for the small model that ships with the package.
        revision: Commit of a Hub repository.
        dtype: Precision of the weights in memory; with `float32` and `optim: precision: bf16`, weights stay precise
            and the arithmetic is in bfloat16.
        attention: Attention implementation, as `from_pretrained` takes it.
        trainable: Parts whose weights change. With `lora`, `language_model` must not be among them: the adapters are
            what changes there.
        lora: Adapters on the language model.
        quantization: 4- or 8-bit weights of the language model under adapters (bitsandbytes).
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
    """

    checkpoint: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    trainable: tuple[Part, ...] = ("resampler", "language_model")
    lora: LoraSection | None = None
    quantization: Literal["nf4", "int8"] | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        _expand_home(self, "checkpoint")
        if self.lora is not None and "language_model" in self.trainable:
            raise RecipeError(
                "`model: trainable` holds `language_model` and `model: lora` is set: with adapters the language "
                "model's own weights stay as they are. Take `language_model` out of `trainable`, or leave out `lora`."
            )
        if self.lora is None and not self.trainable:
            raise RecipeError("`model: trainable` is empty and there is no `lora`; nothing would be trained.")
        if self.quantization is not None and self.lora is None:
            raise RecipeError(
                f"`model: quantization` is {self.quantization!r} without `lora`; quantised weights cannot be trained, "
                "only adapters on them. Add `lora: {rank: 16, alpha: 32}`, or leave out `quantization`."
            )
        if len(set(self.trainable)) != len(self.trainable):
            raise RecipeError(f"`model: trainable` names a part twice: {list(self.trainable)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """One data set.

    Attributes:
        format: Name of its format (`xgen-mm data formats`).
        path: File, directory, pattern, or Hub id.
        name: What messages and presets call it; by default its format.
        weight: Its share of the mixture; not given where a preset says it.
        options: Options of the format.
        image_root: Directory of pictures that are given by name.
        split: Split of a data set on the Hub.
        count: Take so many random rows per pass.
        fetch_to: Directory into which pictures that are given as URLs are fetched, with bounds; without it a record
            with a URL is an error.
        in_memory: Whether the records (not their pictures' pixels) are held in memory, so that they can be shuffled as
            a whole; otherwise they are read one after the other and shuffled by windows.
    """

    format: str
    path: str
    name: str | None = None
    weight: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    image_root: str | None = None
    split: str = "train"
    count: int | None = None
    fetch_to: str | None = None
    in_memory: bool = True

    def __post_init__(self) -> None:
        """Check the format and its options, which needs no data."""
        _expand_home(self, "path", "image_root", "fetch_to")
        try:
            make_reader(self.format, self.options)
        except ValueError as error:
            raise RecipeError(f"`data`: {error}") from error
        if self.weight is not None and self.weight <= 0:
            raise RecipeError(f"`data: weight` of `{self.title}` is {self.weight}; weights are positive.")

    @property
    def title(self) -> str:
        """Name of the data set."""
        return self.name or self.format


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSection:
    """How data sets are mixed.

    Attributes:
        preset: Published mixture whose weights count; the data sets are matched by name.
        allow_missing: Whether data sets of the preset may be left out.
        unit: Whether weights count samples or tokens.
        on_bad_record: Whether a record that cannot be used is an error or left out, counted and logged.
        shuffle_window: Records shuffled at a time where they are not in memory.
    """

    preset: str | None = None
    allow_missing: bool = False
    unit: Literal["samples", "tokens"] = "samples"
    on_bad_record: Literal["raise", "skip"] = "skip"
    shuffle_window: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSection:
    """How samples are written; see `TextSettings`.

    Attributes:
        released_form: Ids and labels exactly as the released fine-tuning code wrote them.
        supervise_stop_tokens: Whether `<|endofchunk|>` and end-of-text behind documents are learned.
        max_text_tokens: Longest text, each picture counted as one token; the release uses 2048.
        max_tokens: Longest sample, image tokens included.
    """

    released_form: bool = False
    supervise_stop_tokens: bool = True
    max_text_tokens: int | None = 2048
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSection:
    """How pictures are cut.

    Attributes:
        resolution: `base` gives one tile per picture; `anyres` cuts it into tiles and puts a thumbnail first;
            `checkpoint` leaves that to the checkpoint's processor.
        max_tiles: Most tiles of a picture, the thumbnail included as in the processor, with `anyres`: canvases are
            all grids that leave room for it, at most four tiles on a side. `None` keeps the checkpoint's canvases.
    """

    resolution: Literal["checkpoint", "base", "anyres"] = "checkpoint"
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.max_tiles is not None and self.resolution != "anyres":
            raise RecipeError(
                f"`pictures: max_tiles` is {self.max_tiles} but `resolution` is `{self.resolution}`; tiles are "
                "counted with `resolution: anyres` only."
            )
        if self.max_tiles is not None and not 3 <= self.max_tiles <= 17:
            raise RecipeError(f"`pictures: max_tiles` is {self.max_tiles}; expected 3 to 17, the thumbnail included.")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSection:
    """How samples become batches.

    Attributes:
        global_batch_size: Samples per optimiser step over all processes; with `grouping: packed`, rows.
        per_device_batch_size: Samples (rows) that one process computes at once; the rest is accumulated.
        grouping: `fixed` keeps the order, `length` groups samples of like length and modality, `packed` puts several
            samples into one row without padding.
        row_length: Tokens of a packed row.
        window: Samples that are grouped at a time.
        num_workers: Processes that read and cut pictures.
    """

    global_batch_size: int
    per_device_batch_size: int = 1
    grouping: Literal["fixed", "length", "packed"] = "length"
    row_length: int | None = None
    window: int = 256
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.per_device_batch_size < 1 or self.global_batch_size % self.per_device_batch_size:
            raise RecipeError(
                f"`batches: global_batch_size` is {self.global_batch_size}, no multiple of `per_device_batch_size` "
                f"{self.per_device_batch_size}."
            )
        if (self.grouping == "packed") != (self.row_length is not None):
            raise RecipeError(
                f"`batches: grouping` is `{self.grouping}` and `row_length` is {self.row_length}; packed rows, and "
                "only they, need a `row_length` in tokens."
            )
        if self.window < 1 or self.num_workers < 0:
            raise RecipeError(f"`batches` has window {self.window} and num_workers {self.num_workers}.")

    def accumulation(self, world_size: int) -> int:
        """Batches per optimiser step of one process.

        Raises:
            RecipeError: If the global batch does not divide by the processes.
        """
        per_step = self.per_device_batch_size * world_size
        if self.global_batch_size % per_step:
            raise RecipeError(
                f"`batches: global_batch_size` {self.global_batch_size} is no multiple of {world_size} process(es) "
                f"times `per_device_batch_size` {self.per_device_batch_size}. Change one of them with `--set`."
            )
        return self.global_batch_size // per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimSection:
    """How weights change, and how long. Exactly one of `max_steps`, `epochs` and `tokens` is given.

    Attributes:
        learning_rate: Highest learning rate.
        schedule: What happens to it after the warm-up.
        min_learning_rate: Where `cosine_with_min_lr` ends.
        warmup_steps: Steps of linear warm-up.
        warmup_ratio: The same as a part of all steps.
        max_steps: Optimiser steps.
        epochs: Passes over the data.
        tokens: Tokens of the whole run, image tokens included; packed rows only, which have a known length.
        weight_decay: Decay of weights, norms and biases excepted.
        betas: Decay rates of AdamW.
        epsilon: Its epsilon.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them.
        optimizer: Name of an optimiser of `TrainingArguments`.
        precision: Arithmetic of forward and backward pass: `no` uses that of the weights.
    """

    learning_rate: float
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr"] = "cosine"
    min_learning_rate: float | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    max_steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        lengths = {"max_steps": self.max_steps, "epochs": self.epochs, "tokens": self.tokens}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) != 1 or min(given.values()) <= 0:
            raise RecipeError(
                f"`optim` has {given or 'no length'}; give exactly one of {list(lengths)}, and a positive one."
            )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise RecipeError("`optim` has `warmup_steps` and `warmup_ratio`; give one of them.")
        if (self.schedule == "cosine_with_min_lr") != (self.min_learning_rate is not None):
            raise RecipeError(
                f"`optim: schedule` is `{self.schedule}` and `min_learning_rate` is {self.min_learning_rate}; "
                "`cosine_with_min_lr`, and only it, needs one."
            )
        if self.learning_rate <= 0:
            raise RecipeError(f"`optim: learning_rate` is {self.learning_rate}; expected a positive number.")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisedPictureSection:
    """The second preference step against the answer to a noised picture.

    Attributes:
        weight: Weight of its loss beside that of the pair.
        noise_step: How far the picture is diffused, of 1000 steps of the usual linear schedule.
        max_new_tokens: Longest answer that is generated.
    """

    weight: float = 1.0
    noise_step: int = 500
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.weight <= 0 or not 0 < self.noise_step <= 1000 or self.max_new_tokens < 1:
            raise RecipeError(
                f"`preference: noised_pictures` has weight {self.weight}, noise_step {self.noise_step}, "
                f"max_new_tokens {self.max_new_tokens}; expected a positive weight, a step of 1 to 1000 and a "
                "positive length."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSection:
    """Settings of `dpo` and `kto`.

    Attributes:
        beta: Strength of the pull towards the reference.
        loss_type: Loss of TRL's trainer; `None` is its default.
        label_smoothing: Probability that a preference is wrong (`dpo`); only some losses take it into account.
        reference: Checkpoint of the reference where all weights are trained; by default the one training starts from.
            With adapters the reference is the model without them.
        noised_pictures: The second step per batch (`dpo`).
    """

    beta: float = 0.1
    loss_type: str | None = None
    label_smoothing: float = 0.0
    reference: str | None = None
    noised_pictures: NoisedPictureSection | None = None

    def __post_init__(self) -> None:
        """Check ranges, and refuse what TRL would pass over in silence."""
        _expand_home(self, "reference")
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise RecipeError(
                f"`preference` has beta {self.beta} and label_smoothing {self.label_smoothing}; expected a positive "
                "beta and a probability below 0.5."
            )
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSSES:
            raise RecipeError(
                f"`preference: label_smoothing` is {self.label_smoothing}, but loss `{self.loss_type or 'sigmoid'}` "
                f"does not know it; set `loss_type` to one of {', '.join(SMOOTHED_LOSSES)}, or leave it out."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSection:
    """Settings of `grpo`.

    Attributes:
        rewards: Names of reward functions; see `training/stages/rewards.py`.
        num_generations: Answers per prompt.
        max_completion_length: Longest answer in tokens.
        temperature: Temperature of sampling.
        beta: Strength of the pull towards the reference; 0 needs none.
        weights: Weights of the rewards, in their order; by default 1 each.
        pattern: Regular expression that the whole answer has to fit, for the reward `format`.
    """

    rewards: tuple[str, ...] = ("exact_match",)
    num_generations: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    beta: float = 0.0
    weights: tuple[float, ...] | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if not self.rewards or (self.weights is not None and len(self.weights) != len(self.rewards)):
            raise RecipeError(
                f"`reward` has the rewards {list(self.rewards)} and the weights {self.weights}; expected at least one "
                "reward, and a weight for each or none at all."
            )
        if self.num_generations < 2 or self.max_completion_length < 1 or self.temperature <= 0 or self.beta < 0:
            raise RecipeError(
                f"`reward` has num_generations {self.num_generations}, max_completion_length "
                f"{self.max_completion_length}, temperature {self.temperature}, beta {self.beta}; expected at least "
                "2 answers to compare, a positive length and temperature, and a beta of at least 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedSection:
    """How the model lies on several processes. By default every process holds a copy (DDP).

    FSDP2 on accelerators comes from the launcher: `accelerate launch --config_file recipes/accelerate/….yaml`.

    Attributes:
        fsdp_size: Processes that share one copy of the model, divided by transformers itself while loading.
    """

    fsdp_size: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSection:
    """Answers that are generated during the run, to be looked at.

    Attributes:
        steps: Every so many steps.
        prompts: Questions; each has at most one picture.
        max_new_tokens: Longest answer.
    """

    steps: int
    prompts: tuple["SamplePrompt", ...]
    max_new_tokens: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePrompt:
    """One question.

    Attributes:
        text: The question.
        image: Path of its picture.
    """

    text: str
    image: str | None = None

    def __post_init__(self) -> None:
        """Find the home directory."""
        _expand_home(self, "image")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutSection:
    """Data that are never trained on.

    Attributes:
        data: Data sets whose loss is measured.
        steps: Every so many steps, and at the end.
        max_records: Records of each data set that are used, the first ones.
    """

    data: tuple[DataSection, ...]
    steps: int
    max_records: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSection:
    """Where results go.

    Attributes:
        dir: Directory of the run.
        save_steps: A checkpoint every so many steps; `None` saves at the end only.
        keep: Complete checkpoints that are kept.
        log_steps: A line of metrics every so many steps.
        report_to: Where metrics are shown.
        samples: Answers that are generated during the run.
        merge_lora: Whether `final/` holds merged weights rather than adapters.
        push_to_hub: Whether `final/` is pushed when the run ends; private unless `hub_public`.
        hub_id: Repository `owner/name`.
        hub_public: Whether the repository is public.
    """

    dir: str
    save_steps: int | None = None
    keep: int = 2
    log_steps: int = 10
    report_to: tuple[Literal["tensorboard", "trackio", "wandb", "none"], ...] = ("tensorboard",)
    samples: SampleSection | None = None
    merge_lora: bool = True
    push_to_hub: bool = False
    hub_id: str | None = None
    hub_public: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        _expand_home(self, "dir")
        if self.push_to_hub and not self.hub_id:
            raise RecipeError("`output: push_to_hub` is set without `hub_id`; name the repository `owner/name`.")
        if self.keep < 1 or self.log_steps < 1 or (self.save_steps is not None and self.save_steps < 1):
            raise RecipeError(
                f"`output` has keep {self.keep}, log_steps {self.log_steps}, save_steps {self.save_steps}; each is "
                "at least 1."
            )
