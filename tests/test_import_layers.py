"""Imports point one way: a module may import from layers below its own, never from its own level or above.

The order is the one `CONTRIBUTING.md` shows. Imports inside functions and under `TYPE_CHECKING` count too: they couple
modules just as much as those at the top of a file.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "xgen_mm"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# From the lowest to the highest; members of one layer do not know each other.
LAYERS = (
    ("anyres", "compatibility", "errors"),
    ("checkpoint_config", "images", "output_directory", "sections", "weight_files"),
    ("connectors",),
    ("modeling", "processing"),
    ("adapters", "v1", "blip3o"),
    ("conversion", "data", "generation", "self_contained"),
    ("auto",),
    ("training", "evaluation", "publishing"),
    ("tiny",),
    ("cli",),
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
# `xgen_mm/__init__.py` offers the names of the parts below it and registers them, so it stands where `auto` does.
FACADE_LEVEL = LEVEL["auto"]


@dataclass(frozen=True)
class Import:
    """One import statement between two modules of the package.

    Attributes:
        importer: Dotted name of the importing module.
        imported: Dotted name of the module that is imported, or that a name is imported from.
        place: `file:line` of the statement.
        for_types_only: Whether the statement stands under `if TYPE_CHECKING`.
    """

    importer: str
    imported: str
    place: str
    for_types_only: bool


def part_of(module: str) -> str:
    """Part a module belongs to: `xgen_mm.modeling.host` -> `modeling`; the package itself -> an empty string."""
    return module.partition(".")[2].partition(".")[0]


def find_modules(source: Path) -> dict[str, Path]:
    """Dotted names of all modules below `source`, with their files."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        names = [PACKAGE, *path.relative_to(source).with_suffix("").parts]
        modules[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return modules


def find_imports(modules: dict[str, Path]) -> list[Import]:
    """All import statements of the given modules that name the package."""
    return [found for module, path in modules.items() for found in _imports_of(module, path, modules)]


def _imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        for target in _targets(node, module=module, is_package=path.name == "__init__.py", modules=modules):
            if target.partition(".")[0] == PACKAGE:
                yield Import(module, target, f"{path}:{node.lineno}", id(node) in for_types)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _targets(node: ast.AST, *, module: str, is_package: bool, modules: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        ancestors = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join([*ancestors[: len(ancestors) - node.level + 1], *filter(None, [base])])
    # `from package import name` may mean a module as well as something that the package defines.
    names = [f"{base}.{alias.name}" for alias in node.names]
    return sorted({name if name in modules else base for name in names})


def describe_violations(imports: list[Import]) -> list[str]:
    """One line per import that does not point downwards."""
    lines = []
    for found in imports:
        importer, imported = part_of(found.importer), part_of(found.imported)
        unknown = [part for part in (importer, imported) if part and part not in LEVEL]
        if unknown:
            lines.append(f"{found.place}: `{unknown[0]}` is in no layer; add it to LAYERS in {Path(__file__).name}")
        elif importer and importer != imported and _level(imported) >= _level(importer):
            lines.append(f"{found.place}: `{found.importer}` must not import `{found.imported}`")
        elif not importer and imported and _level(imported) > FACADE_LEVEL and not found.for_types_only:
            lines.append(f"{found.place}: the package itself must not import `{found.imported}` when it is imported")
    return lines


def _level(part: str) -> int:
    return LEVEL[part] if part else FACADE_LEVEL


def find_cycle(imports: list[Import]) -> list[Import]:
    """The imports that form one circle of modules, in order; empty if there is none."""
    outgoing: dict[str, list[Import]] = {}
    for found in imports:
        if not found.for_types_only:
            outgoing.setdefault(found.importer, []).append(found)
    finished: set[str] = set()
    for start in outgoing:
        cycle = _cycle_from(start, outgoing, finished=finished, path=[])
        if cycle:
            return cycle
    return []


def _cycle_from(
    module: str, outgoing: dict[str, list[Import]], *, finished: set[str], path: list[Import]
) -> list[Import]:
    for index, step in enumerate(path):
        if step.importer == module:
            return path[index:]
    if module in finished:
        return []
    for found in outgoing.get(module, []):
        cycle = _cycle_from(found.imported, outgoing, finished=finished, path=[*path, found])
        if cycle:
            return cycle
    finished.add(module)
    return []


def imports_of_files(root: Path, files: dict[str, str]) -> list[Import]:
    """Imports of a made-up package whose files are given by path and text."""
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return find_imports(find_modules(root / PACKAGE))


def test_package_imports_point_downwards() -> None:
    imports = find_imports(find_modules(SOURCE))
    assert len(imports) > 10, f"only {len(imports)} imports found below {SOURCE}"
    violations = describe_violations(imports)
    assert not violations, "\n".join(violations)


def test_package_modules_form_no_cycle() -> None:
    cycle = find_cycle(find_imports(find_modules(SOURCE)))
    assert not cycle, "\n".join(f"{step.place}: `{step.importer}` imports `{step.imported}`" for step in cycle)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        pytest.param("anyres.py", "from .modeling import tile_layout\n", 1, id="upwards"),
        pytest.param("modeling/x.py", "import math\n\nfrom ..processing.y import Z\n", 3, id="between-neighbours"),
        pytest.param("processing/x.py", "def f() -> None:\n    import xgen_mm.modeling.y\n", 2, id="in-a-function"),
        pytest.param("conversion/x.py", "from xgen_mm import XGenMMConfig\n", 1, id="through-the-package"),
        pytest.param("data/x.py", "from .. import auto\n", 1, id="module-from-the-package"),
        pytest.param("tiny/x.py", "from ..cli.main import main\n", 1, id="command-line"),
        pytest.param("__init__.py", "from .tiny import x\n", 1, id="package-imports-a-high-layer"),
        pytest.param("surprise/x.py", "from ..errors import XGenMMError\n", 1, id="part-without-a-layer"),
    ],
)
def test_checker_bad_import_is_reported_with_file_and_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    imports = imports_of_files(tmp_path, {"__init__.py": "", "auto.py": "", name: text})
    violations = describe_violations(imports)
    assert len(violations) == 1
    assert violations[0].startswith(f"{tmp_path / PACKAGE / name}:{line}: ")


def test_checker_downward_imports_are_accepted(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from .auto import register\nif TYPE_CHECKING:\n    import xgen_mm.tiny\n",
        "auto.py": "import sys\n",
        "modeling/__init__.py": "",
        "modeling/a.py": "from ..anyres import plan\nfrom .b import B\n",
        "modeling/b.py": "from transformers import AutoModel\n",
        "tiny/a.py": "from .. import __version__\nfrom ..modeling import a\n",
        "cli/main.py": "from xgen_mm import XGenMMConfig\nfrom ..tiny.a import x\n",
    }
    imports = imports_of_files(tmp_path, files)
    assert len(imports) == 8
    assert describe_violations(imports) == []
    assert find_cycle(imports) == []


def test_checker_circle_of_modules_is_reported_in_order(tmp_path: Path) -> None:
    files = {
        "modeling/a.py": "from .b import B\n",
        "modeling/b.py": "def f() -> None:\n    from . import c\n",
        "modeling/c.py": "import xgen_mm.modeling.a\n",
        "modeling/__init__.py": "",
    }
    cycle = find_cycle(imports_of_files(tmp_path, files))
    assert sorted(step.imported for step in cycle) == [f"{PACKAGE}.modeling.{name}" for name in "abc"]
    assert [step.imported for step in cycle[:-1]] == [step.importer for step in cycle[1:]]
