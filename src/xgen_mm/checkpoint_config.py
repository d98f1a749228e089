"""Looks at a checkpoint's `config.json` as plain JSON, before any library decides what to load for it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import XGenMMError

CONFIG_NAME = "config.json"
# What `config.json` of a checkpoint may say: our own two families, and the first release.
MODEL_TYPES = ("xgenmm", "xgenmm_v1", "blip_3")
# Sizes that make up a model, with the largest that anybody could mean; none is below 1.
SIZES = dict.fromkeys(
    ("hidden_size", "intermediate_size", "vocab_size", "image_size", "patch_size", "num_latents", "head_dim"), 10**7
) | dict.fromkeys(("num_hidden_layers", "num_layers", "num_attention_heads", "num_key_value_heads", "num_heads"), 4096)
# The same for BLIP3-o, which few commands take.
BLIP3O_MODEL_TYPES = ("blip3o", "blip3o_qwen", "blip3o_qwen_inference")


def check_model_type(
    source: str | os.PathLike[str], *, revision: str | None = None, known: tuple[str, ...] = MODEL_TYPES
) -> None:
    """Refuse a checkpoint of another architecture; one without a `config.json` passes.

    Args:
        source: Directory, path of a `config.json`, or Hub id.
        revision: Commit, branch or tag on the Hub.
        known: Model types that pass.

    Raises:
        XGenMMError: If the file is no JSON object, or its `model_type` is none of the known ones.
        OSError: If the Hub does not give the file.
    """
    path = _find_config(source, revision=revision)
    if path is None:
        return
    content = read_json_object(path)
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or not (model_type in known or _is_registered_subclass(model_type)):
        names = ", ".join(f"`{name}`" for name in known)
        said = f"is a `{model_type}` model" if isinstance(model_type, str) else f"has the `model_type` {model_type!r}"
        raise XGenMMError(
            f"`{path}` {said}; expected an xGen-MM checkpoint (`model_type` {names}). Code that a checkpoint brings "
            "along is never run."
        )
    _check_sizes(content, path=path, where="")


@contextmanager
def reading_checkpoint(source: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a damaged checkpoint makes libraries raise into one error that names it.

    Args:
        source: Directory or Hub id of what is read in the block.

    Raises:
        XGenMMError: Instead of any error but those of this package, of the file system and of full memory.
    """
    try:
        yield
    except (XGenMMError, OSError, MemoryError):
        raise
    except Exception as error:
        # PyTorch's own error is none of Python's.
        if type(error).__name__ == "OutOfMemoryError" or isinstance(error, ImportError):
            raise
        lines = " ".join(str(error).split()).rstrip(".")
        raise XGenMMError(
            f"`{source}` cannot be loaded: {lines or type(error).__name__}. Its files are damaged or do not belong "
            "together; copy or download them again."
        ) from error


def load_config(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    known: tuple[str, ...] = MODEL_TYPES,
    **arguments: Any,
) -> Any:
    """Configuration of an xGen-MM checkpoint.

    Args:
        source: Directory, path of a `config.json`, or Hub id.
        revision: Commit, branch or tag on the Hub.
        known: Values of `model_type` that are taken.
        **arguments: Further arguments of `AutoConfig.from_pretrained`.

    Raises:
        XGenMMError: If it is damaged or that of another architecture.
        OSError: If it is not there.
    """
    from transformers import AutoConfig

    check_model_type(source, revision=revision, known=known)
    with reading_checkpoint(source):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **arguments)


def read_json_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file that has to hold an object.

    Raises:
        XGenMMError: If it cannot be read, is no JSON, or something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise XGenMMError(f"`{path}` cannot be read as JSON ({reason}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise XGenMMError(f"`{path}` holds a JSON {type(content).__name__}; expected an object. Was it cut off?")
    return content


def _check_sizes(content: Mapping[str, Any], *, path: Path, where: str) -> None:
    for name, value in content.items():
        if isinstance(value, Mapping) and name.endswith("config"):
            _check_sizes(value, path=path, where=f"{where}{name}.")
        elif name.endswith("_config") and not isinstance(value, Mapping | None):
            raise XGenMMError(
                f"`{path}` has `{where}{name}` {value!r}; expected an object. Copy or download it again."
            )
        elif name in SIZES and value is not None:
            for side in value if isinstance(value, list) and value else [value]:
                if type(side) is not int or not 1 <= side <= SIZES[name]:
                    raise XGenMMError(
                        f"`{path}` has `{where}{name}` {value!r}; expected a whole number of 1 to {SIZES[name]:,}. "
                        "Correct it, or copy or download the file again."
                    )


def _is_registered_subclass(model_type: str) -> bool:
    """Whether the running program itself has registered a configuration derived from ours under this name."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING and any(
        base.__name__ == "XGenMMConfig" for base in CONFIG_MAPPING[model_type].__mro__
    )


def _find_config(source: str | os.PathLike[str], *, revision: str | None) -> Path | None:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return path / CONFIG_NAME if (path / CONFIG_NAME).is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(str(source), CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
