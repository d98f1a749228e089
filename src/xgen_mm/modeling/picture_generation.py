"""What `generate` does for pictures: each is encoded once, and none that a cache of earlier turns already holds."""

from functools import update_wrapper
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin

from ..errors import PlaceholderMismatchError
from .host import CACHE_NAME
from .released_calls import check_special_tokens, join_tiles, refuse_released_arguments


class PictureGenerationMixin(GenerationMixin):
    """The host's generation for models whose prompts hold one placeholder per image token."""

    def generate(
        self, *args: Any, past_key_values: Cache | None = None, cache: Cache | None = None, **kwargs: Any
    ) -> Any:
        """As the host's method; the cache of earlier turns may have either of its names on every version.

        `pixel_values` may also be lists of tensors, nested as one list per sample; `image_size` of the released code,
        which is (width, height), is refused.
        """
        refuse_released_arguments(kwargs)
        if kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = join_tiles(kwargs["pixel_values"])
        if past_key_values is not None and cache is not None:
            raise ValueError("Give `cache` or `past_key_values`, not both: they are two names of one argument.")
        given = past_key_values if cache is None else cache
        return super().generate(*args, **kwargs, **({} if given is None else {CACHE_NAME: given}))

    # Whoever asks for the signature gets the host's.
    update_wrapper(generate, GenerationMixin.generate)

    def update_special_tokens(self, tokenizer: Any) -> Any:
        """For scripts of the released code: returns the tokenizer, which the processor has completed already.

        Raises:
            ValueError: If the tokenizer is another one.
        """
        return check_special_tokens(tokenizer, image_token_id=self.config.image_token_id)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Encode the pictures for `generate`, those apart that the cache of earlier turns holds."""
        self._suppress_placeholders(generation_config)
        if model_input_name == "input_ids":
            self._leave_out_cached_pictures(inputs_tensor, model_kwargs)
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )

    def _suppress_placeholders(self, generation_config: GenerationConfig) -> None:
        """Never generate placeholders.

        An answer with one could not be read back as a prompt, and prompt lookup would propose the runs of them that
        prompts are full of.
        """
        suppressed = generation_config.suppress_tokens or []
        if self.config.image_token_id not in suppressed:
            generation_config.suppress_tokens = [*suppressed, self.config.image_token_id]

    def _leave_out_cached_pictures(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
        kept = self._pictures_not_cached(input_ids, model_kwargs)
        if kept is None:
            return
        pixel_values, image_sizes = model_kwargs.pop("pixel_values"), model_kwargs.pop("image_sizes", None)
        if not kept:
            return
        if pixel_values.dim() == 4:
            tiles = pixel_values.split(self.model._layout(pixel_values, image_sizes).num_tiles)
            model_kwargs["pixel_values"] = torch.cat([tiles[picture] for picture in kept])
        else:
            model_kwargs["pixel_values"] = pixel_values[kept]
        if image_sizes is not None:
            model_kwargs["image_sizes"] = torch.as_tensor(image_sizes)[kept]

    def _pictures_not_cached(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> list[int] | None:
        """Indices of the pictures that the cache does not hold; `None` if there is nothing to leave out."""
        cache, pixel_values = model_kwargs.get(CACHE_NAME), model_kwargs.get("pixel_values")
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if num_cached == 0 or pixel_values is None:
            return None
        layout = self.model._layout(pixel_values, model_kwargs.get("image_sizes"))
        return new_pictures(
            input_ids,
            image_token_id=self.config.image_token_id,
            num_image_tokens=[self.config.tokens_per_group * count for count in layout.num_groups],
            num_cached=num_cached,
        )


def gather_weights_for_pictures(model: Any) -> None:
    """Let FSDP gather the weights where `generate` encodes pictures, as it does for `forward`.

    Generation starts with the pictures, outside `forward`; FSDP would not even know yet which module is the root.

    Args:
        model: Loaded model; nothing happens unless the host spread its weights with FSDP.
    """
    if getattr(model, "_is_fsdp_managed_module", False) and model.can_generate():
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, "_maybe_prepare_encoder_kwargs_for_generation")


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
