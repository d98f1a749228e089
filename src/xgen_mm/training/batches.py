"""The data of a run: its data sets, mixed, encoded and collated, and how many steps they give."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from ..data.collators import BadPolicy, Batch, LevelNormaliser, LevelReader, PaddingCollator
from ..data.cursors import Shard
from ..data.encoding import RecordEncoder, Sample, picture_size
from ..data.fetching import Fetcher
from ..data.labels import IGNORED, TokenLimits
from ..data.loading import ResumableLoader
from ..data.mixture import Mixture, MixtureEntry
from ..data.mixture_presets import load_preset
from ..data.mixture_sources import IterableSource, ListSource, Source
from ..data.packing import PackingCollator
from ..data.reading import RecordSource, is_url
from ..data.records import Picture, Provenance, Record, pictures_of
from ..data.samplers import FixedGroups, Grouping, LengthGroups, PackGroups
from ..data.streams import BatchStream, Collator, Group
from ..data.text_forms import RELEASED_FINE_TUNING, TextSettings
from .recipe import Recipe
from .recipe_sections import DataSection, RecipeError, TextSection

# So many samples are encoded to learn how long they are, where that decides the number of steps.
MEASURED_SAMPLES = 256
MAX_STEPS_FROM_TOKENS = 10**9


def read_records(entry: DataSection, *, on_bad_record: BadPolicy = "skip") -> Iterator[Record]:
    """Records of a data set, in the order of its files.

    Args:
        entry: The data set.
        on_bad_record: Whether a row that cannot be read is an error or left out.

    Raises:
        RecipeError: If a picture is given as a URL and the recipe does not say where to fetch it to.
    """
    yield from _Reader(entry, on_bad_record)(0)


def make_encoder(recipe: Recipe, processor: Any) -> RecordEncoder:
    """What turns the run's records into tokens and labels."""
    limits = TokenLimits(max_tokens=recipe.text.max_tokens, max_text_tokens=recipe.text.max_text_tokens)
    return RecordEncoder(processor, settings=text_settings(recipe.text), limits=limits)


def text_settings(section: TextSection) -> TextSettings:
    """How samples are written."""
    if section.released_form:
        return RELEASED_FINE_TUNING
    return TextSettings(supervise_stop_tokens=section.supervise_stop_tokens)


def make_mixture(recipe: Recipe, processor: Any) -> Mixture:
    """All data sets of the run as one stream of samples without end.

    Raises:
        RecipeError: If a data set is empty.
    """
    encoder = make_encoder(recipe, processor)
    sources = {entry.title: _source(recipe, entry) for entry in recipe.data}
    section = recipe.mixture
    if section.preset is not None:
        return load_preset(section.preset).build(
            sources,
            encoder=encoder,
            allow_missing=section.allow_missing,
            seed=recipe.seed,
            on_bad_record=section.on_bad_record,
        )
    entries = [
        MixtureEntry(name=entry.title, source=sources[entry.title], weight=entry.weight or 1.0, encoder=encoder)
        for entry in recipe.data
    ]
    return Mixture(entries, unit=section.unit, seed=recipe.seed, on_bad_record=section.on_bad_record)


def make_loader(
    recipe: Recipe,
    processor: Any,
    *,
    mixture: Mixture | None = None,
    rank: int = 0,
    world_size: int = 1,
    always_pictures: bool = False,
) -> ResumableLoader:
    """Batches of the run for one process.

    Args:
        recipe: The run.
        processor: Processor of the model that is trained.
        mixture: The data, if they have been opened already.
        rank: Number of this process.
        world_size: How many there are.
        always_pictures: Add an unlearned blank picture to batches of text alone. Where the model is sharded (FSDP),
            every process has to run the resampler in every step, or the others wait for it without end.
    """
    section = recipe.batches
    grouping: Grouping
    if section.row_length is not None:
        grouping = PackGroups(capacity=section.row_length)
    elif section.grouping == "length":
        grouping = LengthGroups(batch_size=section.per_device_batch_size)
    else:
        grouping = FixedGroups(batch_size=section.per_device_batch_size)
    has_workers = section.num_workers > 0
    collator = make_collator(recipe, processor, as_levels=has_workers)
    stream = BatchStream(
        mixture or make_mixture(recipe, processor),
        grouping=grouping,
        collator=WithPicture(collator, processor, row_length=section.row_length) if always_pictures else collator,
        window=section.window,
        groups_per_batch=section.per_device_batch_size if section.grouping == "packed" else 1,
        rank=rank,
        world_size=world_size,
        on_bad_batch=recipe.mixture.on_bad_record,
    )
    return ResumableLoader(
        stream, num_workers=section.num_workers, finish=LevelNormaliser(processor) if has_workers else None
    )


def make_collator(recipe: Recipe, processor: Any, *, as_levels: bool = False) -> Collator:
    """What turns groups of samples into batches.

    Args:
        recipe: The run.
        processor: Processor of the model that is trained.
        as_levels: Whether tiles stay grey levels, to be normalised by the process that trains.
    """
    pictures = LevelReader(processor) if as_levels else None
    policy = recipe.mixture.on_bad_record
    if recipe.batches.grouping != "packed":
        return PaddingCollator(processor, pictures=pictures, on_bad_picture=policy)
    is_flash = recipe.model.attention.startswith("flash")
    return PackingCollator(
        processor,
        row_length=None if is_flash else recipe.batches.row_length,
        flatten=is_flash,
        pictures=pictures,
        on_bad_picture=policy,
    )


