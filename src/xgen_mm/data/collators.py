"""Samples to batches: padded rows, packed rows, and preference examples for TRL."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch

from ..errors import ImageInputError
from ..processing.image_processing_xgen_mm import _normalise as normalise
from .encoding import RecordEncoder, Sample, SampleError, describe
from .labels import IGNORED
from .records import Picture, PreferencePair, Record
from .text_forms import to_messages

logger = logging.getLogger(__name__)

Batch: TypeAlias = dict[str, Any]
BadPolicy: TypeAlias = Literal["raise", "skip"]
# (pictures, most tiles, channels, height, width)
PADDED_TILE_DIMS = 5
Groups: TypeAlias = Sequence[Sample] | Sequence[Sequence[Sample]]


class PictureReader(Protocol):
    """Makes the picture part of a batch."""

    def __call__(self, pictures: Sequence[Picture]) -> Batch:
        """Model inputs of all pictures of a batch in order.

        Raises:
            ImageInputError: If one of them cannot be read.
        """
        ...


class TileReader:
    """Decodes pictures and cuts them into tiles with the processor.

    Args:
        processor: Processor of the model that is trained.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, pictures: Sequence[Picture]) -> Batch:
        """`pixel_values`, shape (pictures, most tiles, 3, S, S), and `image_sizes`, shape (pictures, 2).

        Raises:
            ImageInputError: If a picture cannot be decoded.
        """
        images = [picture.load() for picture in pictures]
        return dict(self.processor.image_processor(images, return_tensors="pt"))


class LevelReader:
    """Cuts pictures into tiles of grey levels, to be normalised where the batch is used.

    Levels take a quarter of the bytes of normalised tiles, and filler tiles are left out: what worker processes hand
    over is what limits them. Give `LevelNormaliser` to the loader that receives the batches.

    Args:
        processor: Processor of the model that is trained.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, pictures: Sequence[Picture]) -> Batch:
        """`pixel_values`, 8-bit levels of shape (tiles, 3, S, S), and `image_sizes`, shape (pictures, 2).

        Raises:
            ImageInputError: If a picture cannot be decoded.
        """
        image_processor = self.processor.image_processor
        images = [picture.load() for picture in pictures]
        inputs = dict(image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt"))
        counts = [image_processor.get_number_of_image_patches(image.height, image.width, {}) for image in images]
        padded = inputs["pixel_values"]
        rows = padded if padded.dim() == PADDED_TILE_DIMS else padded.unsqueeze(1)
        # Small before they are joined: touching fresh memory is the larger part of the work.
        inputs["pixel_values"] = torch.cat(
            [tiles[:count].to(torch.uint8) for tiles, count in zip(rows, counts, strict=True)]
        )
        return inputs


class LevelNormaliser:
    """Normalises the grey levels that `LevelReader` gives; the result equals normalised tiles without filler.

    Args:
        processor: Processor of the model that is trained.
    """

    def __init__(self, processor: Any) -> None:
        image_processor = processor.image_processor
        self.settings = {
            "factor": image_processor.rescale_factor if image_processor.do_rescale else None,
            "mean": image_processor.image_mean if image_processor.do_normalize else None,
            "std": image_processor.image_std if image_processor.do_normalize else None,
        }

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `pixel_values` in float32; one without levels is returned as it is."""
        levels = batch.get("pixel_values")
        if levels is None or levels.dtype != torch.uint8:
            return batch
        values = levels.to(torch.float32)
        normalise(values, **self.settings)
        return {**batch, "pixel_values": values}


