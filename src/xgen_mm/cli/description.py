"""Facts about a checkpoint, from its configuration and file headers alone. Imports torch and transformers."""

import copy
import json
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText

from ..adapters import adapter_base, read_adapter_config, whole_checkpoint
from ..anyres import best_canvas
from ..checkpoint_config import reading_checkpoint
from ..connectors.connector_table import DEFAULT_MODEL_TYPE
from ..modeling.configuration_xgen_mm import TOWERS_WITH_POOLING_HEAD
from .console import UserError
from .loading import load_config

# Names in safetensors headers.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8"}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a checkpoint is.

    Attributes:
        checkpoint: Directory, Hub id or name of a preset.
        model_type: `xgenmm` or `xgenmm_v1`.
        parts: One line of text per module.
        parameters: Parameters per module, shared ones counted once, and their `total`.
        is_lm_head_tied: Whether the output layer shares the embedding table.
        weights: `num_files`, `num_bytes` and parameters per dtype (`dtypes`); `None` if there are no weights here.
        tile_size: Edge of a tile in pixels.
        patch_size: Edge of a patch in pixels.
        canvases: Permitted canvases as `[height, width]` in pixels.
        num_latents: Image tokens per tile.
        tile_grouping: As in the configuration.
        context_length: Longest sequence in tokens.
        vocab_size: Rows of the embedding table.
        images: `image_size`, `canvas` (`None` without tiling), `num_tiles` and `num_image_tokens` per asked size.
        adapter: `kind`, `rank` and `base` of an adapter, whose base the parts and parameters are of; `None` if the
            checkpoint is whole.
    """

    checkpoint: str
    model_type: str
    parts: dict[str, str]
    parameters: dict[str, int]
    is_lm_head_tied: bool
    weights: dict[str, Any] | None
    tile_size: int
    patch_size: int
    canvases: list[list[int]]
    num_latents: int
    tile_grouping: str
    context_length: int
    vocab_size: int
    images: list[dict[str, Any]]
    adapter: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields."""
        return asdict(self)


def describe_checkpoint(name: str, *, image_sizes: Sequence[tuple[int, int]]) -> Description:
    """Collect the facts.

    Args:
        name: Existing directory or Hub id.
        image_sizes: `(height, width)` of pictures whose cost is wanted.

    Raises:
        UserError: If there is no readable xGen-MM configuration, or a weight file is damaged.
    """
    config = load_config(name)
    return replace(
        describe_config(config, name=name, image_sizes=()),
        weights=read_weights(name),
        images=_count_image_tokens(_load_image_processor(name, config), config, image_sizes),
        adapter=_describe_adapter(name),
    )


def describe_config(config: Any, *, name: str, image_sizes: Sequence[tuple[int, int]]) -> Description:
    """Facts that follow from a configuration alone.

    Args:
        config: Configuration of the model.
        name: What to call it.
        image_sizes: `(height, width)` of pictures whose cost is wanted, tiled as the configuration says.
    """
    with reading_checkpoint(name):
        parameters, is_tied = count_parameters(config)
    return Description(
        checkpoint=name,
        model_type=config.model_type,
        parts=_describe_parts(config),
        parameters=parameters,
        is_lm_head_tied=is_tied,
        weights=None,
        tile_size=config.tile_size,
        patch_size=config.vision_config.patch_size,
        canvases=[list(canvas) for canvas in config.image_grid_pinpoints],
        num_latents=config.tokens_per_group,
        tile_grouping=config.tile_grouping,
        context_length=config.text_config.max_position_embeddings,
        vocab_size=config.text_config.vocab_size,
        images=_count_image_tokens(_default_image_processor(config), config, image_sizes),
    )


def count_parameters(config: Any) -> tuple[dict[str, int], bool]:
    """Count parameters without allocating any.

    Returns:
        Parameters of `vision_tower`, `resampler`, `language_model`, `lm_head` and `total`, each one counted where it
        first appears; and whether the output layer shares the embedding table.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    modules = {name: getattr(model.model, name) for name in ("vision_tower", "resampler", "language_model")}
    modules["lm_head"] = model.lm_head
    counted: set[int] = set()
    counts = {}
    for name, module in modules.items():
        new = {id(parameter): parameter.numel() for parameter in module.parameters() if id(parameter) not in counted}
        counts[name] = sum(new.values())
        counted |= new.keys()
    counts["total"] = sum(counts.values())
    return counts, model.lm_head.weight is model.get_input_embeddings().weight


def read_weights(name: str) -> dict[str, Any] | None:
    """Size and precision of the weight files of a directory, or of what the Hub cache holds of a Hub id.

    Raises:
        UserError: If a safetensors file is damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except OSError:
            return None
    # The host's own preference: safetensors, and pickles only where there are none.
    files = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt")])
    if not files:
        return None
    dtypes: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            dtypes.update(_count_dtypes(file))
    return {"num_files": len(files), "num_bytes": sum(file.stat().st_size for file in files), "dtypes": dict(dtypes)}


