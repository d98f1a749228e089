"""Processor of xGen-MM: text and pictures become model inputs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessorMixin

from ..errors import PlaceholderMismatchError
from .call_arguments import sorted_arguments
from .chat_messages import ChatError, read_conversations
from .chat_template import build_chat_template
from .image_loading import arrange_images
from .placeholder_ids import expand, read_shape, repeats_of, short_kwargs
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
        num_latents: Image tokens per tile, whatever connector makes them: `tokens_per_group` of the model's
            configuration (128 for the released checkpoints).
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

    def __call__(
        self, images: ImageInput | None = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare texts and pictures for the model.

        Args:
            images: Pictures, as the image processor takes them; for several texts, one list per text.
            text: One text or a list of texts, each with one `<image>` per picture.
            videos: Not known to these models.
            audio: Not known to these models.
            **kwargs: Arguments of the tokenizer and of the image processor, as the host sorts them, such as
                `return_tensors`, `padding`, `max_tiles`; and `max_image_tokens`, the most image tokens that a picture
                may cost, which limits its tiles.

        Returns:
            `input_ids` and `attention_mask` of shape (batch, sequence); with pictures also `pixel_values` and, for
            tiled pictures, `image_sizes`.

        Raises:
            PlaceholderMismatchError: If a text has more or fewer `<image>` than pictures.
            ValueError: If `truncation` would cut through the image tokens of a picture, or a limit allows no tiles.
        """
        kwargs = self._with_tile_budget(kwargs)
        images = arrange_images(images)
        prepared = None
        is_plain = videos is None and audio is None and not kwargs.get("sanitize_control_tokens")
        if images is not None and text is not None and is_plain:
            images, text, *_ = self.prepare_inputs_layout(images=images, text=text, **kwargs)
            prepared = self._insert_ids(images, text, **kwargs)
        if prepared is not None:
            return prepared
        return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def _insert_ids(self, images: ImageInput, text: list[str], **kwargs: Any) -> BatchFeature | None:
        """The host's call without writing out the image tokens; `None` where an argument needs them written out."""
        self.validate_inputs(images=images, text=text, **kwargs)
        merged = sorted_arguments(self, kwargs, sort=lambda: self._sort_arguments(kwargs))
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        shape = read_shape(self.tokenizer, text_kwargs)
        if shape is None:
            return None
        # Versions of the host differ in where these two are.
        wants_types, wants_replacements = (
            text_kwargs.get(name, merged.get(name, False))
            for name in ("return_mm_token_type_ids", "return_text_replacement_offsets")
        )
        encoding = self.tokenizer(text, **short_kwargs(text_kwargs))
        pictures = self.image_processor(images, **images_kwargs)
        counts = self._count_image_tokens(pictures, images_kwargs)
        repeats = repeats_of(encoding["input_ids"], image_token_id=self.image_token_id, counts=counts)
        if repeats is None or shape.cuts([int(row.sum()) for row in repeats]):
            return None
        tensor_type = text_kwargs.get("return_tensors")
        data = expand(
            encoding,
            repeats=repeats,
            shape=shape,
            tokenizer=self.tokenizer,
            image_token_length=len(self.image_token),
            tensor_type=tensor_type,
        )
        if wants_replacements:
            written = [self.image_token * count for count in counts]
            data["text_replacement_offsets"] = self.get_text_with_replacements(list(text), written)[1]
        if wants_types:
            data["mm_token_type_ids"] = self.create_mm_token_type_ids(data["input_ids"])
        return BatchFeature(
            data | dict(pictures), tensor_type=tensor_type, skip_tensor_conversion=self.skip_tensor_conversion
        )

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Write a conversation as a prompt, and with `tokenize=True` prepare it for the model.

        Args:
            conversation: Messages `{"role", "content"}`, or a list of such lists. A content is a text, or a list of
                parts: `{"type": "text", "text"}` and `{"type": "image"}` with the picture as `image`, `url`, `path` or
                `base64`; `input_text`, `input_image` and `image_url` parts of web interfaces are read likewise. Where
                all images come first and the texts hold one `<image>` for each, as in training data, the images go
                there.
            chat_template: Template, or name of one of several; `None` takes the processor's own.
            **kwargs: Arguments of the host's method, such as `add_generation_prompt`, `tokenize`, `return_dict`,
                `return_tensors`, and `processor_kwargs` for those of a call.

        Returns:
            The prompt; with `tokenize=True` its ids, and with `return_dict=True` what a call returns.

        Raises:
            TypeError: If a message, its content or a part is of another type than expected.
            ValueError: If a message cannot be written, or only with something missing.
        """
        beside = kwargs.get("images", (kwargs.get("processor_kwargs") or {}).get("images"))
        num_images = None if beside is None else _count_images(beside, 1)
        conversation = read_conversations(conversation, image_token=self.image_token, num_images=num_images)
        try:
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        except ChatError:
            raise
        except TemplateError as error:
            raise ChatError(f"{error}") from error

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
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a processor; arguments as in the host's method.

        Nobody is asked whether code of the checkpoint may run: without `trust_remote_code=True` it does not.
        """
        return super().from_pretrained(
            pretrained_model_name_or_path, trust_remote_code=bool(trust_remote_code), **kwargs
        )

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
        return self.image_token * self._num_image_tokens([(height, width)], kwargs)[0]

    def _get_num_multimodal_tokens(
        self, image_sizes: list[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Image tokens per picture from sizes alone, for serving engines that plan before they load a picture."""
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._sort_arguments(self._with_tile_budget(kwargs))["images_kwargs"]
        counts = self._num_image_tokens([(int(height), int(width)) for height, width in image_sizes], images_kwargs)
        # One row of `pixel_values` per picture, whatever its tiles.
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def _sort_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        return merged

    def _count_image_tokens(self, pictures: Any, images_kwargs: dict[str, Any]) -> list[int]:
        """Image tokens of each processed picture."""
        sizes = pictures.get("image_sizes")
        if sizes is None:
            return [self.num_latents] * len(pictures["pixel_values"])
        sizes = sizes.tolist() if hasattr(sizes, "tolist") else sizes
        return self._num_image_tokens([(int(height), int(width)) for height, width in sizes], images_kwargs)

    def _num_image_tokens(self, image_sizes: list[tuple[int, int]], images_kwargs: dict[str, Any]) -> list[int]:
        """Image tokens of pictures of these (height, width)."""
        if self.tile_grouping == "image":
            return [self.num_latents] * len(image_sizes)
        return [self.num_latents * count for count in self.image_processor.count_tiles(image_sizes, images_kwargs)]

    def _with_tile_budget(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments with `max_image_tokens` turned into `max_tiles`, which the image processor knows."""
        max_image_tokens = kwargs.get("max_image_tokens")
        kwargs = {name: value for name, value in kwargs.items() if name != "max_image_tokens"}
        if max_image_tokens is None:
            return kwargs
        if max_image_tokens < self.num_latents:
            raise ValueError(
                f"`max_image_tokens` is {max_image_tokens}, but a tile costs {self.num_latents} image tokens; give at "
                "least as many for each tile of the smallest canvas and the thumbnail, or `None` for no limit."
            )
        if self.tile_grouping != "image":
            limits = (kwargs.get("max_tiles"), max_image_tokens // self.num_latents)
            kwargs["max_tiles"] = min(limit for limit in limits if limit is not None)
        return kwargs


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
