"""Token ids of a written record, and which of them are learned."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..modeling.output_layer import IGNORED_LABEL
from .text_forms import END_OF_CHUNK_TOKEN, Span, TextSettings, WrittenRecord

IGNORED = IGNORED_LABEL

Ids: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """How long a sample may become.

    Attributes:
        max_tokens: Longest sample, image tokens included; `None` for no limit.
        max_text_tokens: Longest text, each picture counted as the one `<image>` it is written as; the release uses
            2048. `None` for no limit.
    """

    max_tokens: int | None = None
    max_text_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTokens:
    """Ids and labels of one sample.

    Attributes:
        input_ids: Ids, shape (tokens,), one image token per slot of a picture.
        labels: The same ids where they are learned, else -100, shape (tokens,). Not shifted: the model does that.
        num_pictures: Pictures that are left after cutting the sample to its limits.
        is_cut: Whether a limit cut something off.
    """

    input_ids: Ids
    labels: Ids
    num_pictures: int
    is_cut: bool


def label_tokens(
    written: WrittenRecord,
    processor: Any,
    *,
    image_lengths: list[int],
    settings: TextSettings,
    limits: TokenLimits,
    is_document: bool,
) -> LabelledTokens:
    """Tokenise a written record and mark what is learned.

    The text is tokenised as a whole, so the ids are those that the model sees at inference. A token is learned if it
    begins inside a learned stretch: one that begins before an answer and swallows its first white space, as Phi-3's
    turn marks do, belongs to the prompt; an end mark that swallows a line break behind the answer belongs to the
    answer.

    Args:
        written: The record as text.
        processor: Holds a fast tokenizer and knows the image token.
        image_lengths: Image tokens of each picture.
        settings: Whether stop tokens are learned.
        limits: Longest sample. A picture that does not fit as a whole is left out, with all that follows.
        is_document: Whether the end-of-text token is a document's end (and not, as in some chat formats, an answer's).

    Raises:
        ValueError: If the tokenizer is not a fast one, or the text holds another number of pictures.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ValueError(f"`{type(tokenizer).__name__}` cannot say where its tokens lie in a text; use a fast one.")
    encoded = tokenizer(
        written.text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)
    is_picture = ids == processor.image_token_id
    if int(is_picture.sum()) != len(image_lengths):
        raise ValueError(
            f"The text holds {int(is_picture.sum())} `{processor.image_token}` but the record {len(image_lengths)} "
            "pictures; the chat template must write one for each and none of its own."
        )
    learned = _starts_inside(starts, written.learned) & ~np.isin(
        ids, _unlearned_ids(processor, settings=settings, is_document=is_document)
    )

    lengths = np.ones(len(ids), dtype=np.int64)
    lengths[is_picture] = image_lengths
    kept = _fitting(lengths, limits)
    copies = lengths[:kept]
    return LabelledTokens(
        input_ids=np.repeat(ids[:kept], copies),
        labels=np.repeat(np.where(learned[:kept], ids[:kept], IGNORED), copies),
        num_pictures=int(is_picture[:kept].sum()),
        is_cut=kept < len(ids),
    )


def _unlearned_ids(processor: Any, *, settings: TextSettings, is_document: bool) -> list[int]:
    tokenizer = processor.tokenizer
    unlearned = [processor.image_token_id]
    if not settings.supervise_stop_tokens:
        unlearned.append(tokenizer.get_added_vocab().get(END_OF_CHUNK_TOKEN))
        if is_document:
            unlearned.append(tokenizer.eos_token_id)
    return [token for token in unlearned if token is not None]


def _starts_inside(starts: Ids, spans: tuple[Span, ...]) -> Mask:
    """Whether each position lies in one of the spans, which are in order."""
    if not spans:
        return np.zeros(len(starts), dtype=np.bool_)
    bounds = np.asarray(spans, dtype=np.int64)
    span = np.searchsorted(bounds[:, 0], starts, side="right") - 1
    inside: Mask = (span >= 0) & (starts < bounds[np.maximum(span, 0), 1])
    return inside


def _fitting(lengths: Ids, limits: TokenLimits) -> int:
    """How many entries fit, each taking as many tokens as its length."""
    kept = len(lengths)
    if limits.max_text_tokens is not None:
        kept = min(kept, limits.max_text_tokens)
    if limits.max_tokens is not None:
        kept = min(kept, int(np.searchsorted(np.cumsum(lengths), limits.max_tokens, side="right")))
    return kept
