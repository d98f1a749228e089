"""Published mixtures as data, to be filled with one's own copies of the data sets."""

import logging
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .collators import BadPolicy
from .mixture import Encoder, Mixture, MixtureEntry, Unit
from .mixture_sources import Source

logger = logging.getLogger(__name__)

_FOLDER = "mixtures"
_ENTRY_KEYS = {"name", "weight", "samples", "published"}
_PRESET_KEYS = {"name", "unit", "tokens", "data_sets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetEntry:
    """One data set of a preset.

    Attributes:
        name: Name of the data set.
        weight: Its share; with `samples` given, that number.
        samples: Samples per epoch, for mixtures that are lists of counts.
        published: What the source of the preset says; `None` marks a value of ours.
    """

    name: str
    weight: float
    samples: int | None
    published: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePreset:
    """A mixture without its data.

    Attributes:
        name: Name of the preset.
        unit: What weights count.
        tokens: Multimodal tokens of the whole run, where published.
        data_sets: Its data sets; weights as published, which may not add up to 1.
    """

    name: str
    unit: Unit
    tokens: int | None
    data_sets: tuple[PresetEntry, ...]

    def build(
        self,
        sources: Mapping[str, Source],
        *,
        encoder: Encoder,
        encoders: Mapping[str, Encoder] | None = None,
        allow_missing: bool = False,
        seed: int = 0,
        on_bad_record: BadPolicy = "raise",
    ) -> Mixture:
        """Fill the preset with data.

        Args:
            sources: Data by name of the data set. Counts of `samples` are a setting of the source (`ListSource`).
            encoder: Makes samples of all data sets.
            encoders: Other ones for some of them.
            allow_missing: Whether data sets may be left out; the others then share their part.
            seed: Seed of the mixture.
            on_bad_record: As in `Mixture`.

        Raises:
            ValueError: If data sets are missing that may not be, or are not in the preset.
        """
        names = [entry.name for entry in self.data_sets]
        unknown = sorted(set(sources) - set(names))
        missing = [name for name in names if name not in sources]
        if unknown or (missing and not allow_missing) or len(missing) == len(names):
            raise ValueError(
                f"Preset `{self.name}` consists of {names}; missing: {missing}, not in it: {unknown}. Pass "
                "`allow_missing=True` to do without some, or write a mixture of your own."
            )
        if missing:
            logger.warning("Preset `%s` without %s; the other data sets share their part.", self.name, missing)
        entries = [
            MixtureEntry(
                name=entry.name,
                source=sources[entry.name],
                weight=entry.weight,
                encoder=(encoders or {}).get(entry.name, encoder),
            )
            for entry in self.data_sets
            if entry.name in sources
        ]
        return Mixture(entries, unit=self.unit, seed=seed, on_bad_record=on_bad_record)


def preset_names() -> list[str]:
    """Names of the presets that ship with the package.

    >>> preset_names()
    ['sft_interleaved', 'sft_single_image', 'stage1', 'stage2']
    """
    return sorted(
        item.name.removesuffix(".yaml")
        for item in files(__package__).joinpath(_FOLDER).iterdir()
        if item.name.endswith(".yaml")
    )


def load_preset(name: str | Path) -> MixturePreset:
    """Read a preset.

    Args:
        name: Name of one that ships with the package, or a YAML file of the same form.

    Raises:
        ValueError: If there is no such preset, or the file has another form.
    """
    if str(name) in preset_names():
        text = files(__package__).joinpath(_FOLDER, f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise ValueError(f"There is no preset `{name}`; there are {preset_names()}, or give a YAML file.")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"Preset `{name}` is no YAML that can be read: {' '.join(str(error).split())}.") from error
    return _parse(content, name=str(name))


def _parse(content: Any, *, name: str) -> MixturePreset:
    if not isinstance(content, dict) or set(content) - _PRESET_KEYS or not content.get("data_sets"):
        raise ValueError(f"Preset `{name}`: expected the keys {sorted(_PRESET_KEYS)} with at least one data set.")
    if content.get("unit") not in ("samples", "tokens"):
        raise ValueError(
            f"Preset `{name}`: `unit` is {reprlib.repr(content.get('unit'))}; expected 'samples' or 'tokens'."
        )
    return MixturePreset(
        name=content["name"],
        unit=content["unit"],
        tokens=content.get("tokens"),
        data_sets=tuple(_parse_entry(entry, name=name) for entry in content["data_sets"]),
    )


def _parse_entry(entry: Any, *, name: str) -> PresetEntry:
    if not isinstance(entry, dict) or set(entry) - _ENTRY_KEYS or "name" not in entry:
        raise ValueError(
            f"Preset `{name}`: {reprlib.repr(entry)} is no data set; expected the keys {sorted(_ENTRY_KEYS)}."
        )
    if ("weight" in entry) == ("samples" in entry):
        raise ValueError(f"Preset `{name}`: give `{entry['name']}` either a `weight` or `samples`.")
    samples = entry.get("samples")
    weight = entry["weight"] if samples is None else samples
    return PresetEntry(name=entry["name"], weight=float(weight), samples=samples, published=entry.get("published"))
