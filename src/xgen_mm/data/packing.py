"""Several samples in one row: which ones, and how they stay strangers to one another."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch

from .collators import BadPolicy, Batch, PictureReader, TileReader, _pad_token_id, _round_up, read_pictures
from .encoding import Sample
from .labels import IGNORED


def plan_packs(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Distribute samples over rows of limited length: the longest first, each into the fullest row it fits into.

    Args:
        lengths: Tokens per sample, each at most `capacity`.
        capacity: Tokens per row.

    Returns:
        Indices of the samples of each row, in the order of the samples; rows in the order of their first sample.

    Raises:
        ValueError: If a sample is longer than a row.

    Source: best-fit decreasing, never above 11/9 of the fewest rows possible plus four (Johnson 1973).

    >>> plan_packs([6, 3, 4, 5, 2], capacity=10)
    [[0, 2], [1, 3, 4]]
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(
            f"A sample of {max(lengths)} tokens does not fit into a row of {capacity}; raise the row's length or "
            "limit samples to it (`TokenLimits(max_tokens=...)`)."
        )
    rows: list[list[int]] = []
    # Free tokens and index of every row, sorted.
    free: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            rows.append([index])
            insort(free, (capacity - lengths[index], len(rows) - 1))
        else:
            room, row = free.pop(place)
            rows[row].append(index)
            insort(free, (room - lengths[index], row))
    return sorted(sorted(row) for row in rows)


class PackingCollator:
    """Puts the samples of each pack into one row.

    Positions start anew at every sample and no attention mask is given: from that, the host keeps the samples apart,
    with a block-diagonal mask for eager and SDPA attention, and by their lengths for flash attention. It does so only
    without a cache, so the batch switches that off. The first token of a sample is not learned, because the last one
    of another sample would have to predict it; the loss of a batch is that of its samples one by one, weighted by
    their learned tokens.

    Args:
        processor: Processor of the model that is trained.
        row_length: Length of every row; `None` pads to the longest of the batch.
        flatten: Put the whole batch into one row. Flash attention needs that, because the host finds packed samples
            for it only in a batch of one.
        pictures: Where the picture part comes from; `None` decodes pictures and cuts tiles.
        on_bad_picture: As in `PaddingCollator`.
    """

    def __init__(
        self,
        processor: Any,
        *,
        row_length: int | None = None,
        flatten: bool = False,
        pictures: PictureReader | None = None,
        on_bad_picture: BadPolicy = "raise",
    ) -> None:
        if flatten and row_length is not None:
            raise ValueError("`flatten=True` makes one row of all packs; leave `row_length` out.")
        self.pad_token_id = _pad_token_id(processor.tokenizer)
        self.row_length = row_length
        self.flatten = flatten
        self.pictures = pictures or TileReader(processor)
        self.on_bad_picture = on_bad_picture

    def __call__(self, packs: Sequence[Sample] | Sequence[Sequence[Sample]]) -> Batch:
        """Make a batch, one row per pack; a list of samples is one pack.

        Returns:
            `input_ids`, `position_ids` and `labels`, shape (rows, tokens), `use_cache=False`, and what the picture
            reader gives.

        Raises:
            SampleError: If a picture is damaged and the policy is `"raise"`, or no sample is left.
            ValueError: If a pack is longer than `row_length`.
        """
        nested = [[pack] if isinstance(pack, Sample) else list(pack) for pack in packs]
        if self.flatten or (packs and isinstance(packs[0], Sample)):
            nested = [[sample for pack in nested for sample in pack]]
        flat, picture_inputs = read_pictures(
            [sample for pack in nested for sample in pack], self.pictures, on_bad_picture=self.on_bad_picture
        )
        kept = {id(sample) for sample in flat}
        rows = [[sample for sample in pack if id(sample) in kept] for pack in nested]
        rows = [row for row in rows if row]
        longest = max(sum(map(len, row)) for row in rows)
        length = _round_up(longest, self.row_length)
        if self.row_length is not None and longest > self.row_length:
            raise ValueError(f"A pack holds {longest} tokens but `row_length` is {self.row_length}.")

        input_ids = torch.full((len(rows), length), self.pad_token_id)
        labels = torch.full_like(input_ids, IGNORED)
        # What is not overwritten counts from 0 again after the last sample, so padding is a sample of its own.
        position_ids = torch.zeros_like(input_ids)
        for row, samples in enumerate(rows):
            start = 0
            for sample in samples:
                end = start + len(sample)
                input_ids[row, start:end] = torch.from_numpy(sample.input_ids)
                labels[row, start + 1 : end] = torch.from_numpy(sample.labels[1:])
                position_ids[row, start:end] = torch.arange(len(sample))
                start = end
            position_ids[row, start:] = torch.arange(length - start)
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "labels": labels,
            "use_cache": False,
            **picture_inputs,
        }
