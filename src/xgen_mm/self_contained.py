"""Writes the package's own code next to a checkpoint, so that the checkpoint loads where the package is missing.

transformers fetches such code with `trust_remote_code=True`. It wants flat modules that import their siblings only;
ours are copied with nothing changed but their relative imports. Where the package is imported, its own classes are
used and the copies are not looked at. Classes that somebody else derived from ours are copied too, from modules that
follow the same rules.
"""

import ast
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

PACKAGE = __package__
# Whose modules make wrapper classes around ours at run time (FSDP, parametrizations).
WRAPPING_PACKAGES = ("torch",)
ROOT = Path(__file__).parent
# The module that looks connectors up.
CONFIGURATION = "configuration_xgen_mm"
_RESOURCE = re.compile(r'files\(__package__\)\.joinpath\("([^"]+)"\)\.read_text\(encoding="utf-8"\)')


@dataclass(frozen=True, slots=True)
class _Import:
    """One import statement that becomes one of siblings.

    Attributes:
        node: The statement.
        modules: The modules that it imports from.
        statements: What it is replaced with; without any, all but the name of the one module stays as it is.
    """

    node: ast.ImportFrom
    modules: list[str]
    statements: tuple[str, ...] = ()


def attach(module: ModuleType) -> None:
    """Make the classes of a module write their code when they are saved.

    Args:
        module: One of the package's modules; those without such classes are left alone.
    """
    for name, writer in (("XGenMMPreTrainedModel", write_model_code), ("XGenMMProcessor", write_processor_code)):
        saved_class = getattr(module, name, None)
        if saved_class is not None:
            saved_class.code_writer = staticmethod(writer)


def write_model_code(directory: Path, model: Any) -> dict[str, str]:
    """Write the modules that a model needs.

    Args:
        directory: Where; it exists.
        model: The model that is saved.

    Returns:
        Auto class to `module.Class`, for `config.json`.
    """
    return write_code(
        directory,
        {"AutoConfig": type(model.config), "AutoModel": type(model)}
        | ({"AutoModelForImageTextToText": type(model)} if model.can_generate() else {}),
        connector=connector_classes(model.config),
    )


def write_processor_code(directory: Path, processor: Any) -> dict[str, str]:
    """Write the modules that a processor and its image processor need; arguments and result as above."""
    return write_code(
        directory, {"AutoProcessor": type(processor), "AutoImageProcessor": type(processor.image_processor)}
    )


def connector_classes(config: Any) -> tuple[type, ...]:
    """Configuration and module class of a model's connector; none if the model has no connector."""
    connector = getattr(config, "resampler_config", None)
    if connector is None:
        return ()
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    return type(connector), MODEL_MAPPING[type(connector)]


def write_code(directory: Path, classes: dict[str, type], *, connector: tuple[type, ...] = ()) -> dict[str, str]:
    """Write the modules of some classes, and all that those import of this package, as flat files.

    Args:
        directory: Where; it exists.
        classes: Class by Auto class; those that have nothing of ours are left out, their code is not ours.
        connector: From `connector_classes`. Nothing imports its module by name, so the written module of
            configurations does, and registers it.

    Returns:
        Auto class to `module.Class`. Nothing, with a warning, if a class that somebody derived from ours cannot be
        exported: the class of ours in its place would load without a word and do something else.

    Raises:
        ValueError: If a module of ours imports another one in a way that cannot be flattened, or two would get one
            file.
    """
    exported = {name: found for name, given in classes.items() if (found := _exported_class(given)) is not None}
    try:
        for found in (*exported.values(), *connector):
            _check_named(found)
        texts = flat_modules([found.__module__ for found in exported.values()], connector=connector)
    except ValueError as error:
        found_classes = (*exported.values(), *connector)
        foreign = [found.__name__ for found in found_classes if not _is_ours(found.__module__)]
        if not foreign:
            raise
        logger.warning(
            "Saved without code that loads %s: %s Import it where the checkpoint is loaded, and load with its own "
            "`from_pretrained`.",
            " and ".join(f"`{name}`" for name in sorted(set(foreign))),
            error,
        )
        return {}
    for name, text in texts.items():
        (directory / f"{name}.py").write_text(text, encoding="utf-8")
    return {name: f"{_flat_name(found.__module__)}.{found.__name__}" for name, found in exported.items()}


def _exported_class(given: type) -> type | None:
    """The class whose code belongs to an object: ours or one derived from it, without wrappers made at run time."""
    for found in given.__mro__:
        has_ours = any(_is_ours(base.__module__) for base in found.__mro__)
        if has_ours and found.__module__.partition(".")[0] not in WRAPPING_PACKAGES:
            return found
    return None


def _check_named(found: type) -> None:
    """Refuse a class that nobody could import: one of a script, or one made inside a function."""
    if found.__module__ == "__main__":
        raise ValueError(f"`{found.__name__}` is defined in a script; move it into a module.")
    if getattr(sys.modules.get(found.__module__), found.__name__, None) is not found:
        raise ValueError(f"`{found.__module__}` has no name `{found.__name__}`; define it at the top level.")


