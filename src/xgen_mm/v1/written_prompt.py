"""The prompt as it was written, rebuilt from model inputs that hold one placeholder per image token.

The v1 resampler reads the prompt with a single `<image>` per picture and with the padding of the batch before
expansion. Model inputs have neither: a picture is a run of placeholders, and rows are padded to the longest expanded
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPrompts:
    """Prompts of a batch, as the resampler reads them.

    Attributes:
        embeds: Embeddings, shape (batch, prompt_tokens, hidden_size), rows padded to the longest prompt.
        mask: Bool, shape (batch, prompt_tokens), `False` on that padding.
        row_of_image: Long, shape (num_images,): the row of the batch that each picture stands in.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    row_of_image: torch.Tensor


def written_prompts(
    inputs_embeds: torch.Tensor,
    *,
    is_image_token: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tokens_per_image: Sequence[int],
    filler: torch.Tensor,
    max_tokens: int,
) -> WrittenPrompts:
    """Rebuild the written prompts of a batch.

    Args:
        inputs_embeds: Embeddings of the model inputs, shape (batch, sequence, hidden_size).
        is_image_token: Bool, shape (batch, sequence), `True` on placeholders; as many as `tokens_per_image` adds up
            to.
        attention_mask: Shape (batch, sequence), 1 on real tokens; `None` (or one that is not two-dimensional) if there
            is no padding.
        tokens_per_image: Placeholders of each picture of the batch, in order. Only they can tell two pictures that
            stand side by side from one.
        filler: Embedding of the padding token, shape (hidden_size,).
        max_tokens: Prompts are cut to their first so many tokens, padding included.

    Returns:
        The prompts. Rows are padded on the side that the inputs are padded on, on the left if they are not padded.
    """
    device = inputs_embeds.device
    is_real = torch.ones_like(is_image_token)
    if attention_mask is not None and attention_mask.dim() == 2:
        # With a cache the mask covers earlier positions as well.
        is_real = attention_mask[:, -is_image_token.shape[1] :].to(device).bool()
    # Number of each placeholder among those of the whole batch; a picture keeps its first one.
    number = is_image_token.flatten().cumsum(0).view_as(is_image_token) - 1
    first_numbers = torch.tensor([0, *tokens_per_image], device=device).cumsum(0)[:-1]
    is_first = is_image_token & torch.isin(number, first_numbers)
    is_written = is_real & (is_first | ~is_image_token)

    lengths = is_written.sum(1)
    longest = int(lengths.max())
    embeds = filler.to(inputs_embeds.dtype).repeat(len(inputs_embeds), longest, 1)
    places = torch.arange(longest, device=device)
    is_padded_right = not bool(is_real[:, -1].all())
    mask = places < lengths[:, None] if is_padded_right else places >= longest - lengths[:, None]
    # Row by row, both masks select equally many places.
    embeds = embeds.masked_scatter(mask.unsqueeze(-1), inputs_embeds[is_written])
    return WrittenPrompts(
        embeds=embeds[:, :max_tokens], mask=mask[:, :max_tokens], row_of_image=is_first.nonzero()[:, 0]
    )
