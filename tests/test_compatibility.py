"""Which hosts the package runs on: the guard at import, and the names of the host that are watched."""

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xgen_mm import compatibility

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "xgen_mm"
# Private names that belong to other packages than transformers.
NAMES_OF_OTHERS = {
    "argparse": ("_SubParsersAction", "_actions", "_format_action_invocation", "_format_args"),
    "argparse's formatter": ("_get_default_metavar_for_optional",),
    "torch": ("_assert_async", "_cdata", "_checkpoint_offset", "_forward_hooks"),
    "TRL": ("_metrics",),
    "lmms-eval": ("_rank", "_world_size"),
    # Set by the host, and read where it may be missing.
    "configurations": ("_attn_implementation",),
}


def pinned_minor(constraints: str) -> tuple[int, ...]:
    text = (ROOT / constraints).read_text(encoding="utf-8")
    (version,) = re.findall(r"^transformers==(\d+\.\d+)\.", text, flags=re.MULTILINE)
    return tuple(map(int, version.split(".")))


def test_tested_versions_are_those_that_are_pinned_and_declared() -> None:
    assert pinned_minor("constraints.txt") == compatibility.NEWEST_TESTED
    assert pinned_minor("constraints-oldest.txt") == compatibility.OLDEST_TESTED
    (declared,) = re.findall(r'"transformers>=(\d+)\.(\d+),', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tuple(map(int, declared)) == compatibility.OLDEST_TESTED


def test_installed_host_has_every_name_that_is_needed() -> None:
    assert compatibility.missing_host_names() == []


def test_every_private_name_of_the_host_is_watched() -> None:
    defined: set[str] = set()
    used: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
                if isinstance(node.ctx, ast.Store):
                    defined.add(node.attr)
                else:
                    used[node.attr] = f"{path.relative_to(SOURCE)}:{node.lineno}"
    watched = {name.rpartition(".")[2] for names in compatibility.PRIVATE_HOST_NAMES.values() for name in names}
    known = defined | watched | {name for names in NAMES_OF_OTHERS.values() for name in names}
    used = {name: place for name, place in used.items() if not name.startswith("_foreach_")}  # torch's
    assert {name: place for name, place in used.items() if name not in known} == {}


def test_newer_host_is_named_once_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compatibility, "host_version", lambda: "5.99.0")
    compatibility.warn_about_new_host.cache_clear()
    with caplog.at_level(logging.WARNING, logger="xgen_mm"):
        compatibility.warn_about_new_host()
        compatibility.warn_about_new_host()
    (message,) = caplog.messages
    newest = ".".join(map(str, compatibility.NEWEST_TESTED))
    assert "transformers 5.99.0 is newer" in message
    assert newest in message


def test_newer_host_that_lacks_a_name_is_refused_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "host_version", lambda: "6.0.0")
    monkeypatch.setitem(compatibility.PRIVATE_HOST_NAMES, "transformers.trainer", ("Trainer._gone",))
    compatibility.warn_about_new_host.cache_clear()
    with pytest.raises(ImportError, match=r"transformers 6\.0\.0 lacks .*transformers\.trainer\.Trainer\._gone"):
        compatibility.warn_about_new_host()


def test_older_host_is_refused_at_import() -> None:
    code = "import transformers; transformers.__version__ = '5.18.4'; import xgen_mm"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ImportError: transformers 5.18.4 is installed, and xgen-mm needs 5.19 or newer: "
        "`pip install --upgrade transformers`."
    )


def test_host_without_its_tables_of_classes_is_refused_by_name() -> None:
    code = (
        "import transformers.models.auto.configuration_auto as module\n"
        "class Mapping: pass\n"
        "module.CONFIG_MAPPING = Mapping()\n"
        "import xgen_mm"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert re.search(r"ImportError: transformers [\d.]+ lacks .*_mapping", result.stderr.splitlines()[-1])
