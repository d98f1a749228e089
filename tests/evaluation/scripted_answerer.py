"""A model that says what a test wants."""

from collections.abc import Callable, Sequence

from xgen_mm.evaluation.answering import ModelDescription
from xgen_mm.evaluation.prompts import Prompt
from xgen_mm.evaluation.task import Generation


class ScriptedAnswerer:
    """A model that says what a function tells it to.

    Args:
        reply: Gets a prompt and gives the reply.
        name: What to call it.
    """

    def __init__(self, reply: Callable[[Prompt], object], *, name: str = "scripted") -> None:
        self._reply = reply
        self.name = name

    def describe(self) -> ModelDescription:
        """Which model this is."""
        return ModelDescription(name=self.name, revision=None, config_hash="", dtype="none")

    @property
    def max_batch_size(self) -> int | None:
        """No limit."""
        return None

    def count_tokens(self, prompt: Prompt) -> int:
        """Words, and a hundred per picture."""
        return len(prompt.text.split()) + 100 * len(prompt.shown_pictures)

    def answer(self, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        """Replies of the function; pictures are decoded as a model would do it."""
        for prompt in prompts:
            for picture in prompt.shown_pictures:
                picture.load()
        return [str(self._reply(prompt)) for prompt in prompts]
