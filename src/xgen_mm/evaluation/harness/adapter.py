"""Requests of harnesses, drawn up into batches for a model.

Knows no harness. Prompts are drawn from in windows, so that only few pictures are open at a time; within a window,
prompts of like length share a batch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...data.records import Picture
from ..answering import limit_tiles
from ..prompted_model import GenerationSettings, ModelReply, PromptedModel
from ..prompts import END_OF_CHUNK, WrittenPrompt
from ..runner import plan_batches
from ..task import Style
from ..thumbnails import write_thumbnail
from .halving import run_halving
from .messages import Message, PromptFormat, write_messages

logger = logging.getLogger(__name__)

DEFAULT_MAX_BATCH_TOKENS = 16_384
_WINDOW = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt.

    Attributes:
        load: Returns the conversation; called once, when it is the prompt's turn, so that pictures are opened late.
        settings: How to reply.
        continuation: A reply whose likelihood is wanted; `None` to have one generated.
        name: What messages call it.
    """

    load: Callable[[], Sequence[Message]]
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    continuation: str | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(ModelReply):
    """What came of a request.

    Attributes:
        prompt: What the model was asked, with one `<image>` per picture.
        pictures: Names of thumbnails, relative to the run's directory.
        error: What went wrong; the other fields are empty then.
    """

    prompt: str = ""
    pictures: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """A request whose turn it is."""

    request: Request
    prompt: WrittenPrompt
    thumbnails: tuple[str, ...]
    num_tokens: int

    def kind(self) -> tuple[object, ...]:
        """What must be equal within a batch; the processor wants pictures for all its prompts or for none."""
        return (self.request.settings, self.request.continuation is not None, bool(self.prompt.pictures))