def count_steps(recipe: Recipe, mixture: Mixture) -> int:
    """Optimiser steps of the run.

    With packed rows, `epochs` are converted with the mean length of some samples, so that number is an estimate; it
    is the same whenever the recipe is run.
    """
    optim, batches = recipe.optim, recipe.batches
    if optim.max_steps is not None:
        return optim.max_steps
    if optim.tokens is not None and batches.row_length is not None:
        return min(MAX_STEPS_FROM_TOKENS, math.ceil(optim.tokens / (batches.row_length * batches.global_batch_size)))
    samples = count_samples(mixture) * (optim.epochs or 1.0)
    if batches.row_length is not None:
        lengths = [len(sample) for sample in measure_samples(mixture)]
        samples *= float(np.mean(lengths)) / batches.row_length
    return max(1, math.ceil(samples / batches.global_batch_size))


def passes_per_step(recipe: Recipe, mixture: Mixture, *, max_steps: int) -> float:
    """Part of a pass over the data that one optimiser step takes.

    Where the size of the data or the number of samples in a packed row is not known, the whole run counts as one pass.
    """
    if recipe.optim.epochs is not None:
        return recipe.optim.epochs / max_steps
    if recipe.batches.row_length is not None or not all(entry.in_memory for entry in recipe.data):
        return 1 / max_steps
    return recipe.batches.global_batch_size / count_samples(mixture)


def count_samples(mixture: Mixture) -> int:
    """Samples of one pass: so many that the data set with the largest part of its records still to go is done.

    Raises:
        RecipeError: If a data set's size is not known.
    """
    sizes = {}
    for entry in mixture.entries:
        if not isinstance(entry.source, ListSource):
            raise RecipeError(f"The size of `{entry.name}` is not known before it is read; give `optim: max_steps`.")
        sizes[entry.name] = entry.source.samples
    return math.ceil(max(size / mixture.shares[name] for name, size in sizes.items()))


def measure_samples(mixture: Mixture, *, count: int = MEASURED_SAMPLES) -> list[Sample]:
    """The first samples of the mixture, as a single process would draw them."""
    return list(islice(mixture.open(Shard(rank=0, world_size=1, worker=0, num_workers=1)), count))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a data set from the start; it is sent to worker processes."""

    entry: DataSection
    on_bad_record: BadPolicy

    def __call__(self, number: int) -> Iterator[Record]:
        entry = self.entry
        source = RecordSource(
            path=entry.path,
            format=entry.format,
            options=entry.options,
            image_root=entry.image_root,
            split=entry.split,
            count=entry.count,
            policy=self.on_bad_record,
            fetcher=None if entry.fetch_to is None else Fetcher(entry.fetch_to),
        )
        for record in source(number):
            for picture in pictures_of(record):
                if is_url(picture.source):
                    raise RecipeError(
                        f"Record `{record.provenance.key}` of `{entry.title}` has a picture at an address of the web. "
                        "Set `fetch_to: DIRECTORY` of that data set to have such pictures fetched, with bounds."
                    )
            yield record


def _source(recipe: Recipe, entry: DataSection) -> Source:
    reader = _Reader(entry, recipe.mixture.on_bad_record)
    if not entry.in_memory:
        return IterableSource(reader, shuffle_window=recipe.mixture.shuffle_window, seed=recipe.seed)
    records = list(reader(0))
    if not records:
        raise RecipeError(f"`data: path` of `{entry.title}` holds no usable record: `{entry.path}`.")
    return ListSource(records, seed=recipe.seed)


class WithPicture:
    """Gives batches of text alone a blank picture, of which nothing is learned.

    Args:
        collator: Makes the batch.
        processor: Processor of the model that is trained.
        row_length: Tokens of a packed row, into which the picture goes if there is room.
    """

    def __init__(self, collator: Collator, processor: Any, *, row_length: int | None = None) -> None:
        self.collator = collator
        self.row_length = row_length
        size = processor.image_processor.size
        picture = Picture(Image.new("RGB", (size["width"], size["height"])))
        image_size = picture_size(picture)
        counts = processor._get_num_multimodal_tokens(image_sizes=[image_size])["num_image_tokens"]
        self.blank = Sample(
            input_ids=np.full(int(counts[0]), processor.image_token_id),
            labels=np.full(int(counts[0]), IGNORED),
            pictures=(picture,),
            image_sizes=(image_size,),
            provenance=Provenance(dataset="blank", key="blank"),
        )

    def __call__(self, groups: list[Group]) -> Batch:
        """Make a batch that has a picture.

        Args:
            groups: Samples, or packs of samples.
        """
        if any(sample.pictures for group in groups for sample in group):
            return self.collator(groups)
        rows = [list(group) for group in groups]
        room = 0 if self.row_length is None else self.row_length - sum(map(len, rows[-1]))
        if room >= len(self.blank):
            rows[-1].append(self.blank)
        else:
            rows.append([self.blank])
        return self.collator(rows)
