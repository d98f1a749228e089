"""Models that answer prompts in batches. Imports torch only when a model is used."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..anyres import count_tiles
from ..errors import XGenMMError
from .prompts import Prompt, write_prompt
from .task import Generation


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDescription:
    """Which model replied.

    Attributes:
        name: Directory or Hub id as the user wrote it.
        revision: Commit on the Hub, if known.
        config_hash: SHA-256 of the model's configuration.
        dtype: Precision.
    """

    name: str
    revision: str | None
    config_hash: str
    dtype: str


class Answerer(Protocol):
    """What the runner needs of a model."""

    def describe(self) -> ModelDescription:
        """Which model this is."""
        ...

    @property
    def max_batch_size(self) -> int | None:
        """Most prompts per batch; `None` if only the number of tokens counts."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Length of a prompt in tokens, those of pictures included; pictures are opened as far as their size."""
        ...

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        """Replies to prompts, computed as one batch."""
        ...


class ModelAnswerer:
    """An xGen-MM model as an `Answerer`.

    Args:
        model: Any model of this package; put into evaluation mode.
        processor: Its processor.
        name: What to call it.
    """

    def __init__(self, model: Any, processor: Any, *, name: str) -> None:
        from .prompted_model import PromptedModel

        self._prompted = PromptedModel(model, processor)
        self.name = name

    @property
    def model(self) -> Any:
        """The model."""
        return self._prompted.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self._prompted.processor

    def describe(self) -> ModelDescription:
        """Which model this is."""
        return describe_model(self.model, name=self.name)

    @property
    def max_batch_size(self) -> int | None:
        """One for the released v1 models, which read the padding of a batch."""
        return self._prompted.max_batch_size

    def count_tokens(self, prompt: Prompt) -> int:
        """Length of a prompt in tokens, those of pictures included."""
        return self._prompted.count_tokens(write_prompt(prompt, self.processor))

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        """Replies to prompts, computed as one batch, without special tokens and white space around them."""
        from .prompted_model import GenerationSettings

        settings = GenerationSettings(
            max_new_tokens=generation.max_new_tokens,
            num_beams=generation.num_beams,
            length_penalty=generation.length_penalty,
            stops=generation.stop,
        )
        written = [write_prompt(prompt, self.processor) for prompt in prompts]
        return [reply.text for reply in self._prompted.generate(written, settings)]


def describe_model(model: Any, *, name: str) -> ModelDescription:
    """Which model this is.

    Args:
        model: Any model of this package.
        name: What to call it.
    """
    content = json.loads(model.config.to_json_string(use_diff=False))
    # Where the checkpoint lies does not make it another model.
    content.pop("_name_or_path", None)
    text = json.dumps(content, sort_keys=True)
    return ModelDescription(
        name=name,
        revision=getattr(model.config, "_commit_hash", None),
        config_hash=hashlib.sha256(text.encode()).hexdigest(),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def limit_tiles(model: Any, processor: Any, max_tiles: int) -> None:
    """Let pictures be cut into at most so many tiles, the thumbnail included.

    Args:
        model: Its configuration is changed.
        processor: Its image processor is changed in the same way.
        max_tiles: As the processor's argument of this name counts them.

    Raises:
        XGenMMError: If the checkpoint has no canvas that small.
    """
    if not getattr(model.config, "image_grid_pinpoints", None):
        raise XGenMMError(f"`max_tiles` is {max_tiles}, but this checkpoint does not cut pictures into tiles.")
    grids = [list(grid) for grid in model.config.image_grid_pinpoints]
    tile_size = int(model.config.tile_size)
    costs = [count_tiles((height, width), pinpoints=[(height, width)], tile_size=tile_size) for height, width in grids]
    kept = [grid for grid, cost in zip(grids, costs, strict=True) if cost <= max_tiles]
    if not kept:
        raise XGenMMError(
            f"`max_tiles` is {max_tiles}; this checkpoint's smallest canvas has {min(costs)} tiles with the thumbnail."
        )
    model.config.image_grid_pinpoints = kept
    processor.image_processor.image_grid_pinpoints = kept
