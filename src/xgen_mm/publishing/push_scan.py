"""Looks for what must not get out: secrets, and paths that tell about the computer a checkpoint was made on.

Findings name file, place and remedy, never what was found.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..sections import load_yaml
from ..weight_files import read_raw_header
from .image_texts import IMAGE_SUFFIXES, image_texts
from .secret_patterns import PATH_IN_TEXT, SECRETS, kinds_of_secrets, names_a_secret

TEXT_SUFFIXES = (".json", ".md", ".txt", ".jinja", ".py", ".svg")
TEXT_NAMES = ("LICENSE", "NOTICE")
# Keys that name another checkpoint.
NAME_KEYS = ("_name_or_path", "base_model_name_or_path", "name_or_path", "base_model")
# Parts of the data of a tokenizer, which may look like anything.
VOCABULARIES = frozenset({"vocab.json", "vocab.txt", "merges.txt"})

# A whole value may be any path.
_PATH_AS_VALUE = re.compile(r"/[^/\s]+/[^\s].*|~[\w.-]*[/\\].*|[A-Za-z]:[\\/][^\s].*|\\\\\w.*|file://.*", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_SECRET_REMEDY = "remove it and revoke it"
_PATH_REMEDY = "replace or remove it"


def scan_file(directory: Path, name: str, *, secrets: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with one file, a sentence each.

    Args:
        directory: Where the file is; its own path counts as a local path.
        name: Name in the directory.
        secrets: Texts that must not be in it.
    """
    path = directory / name
    if name.endswith(".safetensors"):
        header = json.loads(read_raw_header(path).text)
        return _unique(_scan_values(directory, name, header.get("__metadata__") or {}, secrets, ("metadata",)))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _scan_image(directory, name, secrets)
    if path.suffix.lower() not in TEXT_SUFFIXES and path.name not in TEXT_NAMES:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return [f"{name} is no UTF-8 text; save it as UTF-8."]
    if path.suffix != ".json":
        findings = _scan_secrets(name, text, secrets)
        return _unique([*findings, *(() if name in VOCABULARIES else _scan_text(directory, name, text))])
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return [f"{name} is not valid JSON; save it again."]
    try:
        by_key = (
            [] if name in VOCABULARIES else [*_scan_values(directory, name, _without_vocabulary(content), secrets, ())]
        )
    except RecursionError:
        return [f"{name} is nested too deeply to be searched; it is none of a checkpoint's own files, remove it."]
    # The text as a whole also holds vocabularies and keys.
    return _unique(by_key) or _unique(_scan_secrets(name, text, secrets))


def _scan_image(directory: Path, name: str, secrets: tuple[str, ...]) -> list[str]:
    text = image_texts(directory / name)
    findings = [
        f"{name}: {kind} in the metadata of the image; {_SECRET_REMEDY}." for kind in _secrets_in(text, secrets)
    ]
    if _mentions_path(directory, text):
        findings.append(f"{name}: a path of this computer in the metadata of the image; save it without metadata.")
    return findings


def _scan_text(directory: Path, name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if _mentions_path(directory, line):
            yield f"{name}, line {number}: a path of this computer; {_PATH_REMEDY}."
    match = _FRONT_MATTER.match(text) if name == "README.md" else None
    if match is not None:
        try:
            content = load_yaml(match[1])
        except yaml.YAMLError:
            yield f"{name}: its metadata between the `---` lines is no valid YAML; correct it."
        else:
            yield from _scan_values(directory, name, content, (), ())


def _scan_secrets(name: str, text: str, secrets: tuple[str, ...]) -> Iterator[str]:
    for kind, pattern in SECRETS.items():
        for match in pattern.finditer(text):
            yield f"{name}, line {_line_of(text, match.start())}: {kind}; {_SECRET_REMEDY}."
    for secret in secrets:
        if secret in text:
            yield f"{name}, line {_line_of(text, text.index(secret))}: the token in use; {_SECRET_REMEDY}."


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _secrets_in(text: str, secrets: tuple[str, ...]) -> list[str]:
    kinds = kinds_of_secrets(text)
    if not kinds and any(secret in text for secret in secrets):
        kinds.append("the token in use")
    return kinds


def _scan_values(
    directory: Path, name: str, content: Any, secrets: tuple[str, ...], keys: tuple[str, ...]
) -> Iterator[str]:
    """Findings in JSON-like content, with the keys that lead to them."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _scan_values(directory, name, value, secrets, (*keys, str(key)))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _scan_values(
                directory, name, value, secrets, (*keys[:-1], f"{keys[-1] if keys else ''}[{index}]")
            )
    elif isinstance(content, str) and content:
        place = f"{name}: `{'.'.join(keys)}`" if keys else name
        last = keys[-1].partition("[")[0] if keys else ""
        kinds = ["a secret"] if names_a_secret(last) else _secrets_in(content, secrets)
        for kind in kinds:
            yield f"{place}: {kind}; {_SECRET_REMEDY}."
        if _PATH_AS_VALUE.fullmatch(content) or _mentions_path(directory, content):
            remedy = "write the Hub id of that model" if last in NAME_KEYS else _PATH_REMEDY
            yield f"{place}: a path of this computer; {remedy}."
        elif last in NAME_KEYS and _is_local_name(directory, content):
            yield f"{place}: a directory here; write the Hub id of that model (if it is one, push from elsewhere)."


def _mentions_path(directory: Path, text: str) -> bool:
    # The home directory may be anywhere. The root, or a folder right below it, says nothing about a computer.
    own = [path for path in (directory.absolute(), Path(os.path.expanduser("~"))) if len(path.parts) > 2]
    found = (re.search(rf"(?<![\w.:/-]){re.escape(str(path))}", text) for path in own if str(path) in text)
    return PATH_IN_TEXT.search(text) is not None or any(found)


def _is_local_name(directory: Path, value: str) -> bool:
    return _HUB_ID.fullmatch(value) is None or any((base / value).is_dir() for base in (Path(), directory.parent))


def _without_vocabulary(content: Any) -> Any:
    """`tokenizer.json` without vocabulary and merges."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return content
    model = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges")}
    return content | {"model": model}


def _unique(findings: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(findings))
