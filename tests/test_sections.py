"""Reading YAML into frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from xgen_mm.sections import SectionError, parse_section, read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested section."""

    rate: float
    kind: Literal["linear", "cosine"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One field of every sort."""

    seed: int
    name: str = ""
    is_on: bool = False
    limit: int | None = None
    either: int | str = 0
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()


def parse(**content: Any) -> Outer:
    return parse_section(Outer, {"seed": 1} | content, where="recipe")


def test_values_of_every_sort_are_read() -> None:
    read = parse(
        name=" a ",
        is_on=True,
        limit=None,
        either="x",
        pair=[1, 2],
        names="one",
        table={"a": 1},
        inner={"rate": 1},
        inners=[{"rate": 0.5, "kind": "linear"}],
    )
    assert read == Outer(
        seed=1,
        name="a",
        is_on=True,
        either="x",
        pair=(1.0, 2.0),
        names=("one",),
        table={"a": 1.0},
        inner=Inner(rate=1.0),
        inners=(Inner(rate=0.5, kind="linear"),),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sead": 1}, "`recipe` has the unknown key `sead`; did you mean `seed`"),
        ({"zzz": 1}, "unknown key `zzz`; valid names: either, inner"),
        ({"seed": 1.5}, "`recipe: seed` is 1.5; expected a value of type int"),
        ({"seed": True}, "is True; expected a value of type int"),
        ({"is_on": 1}, "is 1; expected a value of type bool"),
        ({"pair": [1]}, r"is \[1\]; expected a list of 2"),
        ({"names": [1]}, r"`recipe: names\[0\]` is 1; expected a value of type str"),
        ({"table": [1]}, "expected a mapping"),
        ({"table": {"a": "b"}}, "`recipe: table.a` is 'b'"),
        ({"either": 1.5}, "expected a value of one of the types int, str"),
        ({"inner": {}}, r"`recipe: inner` lacks \['rate'\]; add it"),
        ({"inner": {"rate": 1, "kind": "cosin"}}, "`recipe: inner: kind` is 'cosin'; did you mean `cosine`"),
        ({"inner": 3}, "`recipe: inner` is 3; expected a mapping"),
    ],
)
def test_wrong_content_is_refused_with_its_place(content: dict[str, Any], message: str) -> None:
    with pytest.raises(SectionError, match=message):
        parse(**content)


@pytest.mark.parametrize(("text", "message"), [("- a", "expected a mapping"), ("a: [", "cannot be read as YAML")])
def test_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SectionError, match=f"`r.yaml`.*{message}"):
        read_yaml(tmp_path / "r.yaml")


def test_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SectionError, match=r"`r\.yaml` cannot be read"):
        read_yaml(tmp_path / "r.yaml")


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: " + "[" * 100 + "]" * 100, "nested deeper than 64", id="deep"),
        pytest.param("a: " + "{a: " * 100_000, "nested deeper than 64", id="very-deep"),
        pytest.param("a: &a {b: *a}", "refers to itself", id="itself"),
        pytest.param(BOMB, "stands for more than", id="bomb"),
        pytest.param("a: 2024-99-99", "cannot be read", id="date"),
    ],
)
def test_yaml_that_does_harm_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SectionError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_aliases_and_merges_of_a_recipe_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
