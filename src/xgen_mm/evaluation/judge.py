"""A language model that reads replies, behind an OpenAI-compatible server; used only if the user names one.

The wording is our own, so figures that rest on it are comparable among themselves and not with published ones.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import XGenMMError
from ..images.bounded_download import is_url

KEY_VARIABLE = "XGEN_MM_JUDGE_KEY"
_TIMEOUT_SECONDS = 120.0
_ATTEMPTS = 3
_PICK = """Which option does this reply choose?

Question: {question}
{options}Reply: {reply}

Say the letter of the option alone, or NONE if the reply chooses none of them."""
_EXTRACT = """Which answer does this reply give to the question? Repeat the answer alone: a number, a word or a short
phrase, without a unit. Say NONE if it gives none.

Question: {question}
Reply: {reply}"""
_GRADE = """How well does a reply agree with the right answer? Where parts of the right answer are joined by <AND>, all
of them are needed; where they are joined by <OR>, one of them is enough. Say a number from 0.0 (wrong) to 1.0 (right)
alone.

Question: {question}
Right answer: {answer}
Reply: {reply}"""


class JudgeError(XGenMMError):
    """The judge cannot be reached, or says what cannot be read."""


class ServerJudge:
    """A judge behind an OpenAI-compatible server.

    Args:
        url: Address of the server, with or without `/chat/completions`.
        model: Name of the model there.
        key: Secret of the server; by default that in the environment variable `XGEN_MM_JUDGE_KEY`, if set. It is sent
            to the server and goes nowhere else.

    Raises:
        JudgeError: If the address is none.
    """

    def __init__(self, url: str, *, model: str, key: str | None = None) -> None:
        """Prepare; nothing is asked yet."""
        if not is_url(url):
            raise JudgeError(f"`judge-url` is {url!r}; expected an address that begins with http:// or https://.")
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.model = model
        self._key = key if key is not None else os.environ.get(KEY_VARIABLE, "")

    def __str__(self) -> str:
        """Model and server, without the key."""
        return f"{self.model} at {self.url}"

    def pick_option(self, question: str, options: Mapping[str, str], reply: str) -> str | None:
        """The option that a reply means, or `None`."""
        listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
        said = self._ask(_PICK.format(question=question, options=listed, reply=reply)).strip(" .()\n")
        return said if said in options else None

    def extract(self, question: str, reply: str) -> str:
        """The short answer that a reply gives; empty if it gives none."""
        said = self._ask(_EXTRACT.format(question=question, reply=reply)).strip()
        return "" if said.upper() == "NONE" else said

    def grade(self, question: str, answer: str, reply: str) -> float:
        """How right a reply is, between 0 and 1.

        Raises:
            JudgeError: If the judge says no number.
        """
        said = self._ask(_GRADE.format(question=question, answer=answer, reply=reply))
        number = re.search(r"\d+(?:\.\d+)?", said)
        if number is None:
            raise JudgeError(f"the judge said {said[:80]!r}; expected a number from 0.0 to 1.0.")
        return min(1.0, float(number[0]))

    def _ask(self, text: str) -> str:
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                response = httpx.post(self.url, json=body, headers=headers, timeout=_TIMEOUT_SECONDS)
                if response.status_code == 200:
                    return _content(response.json())
                problem = f"status {response.status_code}"
            except (httpx.HTTPError, json.JSONDecodeError) as error:
                problem = type(error).__name__
        raise JudgeError(
            f"the judge at `{self.url}` did not answer ({problem}); `--resume` tries these samples again."
        )


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise JudgeError(f"the judge's server sent {str(answer)[:80]!r}; expected a chat completion.") from error
