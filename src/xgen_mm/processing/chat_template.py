"""The prompt format as a Jinja template, filled for one tokenizer."""

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

# What the instruct checkpoints were trained with when a conversation names no system prompt (released code).
RELEASED_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SYSTEM_SETTING = '{%- set default_system_prompt = "" -%}'
_TOKENS_SETTING = "{%- set control_tokens = [] -%}"


def build_chat_template(control_tokens: Iterable[str], *, default_system_prompt: str = "") -> str:
    """Chat template of xGen-MM for one tokenizer.

    Args:
        control_tokens: Strings that the tokenizer maps to control tokens (`<|end|>`, `<image>` ...). In message texts
            they are broken up by a zero-width space.
        default_system_prompt: Put first when a conversation has no system message; empty for none.

    Returns:
        The Jinja source, to be saved with the processor.
    """
    # The longest first, so that a token that contains another one is broken up as a whole.
    tokens = sorted(set(control_tokens), key=lambda token: (-len(token), token))
    return (
        _source()
        .replace(_SYSTEM_SETTING, _setting("default_system_prompt", default_system_prompt))
        .replace(_TOKENS_SETTING, _setting("control_tokens", tokens))
    )


def _setting(name: str, value: str | list[str]) -> str:
    # JSON strings and lists are valid Jinja literals.
    return f"{{%- set {name} = {json.dumps(value)} -%}}"


@lru_cache(maxsize=1)
def _source() -> str:
    return files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
