"""The chat format of a new model: the language model's own template, made to read pictures.

The template itself is not touched. A preamble in front of it turns content parts into strings and hands these on, so
every format that works on strings works on pictures in any place. Marks around answers (`{% generation %}`), which
tell a trainer where the loss belongs, are kept where the template has them; they cannot be added to a template that is
not known here.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..modeling.assembly import END_OF_CHUNK_TOKEN
from ..processing.chat_template import build_chat_template, content_macros, control_tokens, in_breaking_order

# Turns of the released chat format; a tokenizer that has them as tokens can use it.
END_OF_TURN = "<|end|>"
PHI_3_TURNS = ("<|user|>", "<|assistant|>", END_OF_TURN)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """Chat template of a new model.

    Attributes:
        template: Jinja source, or several by name, as transformers keeps them.
        origin: Where it comes from, in a few words.
        stop_token: Token that ends an answer in this format, where the language model's own settings do not say it.
    """

    template: str | dict[str, str]
    origin: str
    stop_token: str | None = None


def choose_chat_format(tokenizer: Any, chat_template: str | None = None) -> ChatFormat:
    """Decide how conversations are written.

    Args:
        tokenizer: Tokenizer of the language model, image tokens included.
        chat_template: Template for messages whose content is a string; `None` takes the tokenizer's own.

    Returns:
        That template extended to pictures. Without any, the released chat format if the tokenizer has its tokens, else
        texts and pictures in a row, each answer ended by `<|endofchunk|>`.
    """
    own = chat_template or tokenizer.chat_template
    if isinstance(own, dict) and own:
        named = {name: extend_chat_template(template, tokenizer) for name, template in own.items()}
        return ChatFormat(template=named, origin="the language model's own, extended to pictures")
    if own:
        origin = "the language model's own" if chat_template is None else "as given"
        return ChatFormat(template=extend_chat_template(own, tokenizer), origin=f"{origin}, extended to pictures")
    added = tokenizer.get_added_vocab()
    if all(token in added for token in PHI_3_TURNS):
        return ChatFormat(
            template=build_chat_template(added),
            origin="that of the xGen-MM release (the language model has none, but the tokens for it)",
            stop_token=END_OF_TURN,
        )
    return ChatFormat(
        template=extend_chat_template(_source("plain_turns.jinja"), tokenizer),
        origin=f"contents in a row, answers end in {END_OF_CHUNK_TOKEN} (the language model has none)",
        stop_token=END_OF_CHUNK_TOKEN,
    )


def extend_chat_template(template: str, tokenizer: Any) -> str:
    """Let a chat template for plain strings read text and image parts.

    Args:
        template: Jinja source that writes messages whose `content` is a string.
        tokenizer: Names the control tokens that texts may not contain.

    Returns:
        Jinja source. For messages without pictures and control tokens it writes what `template` writes.
    """
    special, written = control_tokens(tokenizer, template)
    preamble = (
        _source("chat_preamble.jinja")
        .replace("set xgenmm_special_tokens = []", f"set xgenmm_special_tokens = {_literal(special)}")
        .replace("set xgenmm_template_tokens = []", f"set xgenmm_template_tokens = {_literal(special | written)}")
    )
    return f"{content_macros()}\n{preamble}{template}"


def _literal(tokens: Iterable[str]) -> str:
    # JSON lists are valid Jinja literals. Escapes would split characters beyond the first 65,536 in two.
    return json.dumps(in_breaking_order(tokens), ensure_ascii=False)


@cache
def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
