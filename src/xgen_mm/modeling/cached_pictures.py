"""Which pictures of a conversation a cache of earlier turns already holds."""

import torch

from ..errors import PlaceholderMismatchError


def new_pictures(
    input_ids: torch.LongTensor, *, image_token_id: int, num_image_tokens: list[int], num_cached: int
) -> list[int]:
    """Find the pictures whose image tokens are not in the cache yet.

    Args:
        input_ids: Ids of the whole conversations, shape (batch, sequence).
        image_token_id: Id of the placeholder that stands once per image token.
        num_image_tokens: Image tokens of each picture, in the order of the prompts.
        num_cached: Positions that the cache holds, the same for every row.

    Returns:
        Indices of the new pictures, in order; all of them if rows and pictures do not fit together, which the model
        reports when it merges them.

    Raises:
        PlaceholderMismatchError: If the cache ends inside a picture.
    """
    is_image = input_ids == image_token_id
    in_row, in_cache = is_image.sum(1).tolist(), is_image[:, :num_cached].sum(1).tolist()
    pictures = list(range(len(num_image_tokens)))
    found, picture = [], 0
    for row, (total, cached) in enumerate(zip(in_row, in_cache, strict=True)):
        seen = 0
        while seen < total:
            if picture == len(pictures):
                return pictures
            end = seen + num_image_tokens[picture]
            if seen < cached < end:
                raise PlaceholderMismatchError(
                    f"The cache holds {num_cached} positions and so ends inside a picture of row {row} "
                    f"({cached - seen} of its {num_image_tokens[picture]} image tokens); crop it to the picture's "
                    "start."
                )
            if seen >= cached:
                found.append(picture)
            seen, picture = end, picture + 1
    return found if picture == len(pictures) else pictures
