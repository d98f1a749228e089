"""Adapters (PEFT, such as LoRA) wherever a checkpoint is read: found, and merged into the model they belong to."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checkpoint_config import CONFIG_NAME, check_model_type, read_json_object, reading_checkpoint
from .errors import XGenMMError

ADAPTER_CONFIG = "adapter_config.json"
# An adapter trained on a merged adapter names that one as its base, and so on.
_LONGEST_CHAIN = 8


def adapter_base(source: str | os.PathLike[str], *, revision: str | None = None) -> str | None:
    """What an adapter was trained on; `None` if `source` is a whole checkpoint.

    Args:
        source: Directory or Hub id.
        revision: Commit, branch or tag on the Hub.

    Raises:
        XGenMMError: If the adapter names nothing, or a directory that is not here.
        OSError: If the Hub does not give the file.
    """
    path = _find(source, ADAPTER_CONFIG, revision=revision)
    if path is None:
        return None
    base = read_adapter_config(path.parent).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise XGenMMError(
            f"`{path}` has `base_model_name_or_path` {base!r}; write there the directory or Hub id of the model that "
            "the adapter was trained on."
        )
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    if not Path(base).is_dir() and not is_hub_id:
        raise _missing_base(path, base)
    return base


def read_adapter_config(source: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """Settings of an adapter; empty if `source` is a whole checkpoint.

    Args:
        source: Directory or Hub id.
        revision: Commit, branch or tag on the Hub.

    Raises:
        XGenMMError: If the file holds no JSON object.
        OSError: If the Hub does not give it.
    """
    path = _find(source, ADAPTER_CONFIG, revision=revision)
    return {} if path is None else read_json_object(path)


def whole_checkpoint(source: str | os.PathLike[str], *, revision: str | None = None) -> tuple[str, str | None]:
    """The checkpoint with a `config.json` that a source stands for: itself, or the base below its adapters.

    Args:
        source: Directory or Hub id of a checkpoint or of an adapter.
        revision: Commit, branch or tag of `source` on the Hub.

    Returns:
        Directory or Hub id, and its revision: that of `source` if it is whole, else `None`.

    Raises:
        XGenMMError: If the base of an adapter is missing, is no xGen-MM model, or lies below itself.
    """
    chain = _chain(source, revision=revision)
    base = chain[-1]
    base_revision = revision if len(chain) == 1 else None
    if len(chain) > 1 and not _is_here(base, CONFIG_NAME):
        raise _missing_base(Path(chain[-2], ADAPTER_CONFIG), base)
    check_model_type(base, revision=base_revision)
    return base, base_revision


def load_merged_model(source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Any:
    """Model of a checkpoint, or of an adapter with its change in the weights of its base.

    An adapter's model cuts images as the processor beside the adapter does, if there is one.

    Args:
        source: Directory or Hub id of a checkpoint in any layout, or of an adapter.
        revision: Commit, branch or tag on the Hub.
        **options: Arguments of `from_pretrained`. Quantized or divided weights take no adapter.

    Raises:
        XGenMMError: If it is damaged or of another architecture, an adapter's base is missing, or `peft` is.
        OSError: If something cannot be read.
    """
    from transformers import AutoModelForImageTextToText

    chain = _chain(source, revision=revision)
    base, base_revision = whole_checkpoint(source, revision=revision)
    with reading_checkpoint(base):
        model = AutoModelForImageTextToText.from_pretrained(
            base, revision=base_revision, trust_remote_code=False, **options
        )
    for adapter in reversed(chain[:-1]):
        own_revision = revision if adapter == str(source) else None
        with reading_checkpoint(adapter):
            model = merge_adapter(model, adapter, revision=own_revision)
            _cut_images_alike(model, adapter, revision=own_revision)
        # What is trained on the merged model belongs to it, and not to the base alone.
        model.name_or_path = adapter
    return model


def load_merged_processor(source: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Processor of a checkpoint; of an adapter its own one, and without one that of its base.

    Args:
        source: Directory or Hub id of a checkpoint or of an adapter.
        revision: Commit, branch or tag on the Hub.

    Raises:
        XGenMMError: If its files are damaged, or an adapter's base is missing.
        OSError: If something cannot be read.
    """
    from transformers import AutoProcessor

    chain = _chain(source, revision=revision)
    revisions = [revision, *(None for _ in chain[1:])]
    places = list(zip(chain, revisions, strict=True))
    place, at = next((found for found in places[:-1] if _has_processor(*found)), places[-1])
    with reading_checkpoint(place):
        return AutoProcessor.from_pretrained(place, revision=at, trust_remote_code=False)


