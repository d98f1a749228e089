"""Facts a training run leaves in its directory, for its card. What is not there is left out.

| file | gives |
|---|---|
| `config.json` and weights | parts, number of parameters |
| `adapter_config.json` | base model, size and place of a PEFT adapter |
| `trainer_state.json` | steps, epochs, last losses and evaluation figures |
| `training_args.json` | hyper-parameters (transformers' own `training_args.bin` is a pickle and is not opened) |
| `resolved_recipe.yaml` | the recipe's name |
| `results.json` of `xgen-mm evaluate`, here, in `evaluation/`, or in `../evaluation/NAME/` | tables of figures |
| `card.yaml` | anything else: fields of `CardFacts` |
"""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..auto import FAMILIES
from ..checkpoint_config import check_model_type, read_json_object
from ..errors import XGenMMError
from ..sections import read_yaml
from ..weight_files import INDEX_NAME, SINGLE_NAME, read_raw_header, weight_files
from .card_facts import CardError, Scalar
from .card_results import facts_of_results, find_results

CONFIG, ADAPTER, STATE, ARGUMENTS, RECIPE, OWN = (
    "config.json",
    "adapter_config.json",
    "trainer_state.json",
    "training_args.json",
    "resolved_recipe.yaml",
    "card.yaml",
)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Hyper-parameters worth a line, by the host's names.
KNOWN_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "max_length",
    "beta",
    "loss_type",
    "label_smoothing_factor",
    "seed",
)
# Speed is of the machine, not of the model.
_SPEED = re.compile(r"runtime|per_second|_flos|_time$")