class PaddingCollator:
    """Pads samples on the right to the longest one.

    Takes a list of samples, or lists of samples as a grouping stream yields them. With `Trainer`, set
    `remove_unused_columns=False`.

    Args:
        processor: Processor of the model that is trained.
        pad_to_multiple_of: Round the length up to a multiple of this.
        pictures: Where the picture part comes from; `None` decodes pictures and cuts tiles.
        on_bad_picture: What happens to a sample whose picture turns out to be damaged: an error, or the sample is left
            out and the event logged.
    """

    def __init__(
        self,
        processor: Any,
        *,
        pad_to_multiple_of: int | None = None,
        pictures: PictureReader | None = None,
        on_bad_picture: BadPolicy = "raise",
    ) -> None:
        self.pad_token_id = _pad_token_id(processor.tokenizer)
        self.pad_to_multiple_of = pad_to_multiple_of
        self.pictures = pictures or TileReader(processor)
        self.on_bad_picture = on_bad_picture

    def __call__(self, groups: Groups) -> Batch:
        """Make a batch.

        Returns:
            `input_ids`, `attention_mask` and `labels`, shape (samples, tokens), and what the picture reader gives.

        Raises:
            SampleError: If a picture is damaged and the policy is `"raise"`, or no sample is left.
        """
        samples, picture_inputs = read_pictures(
            flatten_groups(groups), self.pictures, on_bad_picture=self.on_bad_picture
        )
        length = _round_up(max(len(sample) for sample in samples), self.pad_to_multiple_of)
        input_ids = torch.full((len(samples), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, sample in enumerate(samples):
            input_ids[row, : len(sample)] = torch.from_numpy(sample.input_ids)
            attention_mask[row, : len(sample)] = 1
            labels[row, : len(sample)] = torch.from_numpy(sample.labels)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **picture_inputs}


class RecordCollator:
    """Encodes records and hands the samples to another collator, for data sets that are lists of records.

    Args:
        encoder: Makes samples.
        collator: Makes the batch; `None` pads.
        on_bad_record: Whether a record that cannot be used is an error, or left out and logged.
    """

    def __init__(
        self, encoder: RecordEncoder, *, collator: PaddingCollator | None = None, on_bad_record: BadPolicy = "raise"
    ) -> None:
        self.encoder = encoder
        self.collator = collator or PaddingCollator(encoder.processor, on_bad_picture=on_bad_record)
        self.on_bad_record = on_bad_record

    def __call__(self, records: Sequence[Record]) -> Batch:
        """Make a batch of records.

        Raises:
            SampleError: If a record cannot be used and the policy is `"raise"`, or none is left.
        """
        samples = []
        for record in records:
            try:
                samples.append(self.encoder(record))
            except SampleError as error:
                if self.on_bad_record == "raise":
                    raise
                logger.warning("Left out of the batch: %s", error)
        if not samples:
            raise SampleError("empty batch", f"None of the {len(records)} records of a batch can be used.")
        return self.collator(samples)


def preference_example(pair: PreferencePair) -> dict[str, Any]:
    """A preference pair as TRL's trainers read it; their own collator and the processor do the rest.

    Args:
        pair: Prompt and two answers; pictures in the prompt only.

    Returns:
        `images` (decoded), and `prompt`, `chosen` and `rejected` as messages.

    Raises:
        ValueError: If an answer holds a picture, which TRL cannot express.
        ImageInputError: If a picture cannot be read.
    """
    answers = (pair.chosen, pair.rejected)
    if any(isinstance(part, Picture) for turn in answers for part in turn.parts):
        raise ValueError(
            f"{describe(pair.provenance)} has a picture in an answer; TRL takes pictures of prompts only."
        )
    pictures = [part for turn in pair.prompt for part in turn.parts if isinstance(part, Picture)]
    return {
        "images": [picture.load() for picture in pictures],
        "prompt": to_messages(pair.prompt),
        "chosen": to_messages((pair.chosen,)),
        "rejected": to_messages((pair.rejected,)),
    }


def read_pictures(
    samples: Sequence[Sample], reader: PictureReader, *, on_bad_picture: BadPolicy
) -> tuple[list[Sample], Batch]:
    """Read the pictures of all samples.

    Args:
        samples: At least one.
        reader: Makes the picture part of the batch.
        on_bad_picture: Whether a damaged picture is an error, or costs the batch its sample.

    Returns:
        The samples that are left, and their picture part; nothing in it without pictures.

    Raises:
        SampleError: If a picture is damaged and the policy is `"raise"`, or no sample is left.
    """
    kept = list(samples)
    pictures = [picture for sample in kept for picture in sample.pictures]
    if not pictures:
        return kept, {}
    try:
        inputs = reader(pictures)
    except ImageInputError as error:
        # Which one it was is only looked for now: pictures are rarely damaged behind their header.
        kept, damaged = _split_readable(kept)
        names = ", ".join(describe(sample.provenance) for sample in damaged)
        if not damaged:
            raise
        if on_bad_picture == "raise":
            raise SampleError("damaged picture", f"{names}: {error}") from error
        logger.warning("Left out of the batch for a damaged picture: %s (%s)", names, error)
        if not kept:
            raise SampleError("damaged picture", "Every sample of a batch has a damaged picture.") from error
        return read_pictures(kept, reader, on_bad_picture="raise")
    _check_sizes(kept, inputs)
    return kept, inputs


def flatten_groups(groups: Groups) -> list[Sample]:
    """Samples of a list of samples or of lists of samples."""
    flat: list[Sample] = []
    for group in groups:
        flat.extend([group] if isinstance(group, Sample) else group)
    return flat


def _split_readable(samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
    readable, damaged = [], []
    for sample in samples:
        try:
            for picture in sample.pictures:
                picture.load()
        except ImageInputError:
            damaged.append(sample)
        else:
            readable.append(sample)
    return readable, damaged


def _check_sizes(samples: Sequence[Sample], inputs: Mapping[str, Any]) -> None:
    """The prompt was written for the sizes in the headers; the tiles come from the pixels."""
    if inputs.get("image_sizes") is None:
        return
    expected = [tuple(size) for sample in samples for size in sample.image_sizes]
    found = [tuple(size) for size in torch.as_tensor(inputs["image_sizes"]).tolist()]
    if found != expected:
        raise ValueError(
            f"Pictures of size {expected} (height, width) in the headers were decoded as {found}. The files changed "
            "between reading the record and making the batch, or the picture reader belongs to other pictures."
        )


def _pad_token_id(tokenizer: Any) -> int:
    token = tokenizer.pad_token_id
    if token is None:
        raise ValueError("The tokenizer has no padding token; set `tokenizer.pad_token`.")
    return int(token)


def _round_up(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple
