"""What scripts for the released remote code call and pass: read where it means the same here, else refused by name."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

# Arguments of the released code, and what they are here.
_RELEASED_ARGUMENTS = {
    "image_size": "`image_sizes`, (height, width) of each image, which the processor returns",
    "vision_x": "`pixel_values`, which the processor returns",
    "lang_x": "`input_ids`, which the processor returns",
}


def refuse_released_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that only the released code knows, which the host would drop or call unused.

    Raises:
        ValueError: If there is one.
    """
    for name, ours in _RELEASED_ARGUMENTS.items():
        if name in arguments:
            order = f" {arguments[name]}, (width, height) of each image," if name == "image_size" else ""
            raise ValueError(f"`{name}`{order} is an argument of the released code; pass {ours}.")


def join_tiles(pixel_values: Any) -> Any:
    """Tile pixels as one tensor.

    Args:
        pixel_values: A tensor, which is returned as it is; an array; or tensors and arrays in lists, nested as one
            list per sample. Each holds a tile (3, S, S), the tiles of an image (tiles, 3, S, S), or those of several
            images (..., tiles, 3, S, S), as the released image processor returns them.

    Returns:
        Shape (num_images, max_tiles, 3, S, S) if all images have equally many, more than one, else (tiles, 3, S, S).

    Raises:
        ValueError: If there is something else in the lists, or tiles differ in size.
    """
    if isinstance(pixel_values, torch.Tensor) and pixel_values.dim() <= 5:
        return pixel_values
    if isinstance(pixel_values, np.ndarray) and pixel_values.ndim <= 5:
        return torch.as_tensor(pixel_values)
    images = [image for part in _tensors(pixel_values) for image in _images(part)]
    if not images:
        raise ValueError("`pixel_values` is an empty list; pass the tiles of at least one image, or leave it out.")
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(f"`pixel_values` holds tiles of shapes {sizes}; expected one shape, that of the processor.")
    counts = {image.shape[0] for image in images}
    return torch.stack(images) if len(counts) == 1 and counts != {1} else torch.cat(images)


def _tensors(pixel_values: Any) -> Iterator[torch.Tensor]:
    if isinstance(pixel_values, list | tuple):
        for part in pixel_values:
            yield from _tensors(part)
    elif isinstance(pixel_values, torch.Tensor | np.ndarray):
        yield torch.as_tensor(pixel_values)
    else:
        raise ValueError(
            f"`pixel_values` holds a `{type(pixel_values).__name__}`; expected tensors or arrays of tiles, as the "
            "processor returns them."
        )


def _images(part: torch.Tensor) -> list[torch.Tensor]:
    """Images of shape (tiles, 3, S, S)."""
    if part.dim() < 3:
        raise ValueError(
            f"`pixel_values` holds a tensor of shape {tuple(part.shape)}; expected (..., 3, S, S), as the processor "
            "returns them."
        )
    if part.dim() <= 4:
        return [part if part.dim() == 4 else part.unsqueeze(0)]
    return list(part.flatten(0, -5))


def check_special_tokens(tokenizer: Any, *, image_token_id: int) -> Any:
    """The tokenizer itself, if it has the token that images stand at.

    Args:
        tokenizer: Any tokenizer of the host.
        image_token_id: Id of `<image>` in the model's configuration.

    Raises:
        ValueError: If `<image>` is another token of it, or none.
    """
    found = tokenizer.convert_tokens_to_ids("<image>")
    if found != image_token_id:
        known = "no token `<image>`" if found in (None, tokenizer.unk_token_id) else f"`<image>` at {found}"
        raise ValueError(
            f"The tokenizer has {known}, but the model reads images at {image_token_id}; take the tokenizer of "
            "`AutoProcessor.from_pretrained(...)`, which needs no `update_special_tokens`."
        )
    return tokenizer
