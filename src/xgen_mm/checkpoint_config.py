"""Looks at a checkpoint's `config.json` as plain JSON, before any library decides what to load for it."""

import json
import os
from pathlib import Path
from typing import Any

from .errors import XGenMMError

CONFIG_NAME = "config.json"
# What `config.json` of a checkpoint may say: our own two families, and the first release.
MODEL_TYPES = ("xgenmm", "xgenmm_v1", "blip_3")
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
    model_type = read_json_object(path).get("model_type")
    if not isinstance(model_type, str) or not (model_type in known or _is_registered_subclass(model_type)):
        names = ", ".join(f"`{name}`" for name in known)
        said = f"is a `{model_type}` model" if isinstance(model_type, str) else f"has the `model_type` {model_type!r}"
        raise XGenMMError(
            f"`{path}` {said}; expected an xGen-MM checkpoint (`model_type` {names}). Code that a checkpoint brings "
            "along is never run."
        )


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
