"""Find and load what a command line names: a checkpoint, a device, pictures. Imports torch and transformers."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

import xgen_mm
from xgen_mm.adapters import ADAPTER_CONFIG, load_merged_model, load_merged_processor, whole_checkpoint
from xgen_mm.auto import FAMILIES
from xgen_mm.checkpoint_config import load_config as read_config
from xgen_mm.errors import XGenMMError
from xgen_mm.images.bounded_download import is_url
from xgen_mm.processing.image_loading import fetch_image

from .console import UserError, local_path, log, one_line

DTYPES = ("auto", "float32", "bfloat16", "float16")
MODEL_TYPES = tuple(family.model_type for family in FAMILIES if family.is_xgen_mm)
FETCHED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_FOREIGN_CODE = (
    "its files ask for code that it brings along, which is never run; remove `auto_map` from its JSON files, or take "
    "the processor from another checkpoint."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model ready to answer, its processor, and what the user calls it."""

    model: Any
    processor: Any
    name: str

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that stands once per image token."""
        return int(self.model.config.image_token_id)


def resolve_checkpoint(name: str | None) -> str:
    """Directory or Hub id of a checkpoint.

    Args:
        name: What the user wrote; `None` means the small model that ships with the package.

    Returns:
        An existing directory with a `config.json` or `adapter_config.json`, or a Hub id `owner/name`.

    Raises:
        UserError: If it is neither.
    """
    if name is None:
        return str(xgen_mm.tiny_checkpoint())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
            raise UserError(f"`{name}` holds no `config.json`; give the directory of a checkpoint.")
        return str(path)
    if _HUB_ID.fullmatch(name) and not path.exists():
        return name
    raise UserError(f"`{name}` is no directory; give the directory of a checkpoint or a Hub id `owner/name`.")


def fetch_checkpoint(name: str) -> Path:
    """Local files of a checkpoint, downloaded into the Hub's cache if need be.

    Args:
        name: Directory, weight file, or Hub id `owner/name`.

    Returns:
        An existing path. Of a Hub repository only weights in safetensors form and text files are fetched.

    Raises:
        UserError: If it is none of these, or the Hub does not have it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"`{name}` does not exist; give a checkpoint directory, a file or a Hub id `owner/name`.")
    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED_FILES)))
    except (OSError, ValueError) as error:
        raise UserError(f"`{name}` is not here and cannot be fetched from the Hub: {one_line(error)}") from error


def load_config(name: str) -> Any:
    """Configuration of an xGen-MM checkpoint; of an adapter that of its base.

    Args:
        name: As returned by `resolve_checkpoint`.

    Raises:
        UserError: If it cannot be read or belongs to another kind of model.
    """
    try:
        config = read_config(whole_checkpoint(name)[0])
    except XGenMMError as error:
        raise UserError(one_line(error)) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration of `{name}`: {one_line(error)}") from error
    if config.model_type not in MODEL_TYPES:
        expected = " or ".join(f"`{model_type}`" for model_type in MODEL_TYPES)
        raise UserError(f"`{name}` is a `{config.model_type}` model; expected an xGen-MM checkpoint ({expected}).")
    return config


def load_model(name: str, *, device: str, dtype: str) -> LoadedModel:
    """Load model and processor through the Auto classes; an adapter is merged into its base.

    Args:
        name: As returned by `resolve_checkpoint`.
        device: `"auto"` or a torch device name.
        dtype: One of `DTYPES`; `"auto"` keeps the precision of the weights.

    Raises:
        UserError: If the device does not exist or the checkpoint cannot be loaded.
    """
    target = resolve_device(device)
    load_config(name)
    if Path(name).is_dir():
        # Bars are for downloads; a local checkpoint is there or not.
        transformers_logging.disable_progress_bar()
    else:
        log(f"Loading {name} ...")
    try:
        processor = load_merged_processor(name)
        model = load_merged_model(name, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = _FOREIGN_CODE if "trust_remote_code" in str(error) else one_line(error)
        raise UserError(f"cannot load `{name}`: {reason}") from error
    return LoadedModel(model=model.to(target).eval(), processor=processor, name=name)


def resolve_device(name: str) -> torch.device:
    """Torch device for a name; `"auto"` takes an accelerator if there is one.

    Raises:
        UserError: If the device does not exist here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    here = ["cpu"] if accelerator is None else ["cpu", str(accelerator)]
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device `{name}` here; use one of: auto, {', '.join(here)}.") from error
    return device


def open_pictures(sources: Sequence[str]) -> list[Any]:
    """Open pictures given as files, `http(s)` URLs or `data:` URIs.

    Raises:
        UserError: If a file does not exist.
        ImageInputError: If a picture cannot be fetched or decoded.
    """
    sources = [source if _is_remote(source) else local_path(source) for source in sources]
    missing = [source for source in sources if not _is_remote(source) and not os.path.isfile(source)]
    if missing:
        raise UserError(f"no such picture: {', '.join(f'`{source}`' for source in missing)}.")
    return [fetch_image(source if _is_remote(source) else Path(source)) for source in sources]


def _is_remote(source: str) -> bool:
    return is_url(source) or source[:5].lower() == "data:"
