"""One answer from a loaded model, streamed if wanted. Imports torch and transformers."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import TextStreamer

from xgen_mm.generation.stopping import stop_token_ids
from xgen_mm.processing.chat_messages import keep_as_text

from .console import UserError, log
from .loading import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen: `temperature` 0 takes the likeliest one, `num_beams` above 1 searches."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    num_beams: int = 1

    def to_generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate`; settings stored in the checkpoint do not interfere."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.temperature > 0:
            return kwargs | {"do_sample": True, "temperature": self.temperature}
        return kwargs | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Text of an answer and what it cost; `seconds` covers generation, not loading."""

    text: str
    num_image_tokens: int
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields."""
        return asdict(self)


class CallbackStreamer(TextStreamer):
    """Hands finished pieces of text to a function."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        """Stream into `write`, without the prompt and without special tokens."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self._has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass text on; white space before the answer is dropped, as in the finished text."""
        text = text if self._has_begun else text.lstrip()
        if text:
            self._has_begun = True
            self._write(text)


def encode_chat(loaded: LoadedModel, messages: list[dict[str, Any]]) -> Any:
    """Model inputs for a conversation whose content holds `image` and `text` parts.

    Args:
        loaded: Model and processor.
        messages: Turns with `role` and `content`, as chat templates take them, images in their places.
    """
    return loaded.processor.apply_chat_template(
        keep_as_text(messages, loaded.processor.image_token),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def encode_raw(loaded: LoadedModel, prompt: str, *, pictures: list[Any]) -> Any:
    """Model inputs for a prompt that is used as it is, with one `<image>` per picture."""
    return loaded.processor(text=prompt, images=pictures or None, return_tensors="pt")


def answer(
    loaded: LoadedModel, inputs: Any, *, sampling: Sampling, write: Callable[[str], None] | None = None
) -> Answer:
    """Generate one answer.

    Args:
        loaded: Model and processor.
        inputs: One encoded prompt, from `encode_chat` or `encode_raw`.
        sampling: How tokens are chosen.
        write: Receives the text piece by piece while it is generated; needs `num_beams` 1.

    Raises:
        UserError: If the accelerator runs out of memory.
    """
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    prompt_ids = inputs["input_ids"][0]
    _warn_if_too_long(model.config, len(prompt_ids) + sampling.max_new_tokens)
    streamer = None if write is None else CallbackStreamer(tokenizer, write)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            output = model.generate(
                **inputs.to(model.device),
                **sampling.to_generate_kwargs(),
                eos_token_id=stop_token_ids(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
            )
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"`{model.device}` has too little memory for {len(prompt_ids)} prompt tokens; use fewer pictures or "
            "`--device cpu`."
        ) from error
    new_ids = output[0, len(prompt_ids) :]
    return Answer(
        text=tokenizer.decode(new_ids, skip_special_tokens=True).strip(),
        num_image_tokens=int((prompt_ids == loaded.image_token_id).sum()),
        num_prompt_tokens=len(prompt_ids),
        num_new_tokens=len(new_ids),
        seconds=round(time.perf_counter() - start, 3),
    )


def _warn_if_too_long(config: Any, num_positions: int) -> None:
    context = config.text_config.max_position_embeddings
    if num_positions > context:
        log(f"Warning: prompt and answer may take {num_positions} tokens; the model was built for {context}.")
