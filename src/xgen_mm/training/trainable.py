"""Which weights a run changes: frozen parts, adapters, and the precision they are kept in."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .recipe import Recipe
from .recipe_sections import LoraSection, Part, RecipeError

ALL_LINEARS = "language_model"


def prepare_model(recipe: Recipe, model: Any) -> Any:
    """Freeze what the recipe does not train, and add adapters if it asks for them.

    Args:
        recipe: The run.
        model: `XGenMMForConditionalGeneration`.

    Returns:
        The model, or a `PeftModel` around it.
    """
    section = recipe.model
    set_trainable(model, section.trainable)
    if section.gradient_checkpointing:
        # Adapters on a frozen embedding need a differentiable input; without reentrance nothing else does.
        model.config.use_cache = False
    if section.lora is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if section.quantization is not None:
        # Norms in single precision; the other parts are trained as the recipe says, which PEFT sees to below.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, lora_config(section.lora, model, trainable=section.trainable))


@contextmanager
def kept_precision(model: nn.Module) -> Iterator[None]:
    """Trained weights come out as they went in, whatever precision was given to them inside.

    TRL's trainers round all trained weights of a quantised model to bfloat16 when they are built: adapters, and whole
    parts beside them too, whose frozen neighbours stay in float32.

    Args:
        model: Prepared model, around which a trainer is built.
    """
    trained = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    yield
    for weight, before in trained:
        if weight.dtype != before.dtype:
            weight.data = before.to(weight.device)


def set_trainable(model: Any, parts: Sequence[Part]) -> None:
    """Let the weights of some parts change, and freeze all others.

    Args:
        model: `XGenMMForConditionalGeneration`. Its output layer belongs to the language model.
        parts: Parts that are trained.
    """
    model.requires_grad_(False)
    for part in parts:
        getattr(model.model, part).requires_grad_(True)
    if "language_model" in parts:
        model.lm_head.requires_grad_(True)


def lora_config(section: LoraSection, model: Any, *, trainable: Sequence[Part] = ()) -> Any:
    """PEFT's configuration of the adapters.

    Args:
        section: Rank, scale, dropout and layers.
        model: The model they are for.
        trainable: Other parts whose weights are trained and saved with the adapter.

    Raises:
        RecipeError: If a layer is named that the language model does not have.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=lora_targets(section.targets, model),
        modules_to_save=list(trainable) or None,
        task_type="CAUSAL_LM",
    )


def lora_targets(targets: Sequence[str], model: Any) -> str:
    """Pattern of the full names of the layers that get adapters: linear layers of the language model's blocks only.

    PEFT's own `all-linear` reaches the vision tower and the resampler too.

    Args:
        targets: Names of layers; `language_model` stands for all linear ones.
        model: The model.

    Raises:
        RecipeError: If a name is unknown.
    """
    linears = linear_names(model.model.language_model)
    names = linears if list(targets) == [ALL_LINEARS] else sorted(set(targets))
    unknown = sorted(set(names) - set(linears))
    if unknown or not names:
        raise RecipeError(
            f"`model: lora: targets` names {unknown or 'nothing'}; this language model has the linear layers "
            f"{linears}, and `{ALL_LINEARS}` stands for all of them."
        )
    return rf".*\blanguage_model\.layers\.\d+\..*\b(?:{'|'.join(map(re.escape, names))})"


def linear_names(language_model: nn.Module) -> list[str]:
    """Last names of the linear layers in the blocks of a language model, such as `qkv_proj`."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in language_model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith("layers.")
        }
    )
