"""The prompt format as a Jinja template, filled for one tokenizer, and the tokens that texts may not spell out."""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

# What the instruct checkpoints were trained with when a conversation names no system prompt (released code).
RELEASED_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ZERO_WIDTH_SPACE = "\u200b"
# For the odd token that holds a zero-width space itself.
WORD_JOINER = "\u2060"
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
    tokens = _setting("control_tokens", in_breaking_order(control_tokens))
    source = files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8")
    return source.replace(_SYSTEM_SETTING, _setting("default_system_prompt", default_system_prompt)).replace(
        _TOKENS_SETTING, f"{tokens}\n{content_macros()}"
    )


@lru_cache(maxsize=1)
def content_macros() -> str:
    """Jinja macros that write the content of a message: `xgenmm_content(content, tokens)` and `xgenmm_plain`."""
    return files(__package__).joinpath("chat_content.jinja").read_text(encoding="utf-8").rstrip("\n")


def control_tokens(tokenizer: Any, template: str = "") -> tuple[set[str], set[str]]:
    """Tokens that mean something to the model besides their letters.

    Args:
        tokenizer: Any tokenizer of the host.
        template: Jinja source of its chat template.

    Returns:
        Special tokens, and further added tokens that the template itself writes (as turn marks or tags). Other added
        tokens are left alone: many tokenizers have some for indentation or HTML, which belong into texts. So are
        single characters and white space, which nothing can break up.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    marks = {token.content for token in added if not token.content.strip().isalnum() and token.content in template}
    return set(in_breaking_order(special)), set(in_breaking_order(marks - special))


def in_breaking_order(tokens: Iterable[str]) -> list[str]:
    """Tokens that can be broken up, in the order in which that has to be done.

    The longest come first, so that a token that contains another one is broken up as a whole; those with a zero-width
    space come last, because breaking others up may write them.
    """
    breakable = {token for token in tokens if len(token) > 1 and not token.isspace()}
    return sorted(breakable, key=lambda token: (ZERO_WIDTH_SPACE in token, -len(token), token))


def break_up_tokens(text: str, tokens: Sequence[str]) -> str:
    """Put an invisible character behind the first one of every given token that a text spells out.

    Texts that will stand side by side must be joined first, because a token may be split over them. The chat templates
    do the same (`chat_content.jinja`).

    Args:
        text: Any text.
        tokens: As `in_breaking_order` gives them.

    >>> break_up_tokens("a <image> tag", ["<image>"]).replace(ZERO_WIDTH_SPACE, "|")
    'a <|image> tag'
    """
    for token in tokens:
        # A token may overlap its own copies, and then one pass leaves some of them.
        while token in text:
            breaker = WORD_JOINER if ZERO_WIDTH_SPACE in token else ZERO_WIDTH_SPACE
            text = text.replace(token, token[:1] + breaker + token[1:])
    return text


def _setting(name: str, value: str | list[str]) -> str:
    # JSON strings and lists are valid Jinja literals, with characters beyond the first 65,536 as they are: escapes
    # would split those in two.
    return f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}"
