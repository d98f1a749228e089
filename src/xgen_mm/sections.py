"""Reads YAML into frozen dataclasses, in which a key that nobody knows is an error and not a silent default."""

import contextlib
import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import XGenMMError

# Far above what a recipe or a card holds.
_MAX_YAML_DEPTH = 64
_MAX_YAML_VALUES = 100_000

Section = TypeVar("Section")
# Far above what a person writes.
MAX_YAML_BYTES = 4_000_000
MAX_SHOWN = 200


class SectionError(XGenMMError):
    """A file holds an unknown key, lacks one, or has a value of the wrong type."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping of a YAML file.

    Raises:
        SectionError: If it cannot be read, is no YAML, or no mapping.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise SectionError(
                f"`{path.name}` has {path.stat().st_size:,} bytes; expected at most {MAX_YAML_BYTES:,}."
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SectionError(f"`{path.name}` cannot be read as YAML: {' '.join(str(error).split())}") from error
    content = parse_yaml(text, where=path.name)
    if not isinstance(content, dict):
        raise SectionError(f"`{path.name}` is {shown(content)}; expected a mapping of keys to values.")
    return content


def load_yaml(text: str) -> Any:
    """Plain values of a YAML text, whoever wrote it: deep nesting and aliases of aliases are refused at once.

    Raises:
        yaml.YAMLError: If it is no YAML, is nested too deeply, refers to itself, or stands for too many values.
    """
    try:
        return yaml.load(text, Loader=BoundedLoader)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # Dates and numbers that look like ones.
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def parse_yaml(text: str, *, where: str) -> Any:
    """As `load_yaml`, with an error that says where the text stands.

    Args:
        text: One document.
        where: What the message calls it.

    Raises:
        SectionError: If `load_yaml` refuses it.
    """
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise SectionError(f"`{where}` cannot be read as YAML: {' '.join(str(error).split())}") from error


def shown(value: object) -> str:
    """A value for a message, cut short where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class BoundedLoader(yaml.SafeLoader):
    """Refuses deep nesting and aliases of aliases: counts values as if every alias were written out."""

    def __init__(self, stream: Any) -> None:
        """Begin to count; see `yaml.SafeLoader`."""
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One value with all that it holds.

        Raises:
            yaml.composer.ComposerError: If it is nested too deeply, refers to itself, or stands for too many values.
        """
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > _MAX_YAML_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MAX_YAML_DEPTH} levels", mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "a value refers to itself", mark)
        if not is_alias:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
            if self._sizes[id(node)] > _MAX_YAML_VALUES:
                what = f"stands for more than {_MAX_YAML_VALUES} values"
                raise yaml.composer.ComposerError(None, None, what, mark)
        return node


def parse_section(section: type[Section], content: Any, *, where: str) -> Section:
    """Build a section from plain values.

    Args:
        section: Dataclass to build; its fields may be sections, tuples, dicts, literals, unions and plain types.
        content: Values by field; lists become tuples, a single value stands for a list of one.
        where: What messages call it.

    Raises:
        SectionError: If a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(content, Mapping):
        raise SectionError(f"`{where}` is {shown(content)}; expected a mapping of keys to values.")
    fields = {item.name: item for item in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            raise SectionError(f"`{where}` has the unknown key `{key}`; {nearest(key, fields)}")
    missing = [name for name, item in fields.items() if name not in content and not _has_default(item)]
    if missing:
        raise SectionError(f"`{where}` lacks {missing}; add {'it' if len(missing) == 1 else 'them'}.")
    hints = get_type_hints(section)
    return section(**{key: _convert(hints[key], value, where=f"{where}: {key}") for key, value in content.items()})


def nearest(key: object, names: Iterable[str]) -> str:
    """End of a message about an unknown name: the closest valid one, or all of them.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    'did you mean `learning_rate`?'
    """
    names = sorted(names)
    close = difflib.get_close_matches(str(key), names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"valid names: {', '.join(names) or 'none'}."


def _convert(kind: Any, value: Any, *, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, Union):
        return _convert_union(arguments, value, where=where)
    if origin is Literal:
        if value not in arguments:
            raise SectionError(f"`{where}` is {shown(value)}; {nearest(value, map(str, arguments))}")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else parse_section(kind, value, where=where)
    if origin is tuple:
        return _convert_tuple(arguments, value, where=where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SectionError(f"`{where}` is {shown(value)}; expected a mapping.")
        return {str(key): _convert(arguments[1], item, where=f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, str):
        # YAML takes 1e-4 for text, because it has no point.
        with contextlib.suppress(ValueError):
            return float(value)
    is_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not is_number and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise SectionError(f"`{where}` is {shown(value)}; expected a value of type {kind.__name__}.")
    return value.strip() if isinstance(value, str) else kind(value)


def _convert_tuple(kinds: tuple[Any, ...], value: Any, *, where: str) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise SectionError(f"`{where}` is {shown(value)}; expected a list of {len(kinds)}.")
    pairs = zip(kinds, items, strict=True)
    return tuple(_convert(kind, item, where=f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _convert_union(kinds: tuple[Any, ...], value: Any, *, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _convert(others[0], value, where=where)
    for kind in others:
        if type(value) is kind:
            return _convert(kind, value, where=where)
    names = ", ".join(getattr(kind, "__name__", str(kind)) for kind in others)
    raise SectionError(f"`{where}` is {shown(value)}; expected a value of one of the types {names}.")


def _has_default(item: "dataclasses.Field[Any]") -> bool:
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