class ModelAdapter:
    """A model that replies to many prompts.

    Args:
        model: Any model of this package.
        processor: Its processor.
        max_batch_tokens: Most prompt tokens of a batch, image tokens and padding included.
        max_batch_rows: Most prompts of a batch; `None` leaves it to `max_batch_tokens`.
        prompt_format: `chat`, `text` (base models, without chat template), or `auto`: text where a prompt is to stop
            at `<|endofchunk|>`, which no chat does, and chat elsewhere.
        system_prompt: Put first where a conversation has none; `None` leaves it to the chat template.
        max_tiles: Most tiles of a picture, thumbnail included; `None` for those of the checkpoint. Model and
            processor are changed.
        thumbnails_dir: Directory of the run that gets small copies of the pictures; `None` for none.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        max_batch_rows: int | None = None,
        prompt_format: PromptFormat = "auto",
        system_prompt: str | None = None,
        max_tiles: int | None = None,
        thumbnails_dir: Path | None = None,
    ) -> None:
        """Prepare; see the class for the arguments."""
        if prompt_format not in ("auto", "chat", "text"):
            raise ValueError(f"`prompt_format` is {prompt_format!r}; expected `auto`, `chat` or `text`.")
        if max_batch_tokens < 1 or (max_batch_rows is not None and max_batch_rows < 1):
            raise ValueError(
                f"`max_batch_tokens` is {max_batch_tokens} and `max_batch_rows` is {max_batch_rows}; "
                "both must be at least 1."
            )
        self._prompted = PromptedModel(model, processor)
        self.prompt_format = prompt_format
        self.system_prompt = system_prompt
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_rows = self._prompted.max_batch_size or max_batch_rows
        self._thumbnails_dir = thumbnails_dir
        self._max_tiles = max_tiles
        if max_tiles is not None:
            limit_tiles(model, processor, max_tiles)

    @property
    def model(self) -> Any:
        """The model."""
        return self._prompted.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self._prompted.processor

    def settings(self) -> dict[str, Any]:
        """What decides the replies, beside model and prompts."""
        return {
            "prompt_format": self.prompt_format,
            "system_prompt": self.system_prompt,
            "max_tiles": self._max_tiles,
            "max_batch_tokens": self._max_batch_tokens,
            "max_batch_rows": self._max_batch_rows,
            "with_pictures": self._thumbnails_dir is not None,
        }

    def replies(
        self, requests: Sequence[Request], *, known: Mapping[int, Reply] | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """Reply to prompts, batch by batch.

        A prompt that fails gets a reply with an `error`; the others do not suffer.

        Args:
            requests: Prompts to reply to, or to score a continuation of.
            known: Replies of an earlier run by position. A batch that is not known as a whole is computed again as a
                whole, because rounding depends on a prompt's neighbours.

        Yields:
            Position among the requests, and reply; every position once, in the order in which they are done.
        """
        known = known or {}
        positions = iter(range(len(requests)))
        while window := list(islice(positions, _WINDOW)):
            if all(position in known for position in window):
                yield from ((position, known[position]) for position in window)
            else:
                yield from self._window(requests, window, known)

    def reply_all(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        found = dict(self.replies(requests))
        return [found[position] for position in range(len(requests))]

    def _window(
        self, requests: Sequence[Request], positions: Sequence[int], known: Mapping[int, Reply]
    ) -> Iterator[tuple[int, Reply]]:
        drawn: dict[int, _Drawn] = {}
        for position in positions:
            try:
                drawn[position] = self._draw(requests[position])
            except Exception as error:
                yield position, _failure(requests[position], error)
        places = list(drawn)
        batches = plan_batches(
            [item.num_tokens for item in drawn.values()],
            kinds=[item.kind() for item in drawn.values()],
            budget=self._max_batch_tokens,
            num_new=0,
            max_size=self._max_batch_rows,
        )
        for batch in batches:
            members = [places[index] for index in batch]
            if all(member in known for member in members):
                yield from ((member, known[member]) for member in members)
            else:
                yield from self._run_batch({member: drawn[member] for member in members}).items()

    def _draw(self, request: Request) -> _Drawn:
        messages = list(request.load())
        if self.system_prompt is not None and not any(turn["role"] == "system" for turn in messages):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        prompt = write_messages(messages, style=self._style(request), processor=self.processor)
        return _Drawn(
            request=request,
            prompt=prompt,
            thumbnails=self._write_thumbnails(prompt.pictures),
            num_tokens=self._prompted.count_tokens(prompt, continuation=request.continuation or ""),
        )

    def _style(self, request: Request) -> Style:
        if self.prompt_format != "auto":
            return self.prompt_format
        return "text" if END_OF_CHUNK in request.settings.stops else "chat"

    def _write_thumbnails(self, pictures: Sequence[Picture]) -> tuple[str, ...]:
        if self._thumbnails_dir is None:
            return ()
        # A thumbnail is made in place, and the task may hand over the same picture again.
        return tuple(write_thumbnail(Picture(picture.load().copy()), self._thumbnails_dir) for picture in pictures)

    def _run_batch(self, batch: Mapping[int, _Drawn]) -> dict[int, Reply]:
        done: dict[int, Reply] = {}

        def run(members: Sequence[int]) -> None:
            done.update(zip(members, self._compute([batch[member] for member in members]), strict=True))

        def fail(member: int, error: Exception) -> None:
            done[member] = _failure(batch[member].request, error)

        run_halving(list(batch), run, is_too_large=lambda error: isinstance(error, torch.OutOfMemoryError), fail=fail)
        return done

    def _compute(self, batch: Sequence[_Drawn]) -> list[Reply]:
        prompts = [item.prompt for item in batch]
        continuations = [item.request.continuation for item in batch if item.request.continuation is not None]
        found = (
            self._prompted.score(prompts, continuations)
            if continuations
            else self._prompted.generate(prompts, batch[0].request.settings)
        )
        return [
            Reply(**asdict(reply), prompt=item.prompt.text, pictures=item.thumbnails)
            for reply, item in zip(found, batch, strict=True)
        ]


def _failure(request: Request, error: Exception) -> Reply:
    logger.error("%s failed: %s: %s", request.name or "A prompt", type(error).__name__, error)
    return Reply(error=f"{type(error).__name__}: {error}")
