"""Processor of BLIP3-o: captions, chats and images become model inputs, drawn pixels become images."""

from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_blip3o import Blip3oImageProcessor

CAPTION_PROMPT = "Please generate image based on the following caption: {caption}"
RECONSTRUCTION_PROMPT = "\nPlease reconstruct the given image."
SYSTEM_MESSAGE = "You are a helpful assistant."
Template = Literal["inference", "training", "none"]


class Blip3oProcessor(ProcessorMixin):
    """Writes the prompts of both modes.

    In text mode it is the language model's processor: call it with `text` and `images`, or use
    `apply_chat_template`; padding is on the left. In image mode `text` holds captions, and each prompt ends in
    `image_start_token` and `num_queries` placeholders of query vectors; padding is on the right.

    Args:
        image_processor: Prepares images in prompts for the language model; `None` if it takes none.
        tokenizer: The language model's tokenizer; it knows the three tokens below.
        target_image_processor: Prepares images that are to be drawn for the feature tower; `None` is the released one.
        chat_template: Jinja template; `None` takes the tokenizer's.
        num_queries: As in `Blip3oConfig`.
        max_prompt_length: Most tokens of a prompt in image mode, placeholders included; longer texts lose their end,
            the begin of the answer included, as in training.
        system_message: System message of image prompts; `None` writes none.
        image_token: Placeholder of an image in the text.
        image_start_token: Stands between prompt and queries.
        query_token: Placeholder of a query vector.

    Raises:
        ValueError: If the tokenizer lacks a token, or prompts leave no room for text.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        target_image_processor: Any = None,
        chat_template: str | None = None,
        num_queries: int = 64,
        max_prompt_length: int = 512,
        system_message: str | None = SYSTEM_MESSAGE,
        image_token: str = "<|image_pad|>",
        image_start_token: str = "[IMG]",
        query_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        """Store the parts; see the class for the arguments."""
        if target_image_processor is None:
            target_image_processor = Blip3oImageProcessor()
        self.num_queries = num_queries
        self.max_prompt_length = max_prompt_length
        self.system_message = system_message
        self.image_token = image_token
        self.image_start_token = image_start_token
        self.query_token = query_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self._suffix = [_known_id(tokenizer, image_start_token)] + [_known_id(tokenizer, query_token)] * num_queries
        if max_prompt_length <= len(self._suffix):
            raise ValueError(
                f"`max_prompt_length` is {max_prompt_length}, of which placeholders take {len(self._suffix)}; give "
                "more."
            )
        super().__init__(
            # The host asks for every part; one that is not asked to prepare prompts does no harm.
            target_image_processor if image_processor is None else image_processor,
            tokenizer,
            target_image_processor,
            chat_template=chat_template or getattr(tokenizer, "chat_template", None),
            **kwargs,
        )

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        generation_mode: str = "text",
        template: Template = "inference",
        target_images: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare model inputs.

        Args:
            images: Images in the prompts, as the image processor takes them. In image mode one per prompt, which is
                asked to be drawn again; then no text is needed.
            text: One text or several; captions in image mode.
            videos: Not known to these models.
            audio: Not known to these models.
            generation_mode: `"text"` or `"image"`.
            template: What captions are written into: `"inference"` is what the released models draw from,
                `"training"` what they were trained on, which closes the empty answer before the queries; `"none"`
                takes texts as they are, for example chats that are written out already.
            target_images: Images to be drawn, for training; give `target_pixel_values`.
            **kwargs: Arguments of the tokenizer and the image processor, as the host sorts them. In image mode, rows
                are always cut to `max_length` (`max_prompt_length` if it is not given) and padded.

        Returns:
            `input_ids` and `attention_mask` of shape (batch, sequence), and what the images give.

        Raises:
            ValueError: If a mode or template is unknown, images are given to a language model that takes none, or a
                caption holds special tokens.
        """
        if images is not None and not self._takes_images:
            raise ValueError("`images` are given, but the language model takes none; leave them out.")
        if generation_mode == "text":
            kwargs.setdefault("padding_side", "left")
            if self._takes_images:
                kwargs.setdefault("return_mm_token_type_ids", True)
            inputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        elif generation_mode == "image":
            inputs = self._image_prompts(images, text, template=template, **kwargs)
        else:
            raise ValueError(f'`generation_mode` is {generation_mode!r}; expected "text" or "image".')
        if target_images is not None:
            targets = self.target_image_processor(target_images, return_tensors="pt")
            inputs["target_pixel_values"] = targets["pixel_values"]
        return inputs

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Text that takes the place of one image: a placeholder per cell of the language model's feature map."""
        cells = int(image_inputs["image_grid_thw"][image_idx].prod()) // self.image_processor.merge_size**2
        return self.image_token * cells

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[str] | list[Image.Image]:
        """Turn what `generate` returned into texts or images.

        Args:
            generated_outputs: Token ids, shape (batch, sequence); or pixels from 0 to 1, shape
                (images, 3, height, width), or the output that holds them.
            skip_special_tokens: Whether special tokens of texts are left out.
            generation_mode: `"text"` (as is `None`) or `"image"`.
            **kwargs: Passed on to the tokenizer.

        Raises:
            ValueError: If the mode is unknown, or there are features instead of pixels.
        """
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(
                generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
            )
        if generation_mode != "image":
            raise ValueError(f'`generation_mode` is {generation_mode!r}; expected "text" or "image".')
        pixels = getattr(generated_outputs, "pixel_values", generated_outputs)
        if pixels is None or pixels.ndim != 4 or pixels.shape[1] != 3:
            found = "none" if pixels is None else f"shape {tuple(pixels.shape)}"
            raise ValueError(
                f"Expected pixels of shape (images, 3, height, width), found {found}. A model without pixel decoder "
                "draws features only; give `generate` a `pixel_decoder`."
            )
        levels = (pixels.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in levels]

    @classmethod
    def get_processor_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the settings; a released directory has none of the preparation of targets. Arguments are the host's."""
        settings, unused = super().get_processor_dict(*args, **kwargs)
        settings.setdefault("target_image_processor", Blip3oImageProcessor().to_dict())
        return settings, unused

    @property
    def _takes_images(self) -> bool:
        return hasattr(self.image_processor, "merge_size")

    def _image_prompts(self, images: Any, text: Any, *, template: Template, **kwargs: Any) -> BatchFeature:
        if template not in ("inference", "training", "none"):
            raise ValueError(f'`template` is {template!r}; expected "inference", "training" or "none".')
        if template != "none":
            text = self._written(images, text, is_training=template == "training")
            # The template wrote them.
            kwargs["add_special_tokens"] = False
        tensor_type = kwargs.pop("return_tensors", "pt")
        max_length, num_slots = kwargs.pop("max_length", self.max_prompt_length), len(self._suffix)
        if max_length <= num_slots:
            raise ValueError(f"`max_length` is {max_length}, of which placeholders take {num_slots}; give more.")
        # All rows are padded, on the right, and cut.
        for name in ("padding", "padding_side", "truncation"):
            kwargs.pop(name, None)
        inputs = super().__call__(
            images=images,
            text=[text] if isinstance(text, str) else text,
            truncation=True,
            max_length=max_length - num_slots,
            padding=False,
            **kwargs,
        )
        ids = [list(row) for row in inputs.pop("input_ids")]
        inputs.pop("attention_mask", None)
        if any(self._suffix[-1] in row for row in ids):
            raise ValueError(f"A text holds `{self.query_token}`, which stands for a query vector; take it out.")
        padded = self.tokenizer.pad(
            {"input_ids": [row + self._suffix for row in ids]}, padding=True, padding_side="right"
        )
        data = dict(inputs) | {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        return BatchFeature(data, tensor_type=tensor_type)

    def _written(self, images: Any, text: str | Sequence[str] | None, *, is_training: bool) -> list[str]:
        given = {name: value for name, value in (("text", text), ("images", images)) if value is not None}
        if len(given) != 1 or any(isinstance(value, (list, tuple)) and not value for value in given.values()):
            raise ValueError(
                f"Given are {' and '.join(given) or 'neither `text` nor `images`'}; give captions to draw, or images "
                'to draw again, at least one. Whole prompts with images go with `template="none"`.'
            )
        if text is None:
            parts = [{"type": "image"}, {"type": "text", "text": RECONSTRUCTION_PROMPT}]
            contents: list[Any] = [parts] * (len(images) if isinstance(images, (list, tuple)) else 1)
        else:
            captions = [text] if isinstance(text, str) else list(text)
            # Those that mark turns and images; texts are no place for them.
            markers = sorted({*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()})
            for caption in captions:
                found = [token for token in markers if token in caption]
                if found:
                    raise ValueError(
                        f"The caption {caption!r} holds the special token `{found[0]}`; take it out, or give whole "
                        'prompts with `template="none"`.'
                    )
            contents = [CAPTION_PROMPT.format(caption=caption) for caption in captions]
        system = [] if self.system_message is None else [{"role": "system", "content": self.system_message}]
        answer = [{"role": "assistant", "content": ""}] if is_training else []
        return [
            self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": content}, *answer],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=not is_training,
            )
            for content in contents
        ]


def _known_id(tokenizer: Any, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(
            f"The tokenizer has no token `{token}`; add it with `tokenizer.add_tokens(['{token}'], "
            "special_tokens=True)` and resize the model's embeddings."
        )
    return int(found)