def flat_modules(entries: list[str], *, connector: tuple[type, ...] = ()) -> dict[str, str]:
    """Source of modules and of everything they import of this package, as siblings.

    Args:
        entries: Dotted names of modules.
        connector: As in `write_code`.

    Returns:
        Source by flat name, in no particular order.

    Raises:
        ValueError: As in `write_code`.
    """
    homes: dict[str, str] = {}
    texts: dict[str, str] = {}
    waiting = [*entries, *(found.__module__ for found in connector)]
    while waiting:
        module = waiting.pop()
        name = _flat_name(module)
        if homes.setdefault(name, module) != module:
            raise ValueError(f"`{module}` and `{homes[name]}` would both become `{name}.py`; rename one of them.")
        if name not in texts:
            texts[name], imported = _flatten(module)
            waiting += imported
    if connector:
        imported = [f"from .{_flat_name(found.__module__)} import {found.__name__}\n" for found in connector]
        names = ", ".join(found.__name__ for found in connector)
        texts[CONFIGURATION] += "".join(
            ["\nfrom .connector_config import register_connector\n", *imported, f"\nregister_connector({names})\n"]
        )
    return texts


def _flatten(module: str) -> tuple[str, list[str]]:
    path = _source_path(module)
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    imports = list(_imports(ast.parse(source), module))
    for found in imports:
        first, last = found.node.lineno - 1, (found.node.end_lineno or found.node.lineno) - 1
        if not found.statements:
            lines[first] = re.sub(r"from\s+\.\S+", f"from .{_flat_name(found.modules[0])}", lines[first], count=1)
        else:
            # Columns count bytes. The host looks for imports at the beginning of lines.
            indent = lines[first].encode()[: found.node.col_offset].decode()
            after = lines[last].encode()[found.node.end_col_offset :].decode()
            if indent.strip():
                raise ValueError(f"`{module}`, line {first + 1}: put the import on a line of its own.")
            written = f"\n{indent}".join(found.statements)
            lines[first : last + 1] = [indent + written + after, *[""] * (last - first)]
    text = _RESOURCE.sub(lambda match: repr((path.parent / match[1]).read_text(encoding="utf-8")), "".join(lines))
    if "files(__package__)" in text:
        raise ValueError(f"`{module}` reads a file of its package in a form that cannot be put into its code.")
    if _is_ours(module):
        place = f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}"
        header = f"# Generated from {place} of xgen-mm {version('xgen-mm')} (Apache-2.0); changes belong there.\n"
    else:
        header = f"# Copied from `{module}` by xgen-mm {version('xgen-mm')}; changes belong there.\n"
    return header + text, [name for found in imports for name in found.modules]


def _imports(tree: ast.Module, module: str) -> Iterator[_Import]:
    """Imports of the package that a module is part of, and of ours."""
    packages = {PACKAGE, module.partition(".")[0]}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            imported = ".".join([*module.split(".")[: -node.level], node.module or ""])
            if not node.module or not _source_path(imported).is_file():
                raise ValueError(f"`{module}`, line {node.lineno}: write `from .module import name` to be exportable.")
            yield _Import(node, [imported])
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if not packages & {name.partition(".")[0] for name in names}:
            continue
        if _is_ours(module):
            raise ValueError(f"`{module}`, line {node.lineno}: import other modules of the package relatively.")
        if isinstance(node, ast.Import) or any(alias.name == "*" for alias in node.names):
            raise ValueError(f"`{module}`, line {node.lineno}: write `from {names[0]} import name` to be exportable.")
        homes = [_home(names[0], alias.name) for alias in node.names]
        statements = [
            f"from .{_flat_name(home)} import {ast.unparse(alias)}"
            for home, alias in zip(homes, node.names, strict=True)
        ]
        yield _Import(node, homes, tuple(statements))


def _home(module: str, name: str) -> str:
    """The module in which a name is defined that may be imported from a package as well."""
    if _is_module_file(module):
        return module
    home = getattr(getattr(import_module(module), name, None), "__module__", None)
    if not isinstance(home, str) or home.partition(".")[0] != module.partition(".")[0] or not _is_module_file(home):
        raise ValueError(f"`{name}` of `{module}` has no module of its own; import it from where it is defined.")
    return home


def _is_module_file(module: str) -> bool:
    try:
        return _source_path(module).is_file()
    except ValueError:
        return False


def _source_path(module: str) -> Path:
    if _is_ours(module):
        return ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    path = None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)
    if path is None or path.suffix != ".py" or path.name == "__init__.py":
        raise ValueError(f"`{module}` is no module with Python source; classes of a package's `__init__` have none.")
    return path


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _flat_name(module: str) -> str:
    return module.rpartition(".")[2]
