"""The two pretrained parts of a new model: read, checked and loaded from whatever transformers can load them from."""

import copy
import os
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from .configuration_xgen_mm import TOWERS_WITH_POOLING_HEAD

PartSource: TypeAlias = str | os.PathLike[str] | PreTrainedModel

# What some language models do to their logits after the output layer; our model has the output layer alone.
LOGIT_SETTINGS: dict[str, tuple[float | None, ...]] = {
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "lm_head_multiplier": (None, 1.0),
}
# Bookkeeping of a part's own checkpoint that would mislead inside a new one.
_STALE_FIELDS = ("auto_map", "architectures", "transformers_version", "torch_dtype")


def read_vision_config(source: PartSource) -> PreTrainedConfig:
    """Configuration of the vision tower in a checkpoint.

    Args:
        source: Hub id, directory or loaded model; a dual encoder (CLIP, SigLIP) counts as its vision half.

    Returns:
        A copy, without the SigLIP pooling head.

    Raises:
        ValueError: If there is no tower that takes square tiles of one fixed size.
        OSError: If the source cannot be read.
    """
    config = _read_config(source)
    config = getattr(config, "vision_config", None) or config
    name = f"The vision tower of `{describe_source(source)}` (`{config.model_type}`)"
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"{name} is not one that `AutoModel` can build. Take a CLIP, SigLIP or similar checkpoint.")
    _check_vision_config(config, name)
    config = _without_bookkeeping(config)
    if config.model_type in TOWERS_WITH_POOLING_HEAD:
        config.vision_use_head = False
    return config


