"""A conversation that computes every turn and every picture once."""

import os
from typing import Any, TypeAlias

import torch

from ..modeling.host import CACHE_NAME
from ..processing.chat_messages import keep_as_text

Part: TypeAlias = Any


class ChatSession:
    """A conversation with one model, whose earlier turns stay in the model's cache.

    A turn costs its own new text and pictures, however long the conversation is. Answers are the same as if the
    whole conversation were computed anew.

    Args:
        model: Any model of this package, or of transformers with the same interface.
        processor: Its processor.
        system_prompt: Put first; `None` leaves it to the chat template.
        **generation: Arguments of `generate` for every turn, such as `max_new_tokens`.

    Example:
        >>> session = ChatSession(model, processor, max_new_tokens=64)  # doctest: +SKIP
        >>> session.send(Image.open("chart.png"), "What does the chart show?")  # doctest: +SKIP
        >>> session.send("And in which year was it highest?")  # doctest: +SKIP
    """

    def __init__(self, model: Any, processor: Any, *, system_prompt: str | None = None, **generation: Any) -> None:
        """Start an empty conversation; see the class for the arguments."""
        self.model = model
        self.processor = processor
        self.generation = generation
        self.system_prompt = system_prompt
        self.messages: list[dict[str, Any]] = []
        self._cache: Any = None
        self._cached_ids = torch.empty(0, dtype=torch.long)
        self.restart()

    def restart(self) -> None:
        """Begin a new conversation with the same settings.

        `messages` may be edited between turns, and the cache is cut where the text differs. An exchanged picture is
        not noticed, because all pictures have the same placeholders: restart instead.
        """
        self.messages = []
        if self.system_prompt is not None:
            self.messages.append(_message("system", [{"type": "text", "text": self.system_prompt}]))
        self._forget()

    @property
    def num_cached_tokens(self) -> int:
        """Positions of the conversation that the cache holds."""
        return len(self._cached_ids)

    def send(self, *parts: Part, **generation: Any) -> str:
        """Say something and get the answer.

        Args:
            *parts: Text (strings) and pictures (anything else: path objects, PIL images, arrays, tensors) in order.
            **generation: Arguments of `generate` for this turn.

        Returns:
            The answer's text. It and the turn are added to `messages`; if the call fails, neither is.
        """
        messages = [*self.messages, _message("user", [_content(part) for part in parts])]
        inputs = self.processor.apply_chat_template(
            self._with_images_in_place(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        ids = inputs["input_ids"][0].cpu()
        self._keep_common_start(ids)
        try:
            outputs = self.model.generate(
                **inputs,
                **({CACHE_NAME: self._cache} if self._cache is not None else {}),
                **{**self.generation, **generation},
                return_dict_in_generate=True,
            )
        except BaseException:
            # The cache may have grown by a part of the turn.
            self._forget()
            raise
        self._cache = getattr(outputs, CACHE_NAME)
        sequence = outputs.sequences[0].cpu()
        self._cached_ids = sequence[: self._cache.get_seq_length()]
        answer: str = self.processor.decode(sequence[len(ids) :], skip_special_tokens=True).strip()
        self.messages = [*messages, _message("assistant", [{"type": "text", "text": answer}])]
        return answer

    def _with_images_in_place(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in which `<image>` stays text where it is spelled out: a later turn must not move images."""
        image_token = getattr(self.processor, "image_token", None)
        return messages if image_token is None else keep_as_text(messages, image_token)

    def _keep_common_start(self, ids: torch.Tensor) -> None:
        """Cut the cache where the conversation is not what it holds, as after an answer that was cut off."""
        if self._cache is None:
            return
        # The last token is computed in any case: its scores are wanted.
        length = min(len(ids) - 1, len(self._cached_ids))
        differs = (ids[:length] != self._cached_ids[:length]).nonzero()
        common = int(differs[0]) if len(differs) else length
        image_token_id = self.model.config.image_token_id
        while common and ids[common] == image_token_id and ids[common - 1] == image_token_id:
            common -= 1
        if common == len(self._cached_ids):
            return
        try:
            self._cache.crop(common - len(self._cached_ids))
            self._cached_ids = self._cached_ids[:common]
        except (ValueError, RuntimeError, NotImplementedError, AttributeError):
            # A sliding window that has moved on cannot go back.
            self._forget()

    def _forget(self) -> None:
        self._cache, self._cached_ids = None, torch.empty(0, dtype=torch.long)


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, os.PathLike):
        return {"type": "image", "path": os.fspath(part)}
    return {"type": "image", "image": part}
