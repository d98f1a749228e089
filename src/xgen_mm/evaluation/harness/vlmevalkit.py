"""An xGen-MM model under VLMEvalKit, which has no plug-ins: it is entered into the kit's table of models.

VLMEvalKit is installed from its repository. Its own adapter for xGen-MM imports a class that transformers 5 no longer
has. With a checkout of the kit:

    python -m xgen_mm.evaluation.harness.vlmevalkit CHECKPOINT VLMEVALKIT/run.py --data POPE MMStar

Everything behind `run.py` is passed on to it.
"""

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import XGenMMError
from .messages import Message

_ROLES = ("system", "user", "assistant")


def register(checkpoint: str, *, name: str | None = None, **settings: Any) -> str:
    """Enter a checkpoint into VLMEvalKit's table of models.

    Args:
        checkpoint: Directory or Hub id.
        name: What to call it there; the last part of `checkpoint` by default.
        **settings: Arguments of `make_model_class`'s class, such as `max_tiles` or `max_new_tokens`.

    Returns:
        The name.

    Raises:
        ImportError: If VLMEvalKit is not installed.
        XGenMMError: If the kit has a model of that name.
    """
    try:
        from vlmeval import config, vlm
    except ImportError as error:
        raise ImportError(
            "VLMEvalKit is not installed: clone its repository and run `pip install -e .` in it, in an environment of "
            "its own."
        ) from error
    name = name or Path(checkpoint).name
    if name in config.supported_VLM and getattr(config.supported_VLM[name], "is_xgen_mm", None) is None:
        raise XGenMMError(f"VLMEvalKit already has a model `{name}`; give another `name`.")
    model_class = make_model_class()
    # Configuration files of the kit name classes of this module.
    vlm.XGenMMForVLMEvalKit = model_class
    build = partial(model_class, checkpoint, **settings)
    build.is_xgen_mm = True  # type: ignore[attr-defined]
    config.supported_VLM[name] = build
    return name


def make_model_class() -> Any:
    """The class that VLMEvalKit builds, made when its base class can be imported."""
    from vlmeval.vlm.base import BaseModel

    class XGenMMForVLMEvalKit(BaseModel):
        """Prompts as the kit writes them, pictures where it has them, greedy replies.

        Args:
            model_path: Directory or Hub id.
            device: Torch device; `None` takes an accelerator if there is one.
            dtype: `auto` keeps the precision of the weights.
            max_tiles: Most tiles of a picture, thumbnail included.
            system_prompt: Put first; `None` leaves it to the chat template.
            **generation: As the kit's other models take it: `max_new_tokens`, `temperature`, `num_beams` ...
        """

        INSTALL_REQ = False
        INTERLEAVE = True

        def __init__(
            self,
            model_path: str,
            *,
            device: str | None = None,
            dtype: str = "auto",
            max_tiles: int | None = None,
            system_prompt: str | None = None,
            **generation: Any,
        ) -> None:
            super().__init__()
            from .loading import load_adapter
            from .settings import read_settings

            self.settings = read_settings(generation)
            self.adapter = load_adapter(
                model_path, device=device, dtype=dtype, max_tiles=max_tiles, system_prompt=system_prompt
            )

        def generate_inner(self, message: Sequence[Message], dataset: str | None = None) -> str:
            """Reply to one turn of text and pictures."""
            return self._reply([{"role": "user", "content": to_parts(message)}])

        def chat_inner(self, message: Sequence[Message], dataset: str | None = None) -> str:
            """Reply to a conversation."""
            unknown = [turn["role"] for turn in message if turn["role"] not in _ROLES]
            if unknown:
                raise XGenMMError(f"a turn has the role {unknown[0]!r}; expected one of {', '.join(_ROLES)}.")
            return self._reply([{"role": turn["role"], "content": to_parts(turn["content"])} for turn in message])

        def _reply(self, messages: list[Message]) -> str:
            from .adapter import Request

            reply = self.adapter.reply_all([Request(load=lambda: messages, settings=self.settings)])[0]
            if reply.error is not None:
                # The kit goes on after a `RuntimeError` if it is told to (`SKIP_ERR=1`).
                raise RuntimeError(reply.error)
            return reply.text

    return XGenMMForVLMEvalKit


def to_parts(message: Sequence[Message] | str) -> list[Message]:
    """Content parts of a message of the kit.

    A space follows every picture, as in the prompts that the published figures were computed with (the kit's adapter
    for xGen-MM).

    >>> to_parts([{"type": "image", "value": "a.png"}])
    [{'type': 'image', 'path': 'a.png'}, {'type': 'text', 'text': ' '}]
    """
    if isinstance(message, str):
        return [{"type": "text", "text": message}]
    parts: list[Message] = []
    for item in message:
        if item["type"] == "image":
            parts += [{"type": "image", "path": item["value"]}, {"type": "text", "text": " "}]
        else:
            parts.append({"type": item["type"], "text": item["value"]})
    return parts


def main(arguments: Sequence[str] | None = None, *, run: Callable[[str], Any] | None = None) -> None:
    """Command line of the module.

    Args:
        arguments: Words after the module's name; those of the process by default.
        run: Runs the kit's script; for tests.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="directory or Hub id")
    parser.add_argument("script", help="`run.py` of a checkout of VLMEvalKit")
    parser.add_argument("--name", help="what to call the model in the kit's files")
    parser.add_argument("--max-tiles", type=int, help="most tiles per picture, thumbnail included")
    parser.add_argument("--max-new-tokens", type=int, help="longest reply (default: 1024)")
    options, rest = parser.parse_known_args(arguments)
    if not Path(options.script).is_file():
        parser.error(f"there is no `{options.script}`; give the path of VLMEvalKit's `run.py`.")
    wanted = {"max_tiles": options.max_tiles, "max_new_tokens": options.max_new_tokens}
    settings = {key: value for key, value in wanted.items() if value is not None}
    name = register(options.checkpoint, name=options.name, **settings)
    sys.argv = [options.script, "--model", name, *rest]
    (run or partial(runpy.run_path, run_name="__main__"))(options.script)


if __name__ == "__main__":
    main()