def facts_of_directory(directory: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of `CardFacts` for a directory.

    Args:
        directory: Holds `config.json` or `adapter_config.json`.
        given: Facts that go before everything else; `training_args` may be the host's object or a mapping.

    Raises:
        CardError: If it is no checkpoint directory, or a file cannot be read.
    """
    if not any((directory / name).is_file() for name in (CONFIG, ADAPTER)):
        raise CardError(f"`{directory}` holds neither `{CONFIG}` nor `{ADAPTER}`; give the directory of a checkpoint.")
    given = dict(given)
    arguments = given.pop("training_args", None)
    name = directory.resolve().name
    facts: dict[str, Any] = {"name": name, "title": name, "status": "trained", "languages": []}
    layers = [_from_config(directory), _from_adapter(directory), _from_run(directory, arguments)]
    results = find_results(directory)
    if results is not None:
        layers.append(facts_of_results(results))
    if (directory / OWN).is_file():
        layers.append(read_yaml(directory / OWN))
    for layer in [*layers, given]:
        facts = _merge(facts, layer)
    facts.setdefault("summary", _summary(facts))
    return facts


def _from_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file():
        return {}
    from transformers import AutoConfig

    check_model_type(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CardError(f"`{directory / CONFIG}` cannot be read: {' '.join(str(error).split())}") from error
    if config.model_type not in [family.model_type for family in FAMILIES if family.is_xgen_mm]:
        raise CardError(f"`{directory / CONFIG}` is of a `{config.model_type}` model; expected an xGen-MM checkpoint.")
    vision, resampler, text = config.vision_config, config.resampler_config, config.text_config
    parts: dict[str, Scalar] = {
        "Vision tower": f"{_layers(vision)}, {config.tile_size}-pixel tiles, patches of {vision.patch_size} pixels",
        "Connector": f"{_layers(resampler)}, {config.tokens_per_group} tokens per tile",
        "Language model": f"{_layers(text)}, {text.max_position_embeddings:,} tokens of context",
    }
    num_parameters = _count_parameters(directory)
    if num_parameters:
        parts["Parameters"] = f"{num_parameters:,}"
    return {"parts": parts}


def _layers(config: Any) -> str:
    layers = f"{config.num_hidden_layers} layers of " if hasattr(config, "num_hidden_layers") else ""
    return f"{config.model_type}, {layers}width {config.hidden_size}"


def _count_parameters(directory: Path) -> int:
    """Parameters stored in the weight files; 0 if there are none."""
    if not any((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME)):
        return 0
    headers = [read_raw_header(directory / name).entries for name in weight_files(directory)]
    return sum(math.prod(entry["shape"]) for entries in headers for key, entry in entries.items() if key[:2] != "__")


def _from_adapter(directory: Path) -> dict[str, Any]:
    if not (directory / ADAPTER).is_file():
        return {}
    adapter = _read_json(directory / ADAPTER)
    kind = str(adapter.get("peft_type", "PEFT"))
    named = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    settings = {f"{kind} {name}": adapter[key] for name, key in named.items() if adapter.get(key) is not None}
    targets = adapter.get("target_modules")
    if targets:
        if not isinstance(targets, str | list):
            raise CardError(f"`{directory / ADAPTER}` has `target_modules` {targets!r}; expected names or a pattern.")
        settings[f"{kind} modules"] = targets if isinstance(targets, str) else ", ".join(sorted(map(str, targets)))
        _check_adapted_parts(directory, targets)
    facts: dict[str, Any] = {"library": "peft", "tags": [kind.lower()], "training": {"settings": settings}}
    base = adapter.get("base_model_name_or_path")
    if isinstance(base, str) and HUB_ID.fullmatch(base) and not Path(base).exists():
        usage = {"kind": "adapter"}
        return facts | {"base_models": [base], "base_relation": "adapter", "usage": usage}
    # A path of the training machine says nothing to others and may say too much.
    note = "These are adapter weights. The base model they belong to is not recorded here by a name on the Hub."
    return facts | {"usage": {"kind": "none", "note": note}}


def _check_adapted_parts(directory: Path, targets: str | list[Any]) -> None:
    """Warn of adapters that names of layers put everywhere but into the language model."""
    path = directory / ADAPTER_WEIGHTS
    if isinstance(targets, str) or not path.is_file():
        return
    names = read_raw_header(path).entries
    if any("vision_tower." in name for name in names) and not any("language_model." in name for name in names):
        warnings.warn(
            f"`{path}` holds nothing for the language model: `target_modules` {sorted(map(str, targets))} matched "
            "other parts only. `xgen-mm info` names the base; its language model has layers of other names.",
            UserWarning,
            stacklevel=2,
        )


def _from_run(directory: Path, arguments: Any) -> dict[str, Any]:
    training: dict[str, Any] = {"settings": {}, "measured": {}}
    if (directory / RECIPE).is_file():
        training["recipe"] = RECIPE
    if (directory / ARGUMENTS).is_file():
        training["settings"] |= _settings(_read_json(directory / ARGUMENTS))
    if arguments is not None:
        training["settings"] |= _settings(arguments if isinstance(arguments, Mapping) else arguments.to_dict())
    if (directory / STATE).is_file():
        state = _read_json(directory / STATE)
        steps = {"optimiser steps": state.get("global_step"), "epochs run": _rounded(state.get("epoch"))}
        training["settings"] |= {name: value for name, value in steps.items() if value}
        training["measured"] = _last_values(state.get("log_history", []))
    return {"training": training} if training.keys() - {"settings", "measured"} or any(training.values()) else {}


def _settings(arguments: Mapping[str, Any]) -> dict[str, Scalar]:
    """Hyper-parameters that were set; -1, `None` and `False` mean that they were not."""
    values = {name: arguments.get(name) for name in KNOWN_ARGUMENTS}
    values = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    kept = {
        name: value
        for name, value in values.items()
        if isinstance(value, Scalar) and value is not False and value != -1
    }
    return {name.replace("_", " "): _rounded(value) for name, value in kept.items()}


def _last_values(history: list[dict[str, Any]]) -> dict[str, Scalar]:
    """Last logged value of the loss and of every evaluation figure, with the step it belongs to."""
    last: dict[str, Scalar] = {}
    for entry in history:
        for name, value in entry.items():
            is_figure = name in ("loss", "train_loss") or name.startswith("eval_")
            if is_figure and isinstance(value, int | float) and not _SPEED.search(name):
                last[name] = f"{_rounded(value)} (step {entry.get('step', '?')})"
    return last


def _rounded(value: Any) -> Any:
    """At most six digits of a float."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _summary(facts: Mapping[str, Any]) -> str:
    bases = facts.get("base_models") or []
    kind = "Adapter weights" if facts.get("base_relation") == "adapter" else "An xGen-MM checkpoint"
    return f"{kind} trained from {', '.join(bases)}." if bases else f"{kind}."


def _merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `upper` go before those of `lower`; mappings are merged, everything else is replaced."""
    merged = dict(lower)
    for name, value in upper.items():
        is_nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if is_nested else value
    return merged


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except XGenMMError as error:
        raise CardError(str(error)) from error
