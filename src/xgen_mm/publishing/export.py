"""Writes a checkpoint directory that loads anywhere: weights, settings, processor, and the code for them."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..adapters import adapter_base, load_merged_model, load_merged_processor
from ..output_directory import new_directory
from .links import refuse_links
from .model_card import card_for_directory, write_card

CARD = "README.md"
DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        source: Checkpoint that was read.
        base: Model that an adapter was merged into; `None` for a whole checkpoint.
        destination: Directory that was written.
        dtype: Precision of the weights.
        num_parameters: Parameters of the model.
        files: Size in bytes by file name.
    """

    source: str
    base: str | None
    destination: str
    dtype: str
    num_parameters: int
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def export_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    processor: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    card: str | None = None,
) -> ExportReport:
    """Write a self-contained checkpoint.

    It loads with the Auto classes: as it is where `xgen_mm` is imported, and with `trust_remote_code=True` where
    there is transformers alone.

    Args:
        source: Directory or Hub id of a checkpoint in any layout, or of a LoRA adapter, which is merged into its base.
        destination: Directory to create; it appears when everything is written.
        processor: Where the processor is, if not in `source` (or beside the base of an adapter).
        dtype: Precision of the weights, a torch name; `"auto"` keeps that of the source.
        max_shard_size: Most bytes per weight file, such as `"5GB"`.
        card: Name of a card this package knows. `None` takes the `README.md` of a source directory over, and without
            one writes a card from what the files say.

    Returns:
        What was written.

    Raises:
        XGenMMError: If an adapter is given and `peft` is missing.
        FileExistsError: If the destination is not empty.
        OSError: If something cannot be read or written.
    """
    with new_directory(destination) as partial:
        base = adapter_base(source)
        for directory in (source, processor, base):
            refuse_links(directory)
        model = load_merged_model(source, dtype=dtype)
        loaded_processor = load_merged_processor(processor or source)
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        loaded_processor.save_pretrained(partial)
        _write_card(source, base, partial, card=card, name=Path(destination).name)
        return ExportReport(
            source=str(source),
            base=base,
            destination=str(destination),
            dtype=str(model.dtype).removeprefix("torch."),
            num_parameters=model.num_parameters(),
            files={path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        )


def _write_card(
    source: str | os.PathLike[str], base: str | None, directory: Path, *, card: str | None, name: str
) -> None:
    target, own = directory / CARD, Path(source) / CARD
    if card is not None:
        write_card(card, target)
    elif own.is_file():
        shutil.copyfile(own, target)
    else:
        facts: dict[str, Any] = {"name": name, "title": name}
        known = base or str(source)
        if not Path(known).is_dir():
            facts["base_models"] = (known,)
        write_card(card_for_directory(directory, **facts), target)