def merge_adapter(model: Any, adapter: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """The model with the adapter's change in its own weights.

    Args:
        model: The model the adapter was trained on, in full precision weights.
        adapter: Directory or Hub id of the adapter.
        revision: Commit, branch or tag of the adapter on the Hub.

    Raises:
        XGenMMError: If `peft` is missing.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise XGenMMError(
            f"`{adapter}` is an adapter, and merging it needs `peft`: pip install 'xgen-mm[train]'."
        ) from error
    adapted = PeftModel.from_pretrained(model, adapter, revision=revision)
    warn_if_language_model_is_left_out(adapted)
    return adapted.merge_and_unload(safe_merge=True)


def warn_if_language_model_is_left_out(model: Any) -> None:
    """Warn if a model has adapters and none in its language model, which `target_modules` of other models leads to.

    PEFT takes names that match anything at all: `q_proj` and `v_proj` are layers of the vision tower, while Phi-3 has
    one `qkv_proj`. Call it on what `get_peft_model` returns. A pattern names its part on purpose and is not warned of.

    Args:
        model: A `PeftModel`, or a model with `add_adapter`.
    """
    adapted = {name.rpartition(".lora_")[0] for name, _ in model.named_modules() if ".lora_" in name}
    is_pattern = any(isinstance(config.target_modules, str) for config in getattr(model, "peft_config", {}).values())
    if is_pattern or not adapted or any("language_model." in name for name in adapted):
        return
    names = _linear_names(name for name, module in model.named_modules() if hasattr(module, "in_features"))
    where = sorted({part for part in ("vision_tower", "resampler") for name in adapted if f"{part}." in name})
    warnings.warn(
        f"The adapters are in {' and '.join(f'`{part}`' for part in where) or 'other parts'} only: `target_modules` "
        f"matches no layer of the language model, whose linear layers are called {', '.join(names)}. For adapters "
        rf"there, use `target_modules=r'.*language_model\.layers\..*\.({'|'.join(names)})'`.",
        UserWarning,
        stacklevel=2,
    )


def _linear_names(names: Iterable[str]) -> list[str]:
    inner = (name.removesuffix(".base_layer") for name in names if "language_model.layers." in name)
    return sorted({name.rpartition(".")[2] for name in inner})


def _chain(source: str | os.PathLike[str], *, revision: str | None) -> list[str]:
    """The source, what it was trained on, and so on down to a whole checkpoint."""
    chain = [str(source)]
    base = adapter_base(source, revision=revision)
    while base is not None:
        seen = {os.path.realpath(place) for place in chain}
        if os.path.realpath(base) in seen or len(chain) > _LONGEST_CHAIN:
            raise XGenMMError(
                f"`{source}` is an adapter whose bases lead to no whole model: {' -> '.join([*chain, base])}. Write "
                f"the model that it was trained on into `base_model_name_or_path` of its `{ADAPTER_CONFIG}`."
            )
        chain.append(base)
        base = adapter_base(base) if _is_here(base, ADAPTER_CONFIG) else None
    return chain


def _missing_base(path: Path, base: str) -> XGenMMError:
    return XGenMMError(
        f"`{path}` names the base model `{base}`, which is not here and cannot be fetched; get it, or write its "
        "directory or Hub id into `base_model_name_or_path`."
    )


def _is_here(base: str, name: str) -> bool:
    """Whether a base has a file; what an adapter names need not be anything at all."""
    try:
        return _find(base, name, revision=None) is not None
    except (OSError, ValueError):
        return False


def _has_processor(source: str, revision: str | None) -> bool:
    names = ("processor_config.json", "preprocessor_config.json")
    return any(_find(source, name, revision=revision) for name in names)


def _cut_images_alike(model: Any, adapter: str, *, revision: str | None) -> None:
    """Set the canvases that an adapter was trained with, which its base's configuration does not know."""
    if _has_processor(adapter, revision):
        image_processor = load_merged_processor(adapter, revision=revision).image_processor
        canvases = getattr(image_processor, "image_grid_pinpoints", None)
        if canvases:
            model.config.image_grid_pinpoints = [list(canvas) for canvas in canvases]


def _find(source: str | os.PathLike[str], name: str, *, revision: str | None) -> Path | None:
    path = Path(source)
    if path.is_file():
        return None
    if path.is_dir():
        return path / name if (path / name).is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
