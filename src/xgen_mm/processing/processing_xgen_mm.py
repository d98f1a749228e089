"""Processor of xGen-MM: text and pictures become model inputs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessorMixin

from ..errors import PlaceholderMismatchError
from .chat_template import build_chat_template
from .released_processor import (
    complete_tokenizer,
    drop_placeholders,
    read_processor_settings,
    released_chat_template,
)


class XGenMMProcessor(ProcessorMixin):
    """Expands each `<image>` of the text to as many image tokens as its picture costs, and prepares the tiles.

    Call it with `text` and `images`, or use `apply_chat_template` with messages whose content holds `image` and `text`
    parts in any order. Padding is on the left, as generation needs it; pass `padding_side="right"` for training.

    Args:
        image_processor: Cuts pictures into tiles.
        tokenizer: Tokenizer that knows `image_token` as one token.
        chat_template: Jinja template; `None` builds the package's own for this tokenizer.
        num_latents: Image tokens per tile (128 for the released checkpoints).
        tile_grouping: As in `XGenMMConfig`; with `"image"` a picture costs `num_latents` tokens whatever its tiles.
        image_token: Placeholder of a picture in the text.
        **kwargs: Passed on to the host's processor class.

    Raises:
        ValueError: If the tokenizer does not know `image_token`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        num_latents: int = 128,
        tile_grouping: str = "raster_chunks",
        image_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        """Store the parts; see the class for the arguments."""
        self.num_latents = num_latents
        self.tile_grouping = tile_grouping
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer has no token `{image_token}`; add it with "
                f"`tokenizer.add_tokens(['{image_token}'], special_tokens=True)` and resize the model's embeddings."
            )
        if chat_template is None:
            chat_template = build_chat_template(tokenizer.get_added_vocab())
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    # Set by the package, as for the models: writes the code and returns `auto_map`.
    code_writer: Callable[[Path, Any], dict[str, str]] | None = None

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        with_code: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Save the processor, with the code that loads it where this package is missing.

        Args:
            save_directory: Where to save.
            push_to_hub: As in the host's method.
            with_code: Whether to write the code; a processor without it loads where `xgen_mm` is imported.
            **kwargs: Further arguments of the host's method.
        """
        if self.code_writer is None:
            return super().save_pretrained(save_directory, push_to_hub, **kwargs)
        parts = (self, self.image_processor)
        for part in parts:
            vars(part).pop("auto_map", None)
        if with_code:
            os.makedirs(save_directory, exist_ok=True)
            self.auto_map = self.code_writer(Path(save_directory), self)
            name = "AutoImageProcessor"
            self.image_processor.auto_map = {name: self.auto_map[name]} if name in self.auto_map else None
        try:
            return super().save_pretrained(save_directory, push_to_hub, **kwargs)
        finally:
            for part in parts:
                vars(part).pop("auto_map", None)

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the processor's settings.

        A released directory has no file of them; there they come from its `config.json`.
        """
        settings, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "num_latents" not in settings:
            released = read_processor_settings(str(pretrained_model_name_or_path), **kwargs)
            settings = released | settings | {"is_released": bool(released)}
        return settings, unused

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the processor from its parts; those of a released directory are completed first."""
        processor_dict = dict(processor_dict)
        if processor_dict.pop("is_released", False):
            image_processor, tokenizer = args
            complete_tokenizer(tokenizer)
            template = released_chat_template(tokenizer, is_tiled=image_processor.image_aspect_ratio == "anyres")
            # Serving engines ask the tokenizer instead of the processor.
            tokenizer.chat_template = processor_dict.setdefault("chat_template", template)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def prepare_inputs_layout(self, images: ImageInput | None = None, text: Any = None, **kwargs: Any) -> Any:
        """Bring inputs into the host's form; the placeholders that released base prompts write out are taken out."""
        return super().prepare_inputs_layout(images=images, text=drop_placeholders(text), **kwargs)

    def validate_inputs(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check that every text holds as many `<image>` as it has pictures.

        Raises:
            PlaceholderMismatchError: If a count differs; sample by sample where `images` is one list per text.
        """
        if text is not None and all(isinstance(sample, str) for sample in text):
            samples = [text] if isinstance(text, str) else text
            in_text = [sample.count(self.image_token) for sample in samples]
            given = _count_images(images, len(samples))
            if given != in_text and (len(given) == len(in_text) or sum(given) != sum(in_text)):
                raise PlaceholderMismatchError(
                    # Callers of the host's processors look for this wording.
                    f"`{self.image_token}` tokens in the prompts should be the same as the number of images: "
                    f"`text` holds {_total(in_text)} `{self.image_token}` but {_total(given)} images were passed. "
                    f"Write one `{self.image_token}` where each picture belongs; for a batch, pass one list of images "
                    "per text."
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Text that takes the place of one `<image>`: a placeholder per image token."""
        sizes = image_inputs.get("image_sizes")
        if sizes is None:
            return self.image_token * self.num_latents
        height, width = (int(side) for side in sizes[image_idx])
        return self.image_token * self._num_image_tokens(height, width, kwargs)

    def _get_num_multimodal_tokens(
        self, image_sizes: list[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Image tokens per picture from sizes alone, for serving engines that plan before they load a picture."""
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )["images_kwargs"]
        counts = [self._num_image_tokens(height, width, images_kwargs) for height, width in image_sizes]
        # One row of `pixel_values` per picture, whatever its tiles.
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def _num_image_tokens(self, height: int, width: int, images_kwargs: dict[str, Any]) -> int:
        if self.tile_grouping == "image":
            return self.num_latents
        return self.num_latents * self.image_processor.get_number_of_image_patches(height, width, images_kwargs)


def _count_images(images: ImageInput | None, num_texts: int) -> list[int]:
    """Pictures per text if `images` is nested, else their total."""
    if images is None:
        return [0] * num_texts
    if not isinstance(images, (list, tuple)):
        return [1]
    if all(isinstance(sample, (list, tuple)) for sample in images):
        return [len(sample) for sample in images]
    return [len(images)]


def _total(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts} (per sample)"