def _count_dtypes(file: Path) -> Counter[str]:
    """Values per dtype in one safetensors file: eight bytes of length, then a JSON header."""
    counts: Counter[str] = Counter()
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _MAX_HEADER_BYTES)))
        for key, entry in header.items():
            if key != "__metadata__":
                counts[_DTYPES.get(entry["dtype"], entry["dtype"])] += _product(entry["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"`{file}` is no readable safetensors file; copy or download it again.") from error
    return counts


def _describe_parts(config: Any) -> dict[str, str]:
    vision, resampler, text = config.vision_config, config.resampler_config, config.text_config
    window = getattr(text, "sliding_window", None)
    return {
        "vision_tower": (
            f"{vision.model_type}: {vision.num_hidden_layers} layers, width {vision.hidden_size}, "
            f"{vision.num_attention_heads} heads, patches of {vision.patch_size} pixels" + _describe_unbuilt(vision)
        ),
        "resampler": _describe_connector(resampler),
        "language_model": (
            f"{text.model_type}: {text.num_hidden_layers} layers, width {text.hidden_size}, "
            f"{text.num_attention_heads} heads, vocabulary {text.vocab_size:,}"
            + (f", attention window {window:,}" if window else "")
        ),
    }


def _describe_connector(connector: Any) -> str:
    """Sizes that a connector has; every one has a width."""
    counts = (("num_attention_heads", "heads"), ("num_latents", "latents"))
    sizes = [f"{connector.num_hidden_layers} layers"] if hasattr(connector, "num_hidden_layers") else []
    sizes += [f"width {connector.hidden_size}"]
    sizes += [f"{getattr(connector, field)} {unit}" for field, unit in counts if hasattr(connector, field)]
    if connector.model_type == DEFAULT_MODEL_TYPE:
        return ", ".join(sizes)
    return f"{connector.model_type}: {', '.join(sizes)}"


def _describe_unbuilt(vision: Any) -> str:
    """What released files hold of a tower and our model leaves out."""
    if vision.model_type not in TOWERS_WITH_POOLING_HEAD or getattr(vision, "vision_use_head", True):
        return ""
    whole = copy.deepcopy(vision)
    whole.vision_use_head = True
    with torch.device("meta"):
        with_head, without_head = (
            AutoModel.from_config(config, trust_remote_code=False).num_parameters() for config in (whole, vision)
        )
    return f", without its pooling head ({with_head - without_head:,} parameters, never called)"


def _count_image_tokens(processor: Any, config: Any, image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    rows = []
    for height, width in image_sizes:
        num_tiles = processor.get_number_of_image_patches(height, width)
        is_tiled = processor.image_aspect_ratio == "anyres"
        num_groups = 1 if config.tile_grouping == "image" else num_tiles
        rows.append(
            {
                "image_size": [height, width],
                "canvas": list(best_canvas((height, width), processor.image_grid_pinpoints)) if is_tiled else None,
                "num_tiles": num_tiles,
                "num_image_tokens": num_groups * config.tokens_per_group,
            }
        )
    return rows


def _describe_adapter(name: str) -> dict[str, Any] | None:
    base = adapter_base(name)
    if base is None:
        return None
    settings = read_adapter_config(name)
    return {"kind": str(settings.get("peft_type", "PEFT")), "rank": settings.get("r"), "base": base}


def _load_image_processor(name: str, config: Any) -> Any:
    """The checkpoint's own image processor, which may not tile; without one, the tiling of the configuration."""
    for place in dict.fromkeys((name, whole_checkpoint(name)[0])):
        try:
            return AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError):
            continue
    return _default_image_processor(config)


def _default_image_processor(config: Any) -> Any:
    from ..processing.image_processing_pil_xgen_mm import XGenMMImageProcessorPil

    size = {"height": config.tile_size, "width": config.tile_size}
    return XGenMMImageProcessorPil(size=size, image_grid_pinpoints=config.image_grid_pinpoints)


def _product(shape: Sequence[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result
