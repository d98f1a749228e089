"""The recipe of the small model: frozen sections, read from one YAML file."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import XGenMMError
from ..sections import parse_section, read_yaml


class TinyRecipeError(XGenMMError):
    """The recipe contradicts itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """Sizes of the model; see `xgen_mm.tiny.architecture.build_config`."""

    tile_size: int = 84
    patch_size: int = 12
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp: int = 384
    num_latents: int = 8
    resampler_layers: int = 2
    resampler_heads: int = 4
    text_width: int = 192
    text_layers: int = 6
    text_heads: int = 6
    text_mlp: int = 512
    max_positions: int = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimRecipe:
    """Optimiser and schedule of one stage: linear warm-up, then cosine down to `final_fraction` of the step sizes."""

    muon_learning_rate: float
    adam_learning_rate: float
    final_fraction: float
    warmup_steps: int
    adam_beta2: float = 0.98
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.997


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicPhase:
    """Steps of the tower stage with one range of digit heights, as shares of the tile."""

    steps: int
    scale: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class JointPhase:
    """Steps of the joint stage with one mix of samples.

    Attributes:
        steps: How many optimiser steps.
        image_weights: Probability that the samples of a step have 1, 2, 3, 4 pictures.
        single_lengths: Probability of 1-5 digits in single pictures.
        set_lengths: Probability of 1-5 digits in sets of pictures.
        text_rows: Text-only comparisons per process and step.
    """

    steps: int
    image_weights: tuple[float, ...]
    single_lengths: tuple[float, ...]
    set_lengths: tuple[float, ...]
    text_rows: int

    def __post_init__(self) -> None:
        """Check that weights are probabilities."""
        for name in ("image_weights", "single_lengths", "set_lengths"):
            weights = getattr(self, name)
            if abs(sum(weights) - 1) > 1e-6 or min(weights) < 0:
                raise TinyRecipeError(f"`{name}` is {list(weights)}; give probabilities that sum to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerRecipe:
    """The tower stage: the vision tower alone learns to name the digit under every patch."""

    tiles_per_process: int
    optim: OptimRecipe
    phases: tuple[MosaicPhase, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class JointRecipe:
    """The joint stage: the whole model learns to answer questions."""

    tiles_per_process: int
    patch_loss_weight: tuple[float, float]
    optim: OptimRecipe
    phases: tuple[JointPhase, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyRecipe:
    """Everything a run depends on besides the digits."""

    seed: int
    num_processes: int
    held_out_digits: int
    model: ModelRecipe
    tower: TowerRecipe
    joint: JointRecipe


def load_recipe(path: Path) -> TinyRecipe:
    """Read and check a recipe.

    Raises:
        SectionError: If a key is unknown or missing, or a value has the wrong type.
        TinyRecipeError: If values contradict one another.
    """
    return parse_section(TinyRecipe, read_yaml(path), where=path.name)