def read_text_config(source: PartSource) -> PreTrainedConfig:
    """Configuration of the language model in a checkpoint.

    Args:
        source: Hub id, directory or loaded model.

    Returns:
        A copy.

    Raises:
        ValueError: If it is not a plain decoder-only language model whose logits come straight from the output layer.
        OSError: If the source cannot be read.
    """
    config = _read_config(source)
    name = f"The language model `{describe_source(source)}` (`{config.model_type}`)"
    cannot_load = f"{name} cannot be loaded by `AutoModelForCausalLM`. Take a decoder-only language model."
    if config.is_encoder_decoder:
        raise ValueError(cannot_load)
    if config.get_text_config(decoder=True) is not config:
        raise ValueError(
            f"{name} is made of several models itself; `text` must be a language model alone. Take its text-only "
            "sibling, or load it and pass its language model."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_MAPPING:
        raise ValueError(cannot_load)
    changed = {key: getattr(config, key, None) for key in LOGIT_SETTINGS}
    changed = {key: value for key, value in changed.items() if value not in LOGIT_SETTINGS[key]}
    if changed:
        settings = ", ".join(f"`{key}={value}`" for key, value in changed.items())
        raise ValueError(
            f"{name} changes its logits after the output layer ({settings}), which xGen-MM does not. Take a language "
            "model whose logits come straight from the output layer."
        )
    return _without_bookkeeping(config)


def load_vision_tower(source: PartSource, *, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """Load the vision tower of a checkpoint, or find it in a loaded model.

    Args:
        source: Hub id, directory or loaded model.
        dtype: Precision to load in; `"auto"` is that of the weights. A loaded model keeps its own.

    Returns:
        The tower; it may have a pooling head.

    Raises:
        ValueError: If the tower is unsuitable or some of its weights are missing.
        OSError: If the source cannot be read.
    """
    tower_class = MODEL_MAPPING[type(read_vision_config(source))]
    if isinstance(source, PreTrainedModel):
        model, missing = source, set()
    else:
        model, info = AutoModel.from_pretrained(source, dtype=dtype, trust_remote_code=False, output_loading_info=True)
        missing = set(info["missing_keys"])
    name = describe_source(source)
    found = next(((prefix, module) for prefix, module in model.named_modules() if type(module) is tower_class), None)
    if found is None:
        raise ValueError(f"`{name}` is a `{type(model).__name__}` without a `{tower_class.__name__}`; pass the tower.")
    prefix, tower = found
    inside = f"{prefix}." if prefix else ""
    missing = {key for key in missing if key.startswith(inside)}
    if tower.config.model_type in TOWERS_WITH_POOLING_HEAD:
        # SigLIP's pooling head may be missing: it is left out anyway.
        missing = {key for key in missing if not key.startswith(f"{inside}head.")}
    _check_weights(tower, missing, name)
    return tower


def load_language_model(source: PartSource, *, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """Load a causal language model, or check a loaded one.

    Args:
        source: Hub id, directory or loaded model.
        dtype: Precision to load in; `"auto"` is that of the weights. A loaded model keeps its own.

    Returns:
        The model with its output layer.

    Raises:
        ValueError: If the model is unsuitable or some of its weights are missing.
        OSError: If the source cannot be read.
    """
    config = read_text_config(source)
    if isinstance(source, PreTrainedModel):
        model, missing = source, set()
    else:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        missing = set(info["missing_keys"])
    name = describe_source(source)
    _check_weights(model, missing, name)
    base, head = model.base_model, model.get_output_embeddings()
    if type(base) is not MODEL_MAPPING[type(config)] or not isinstance(head, nn.Linear):
        raise ValueError(
            f"`{name}` is a `{type(model).__name__}`; expected a model with an output layer on top, as "
            "`AutoModelForCausalLM.from_pretrained` gives."
        )
    width = model.get_input_embeddings().weight.shape[1]
    if width != config.hidden_size:
        raise ValueError(
            f"`{name}` has embeddings of width {width} but hidden states of width {config.hidden_size}; xGen-MM puts "
            "image tokens where embeddings go, so both must be equal."
        )
    if is_tied(model) and getattr(base, "embed_tokens", None) is not model.get_input_embeddings():
        raise ValueError(
            f"`{name}` shares its embedding table with the output layer under a name other than `embed_tokens`, which "
            "xGen-MM cannot save. Take another language model."
        )
    return model


def is_tied(language_model: PreTrainedModel) -> bool:
    """Whether the output layer is the embedding table."""
    return language_model.get_output_embeddings().weight is language_model.get_input_embeddings().weight


def describe_source(source: PartSource) -> str:
    """What to call a part in messages: its name, or the class of a loaded model without one."""
    if isinstance(source, PreTrainedModel):
        return source.config._name_or_path or type(source).__name__
    return os.fspath(source)


def _read_config(source: PartSource) -> PreTrainedConfig:
    if isinstance(source, PreTrainedModel):
        return source.config
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`{describe_source(source)}` has no configuration that transformers knows by itself ({error}). Code from "
            "a checkpoint is never run; take one of an architecture that transformers has."
        ) from error


def _check_vision_config(config: PreTrainedConfig, name: str) -> None:
    if config.model_type == "siglip2_vision_model":
        raise ValueError(
            f"{name} is a NaFlex one: it takes patches of pictures of any shape, not tiles. Take a SigLIP 2 "
            "checkpoint with a fixed resolution, such as `google/siglip2-so400m-patch14-384`."
        )
    for field in ("image_size", "patch_size"):
        value = getattr(config, field, None)
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name} has `{field}={value}`; expected one whole number. Tiles are square and of one size, so "
                "take a tower with a fixed, square input."
            )
    if config.patch_size > config.image_size:
        raise ValueError(
            f"{name} has patches of {config.patch_size} pixels on tiles of {config.image_size}; none fits on a tile."
        )
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise ValueError(
            f"{name} has no single `hidden_size`: its layers differ in width. Take a vision transformer that keeps "
            "one width and one feature per patch."
        )
    num_channels = getattr(config, "num_channels", 3)
    if num_channels != 3:
        raise ValueError(f"{name} has `num_channels={num_channels}`; tiles have 3 channels (red, green, blue).")


def _check_weights(model: nn.Module, missing: set[str], name: str) -> None:
    if missing:
        raise ValueError(
            f"`{name}` lacks {len(missing)} weights of `{type(model).__name__}` (first: {sorted(missing)[:3]}); a new "
            "model is built from complete parts only. Check that the checkpoint is whole."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"`{name}` is not in memory (offloaded or on the meta device); load it without `device_map`.")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"`{name}` is quantized; build from full-precision weights and quantize the result.")


def _without_bookkeeping(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    for field in _STALE_FIELDS:
        _forget(config, field)
    config._name_or_path = ""
    return config


def _forget(config: Any, field: str) -> None:
    if field in vars(config):
        # Declared fields must keep existing; others vanish.
        if field in type(config).__dataclass_fields__:
            setattr(config, field, None)
        else:
            delattr(config, field)
