"""Opens a checkpoint that is to be converted and finds out which layout it is in."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters import ADAPTER_CONFIG
from ..checkpoint_config import CONFIG_NAME, load_config
from ..errors import ConversionError
from ..modeling.configuration_xgen_mm import XGenMMConfig
from .key_rules import OUR_MARK, V1_5, V1_5_MARK, V1_MARK, KeyRules
from .pickle_files import list_pickle
from .presets import RELEASED_4B, RELEASED_V1, preset_config
from .tensor_files import StoredTensor, list_directory, read_header
from .v1_rules import V1

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
TOWER = "vision_encoder."
# What the names of a vision tower begin with, by where it comes from; the first that occurs is taken.
TOWER_PREFIXES = (V1_5.prefix + TOWER, "model.vision_tower.", "vision_model.", "visual.", TOWER, "")
TOWER_MARKS = ("embeddings.patch_embedding.weight", "conv1.weight")


@dataclass(frozen=True, slots=True)
class SourceCheckpoint:
    """A checkpoint in a released layout.

    Attributes:
        path: Directory or file.
        tensors: Its tensors, names without prefix, in file order.
        prefix: What the names begin with in the files (`vlm.` on the Hub, nothing in the training code's files).
        rules: Rules of its layout.
        is_pickle: Whether it is a `.pt` file.
        wrapper: Key of the state dict inside a `.pt` file, if any.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    prefix: str
    rules: KeyRules = V1_5
    is_pickle: bool = False
    wrapper: str | None = None

    @property
    def directory(self) -> Path | None:
        """Directory with configuration and tokenizer, if the checkpoint is one."""
        return self.path if self.path.is_dir() else None


def open_source(path: Path) -> SourceCheckpoint:
    """Open a checkpoint in a released layout.

    Args:
        path: Hub directory, safetensors file, or `.pt` file of the training code.

    Returns:
        Where its tensors are; none has been read.

    Raises:
        ConversionError: If there is no checkpoint, it is damaged or unsafe, or in a layout that is not converted here.
    """
    wrapper = None
    is_pickle = path.is_file() and path.suffix in PICKLE_SUFFIXES
    if is_pickle:
        tensors, wrapper = list_pickle(path)
    else:
        if (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG_NAME).is_file():
            raise ConversionError(
                f"`{path}` is an adapter without its model; `xgen-mm export --model {path} DIR` merges it "
                "into its base."
            )
        tensors = list_weights(path)
    prefix = V1_5.prefix if any(name.startswith(V1_5.prefix) for name in tensors) else ""
    strangers = [name for name in tensors if not name.startswith(prefix)]
    if strangers:
        raise ConversionError(f"{path} mixes names with and without `{prefix}`; without: {', '.join(strangers)}.")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    rules = _find_rules(path, tensors)
    return SourceCheckpoint(path, tensors, prefix, rules, is_pickle=is_pickle, wrapper=wrapper)


def list_weights(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint directory or a single safetensors file.

    Raises:
        ConversionError: If there is no such checkpoint or it is damaged.
    """
    if path.is_dir():
        return list_directory(path)
    if path.is_file() and path.suffix == ".safetensors":
        return read_header(path).tensors
    raise ConversionError(f"{path} is neither a checkpoint directory nor a .safetensors or .pt file.")


def add_vision_tower(source: SourceCheckpoint, tower: Path | None) -> SourceCheckpoint:
    """Take the weights of the frozen vision tower from elsewhere, if the checkpoint does not hold them.

    Args:
        source: Checkpoint with or without tower.
        tower: SigLIP checkpoint in the transformers layout, or a whole xGen-MM checkpoint in either layout.

    Raises:
        ConversionError: If the tower is missing, or is in both places.
    """
    has_tower = any(name.startswith(TOWER) for name in source.tensors)
    if tower is None:
        if not has_tower:
            raise ConversionError(
                f"{source.path} holds no `{source.prefix}{TOWER}*` weights: training left the frozen tower out. Name "
                "a directory that has them with `--vision-tower` (google/siglip-so400m-patch14-384 for the released "
                "models)."
            )
        return source
    if has_tower:
        raise ConversionError(f"{source.path} has its own vision tower; leave `--vision-tower` out.")
    stored = list_weights(tower)
    prefix = next((prefix for prefix in TOWER_PREFIXES for mark in TOWER_MARKS if prefix + mark in stored), None)
    if prefix is None:
        raise ConversionError(f"{tower} holds no vision tower (no {' or '.join(TOWER_MARKS)} under a known prefix).")
    found = {TOWER + name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    logger.info("Took %d of the %d tensors of %s: those of its vision tower.", len(found), len(stored), tower)
    return replace(source, tensors=source.tensors | found)


def read_config(source: SourceCheckpoint, config: Path | None) -> XGenMMConfig:
    """Configuration of a checkpoint.

    Args:
        source: The checkpoint.
        config: `config.json` or a directory that holds it; `None` takes the checkpoint's own, and for a single file
            the
            released 4B sizes.

    Raises:
        ConversionError: If the file cannot be read or is not the configuration of such a checkpoint.
    """
    preset = preset_config(RELEASED_V1 if source.rules is V1 else RELEASED_4B)
    path = source.directory if config is None else config
    if path is None:
        return preset
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; name the model's configuration with `--config`.")
    try:
        found = load_config(path, local_files_only=True)
    except OSError as error:
        raise ConversionError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(found, type(preset)) or found.model_type != preset.model_type:
        raise ConversionError(
            f"{path} is of type `{found.model_type}`, but the weights are those of `{preset.model_type}`."
        )
    return found


def _find_rules(path: Path, names: Iterable[str]) -> KeyRules:
    names = list(names)
    if OUR_MARK in names:
        raise ConversionError(f"{path} is in our layout already; `--reverse` writes the released one.")
    if V1_5_MARK not in names:
        raise ConversionError(f"{path} is no xGen-MM checkpoint: it has no `{V1_5.prefix}{V1_5_MARK}`.")
    return V1 if any(name.startswith(V1_MARK) for name in names) else V1_5
