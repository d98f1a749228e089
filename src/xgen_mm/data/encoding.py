"""Records to samples: token ids and labels now, pictures only when a batch is made."""

import os
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..anyres import Size
from ..errors import DataError, ImageInputError
from ..images.opening import header_size, upright_size
from .labels import IGNORED, Ids, TokenLimits, label_tokens
from .records import Conversation, Document, Picture, Provenance, Record, pictures_of
from .text_forms import TextSettings, write_record


class SampleError(DataError):
    """A record that no batch can hold, because nothing is learned from it or a picture is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One record as tokens, its pictures not decoded yet.

    Attributes:
        input_ids: Ids, shape (tokens,).
        labels: Ids that are learned, else -100, shape (tokens,).
        pictures: Pictures in the order of their image tokens.
        image_sizes: Their (height, width) in pixels, upright.
        provenance: Where the record comes from.
        is_cut: Whether a limit cut something off.
    """

    input_ids: Ids
    labels: Ids
    pictures: tuple[Picture, ...]
    image_sizes: tuple[Size, ...]
    provenance: Provenance
    is_cut: bool = False

    def __len__(self) -> int:
        """Tokens, image tokens included."""
        return len(self.input_ids)


class RecordEncoder:
    """Turns records into samples. It can be sent to worker processes.

    Args:
        processor: Processor of the model that is trained.
        settings: How records are written.
        limits: How long samples may become; longer ones are cut, never inside a picture.
    """

    def __init__(
        self, processor: Any, *, settings: TextSettings | None = None, limits: TokenLimits | None = None
    ) -> None:
        self.processor = processor
        self.settings = settings or TextSettings()
        self.limits = limits or TokenLimits()

    def __call__(self, record: Record) -> Sample:
        """Encode one record.

        Raises:
            SampleError: If nothing in it is learned, or a picture's header cannot be read.
            TypeError: If it is a preference pair.
        """
        if not isinstance(record, Document | Conversation):
            raise TypeError(
                f"`record` is a `{type(record).__name__}`; `preference_example` writes preference pairs for TRL."
            )
        written = write_record(record, self.processor, settings=self.settings)
        sizes = [self._size(picture, record) for picture in pictures_of(record)]
        tokens = label_tokens(
            written,
            self.processor,
            image_lengths=self._image_lengths(sizes),
            settings=self.settings,
            limits=self.limits,
            is_document=isinstance(record, Document),
        )
        # The first token has no predecessor to be predicted from.
        if not (tokens.labels[1:] != IGNORED).any():
            cut = " after cutting it to its limits" if tokens.is_cut else ""
            raise SampleError("nothing to learn", f"{describe(record.provenance)} holds nothing to learn{cut}.")
        return Sample(
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            pictures=written.pictures[: tokens.num_pictures],
            image_sizes=tuple(sizes[: tokens.num_pictures]),
            provenance=record.provenance,
            is_cut=tokens.is_cut,
        )

    def _image_lengths(self, sizes: list[Size]) -> list[int]:
        if not sizes:
            return []
        counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        return [int(count) for count in counts]

    def _size(self, picture: Picture, record: Record) -> Size:
        try:
            return picture_size(picture)
        except ImageInputError as error:
            raise SampleError("unreadable picture", f"{describe(record.provenance)}: {error}") from error


def picture_size(picture: Picture) -> Size:
    """Height and width of a picture as it is shown, read from its header.

    Only a URL is fetched as a whole; fetch pictures beforehand where there are many.

    Raises:
        ImageInputError: If the picture cannot be found or its header not be read.
    """
    source = picture.source
    if isinstance(source, Image.Image):
        return upright_size(source)
    if isinstance(source, bytes | os.PathLike) or (isinstance(source, str) and os.path.isfile(source)):
        name = f"{len(source)} bytes" if isinstance(source, bytes) else f"`{source}`"
        try:
            return header_size(source, name=name)
        except OSError as error:
            raise ImageInputError(f"{name} cannot be opened as a picture: {error}") from error
    return upright_size(picture.load())


def describe(provenance: Provenance) -> str:
    """Name of a record for messages."""
    return f"Record `{provenance.key}` of `{provenance.dataset}`"
