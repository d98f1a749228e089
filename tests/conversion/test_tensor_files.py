import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xgen_mm.conversion.tensor_files import list_directory, read_header
from xgen_mm.errors import ConversionError
from xgen_mm.weight_files import weight_files

INDEX = "model.safetensors.index.json"


def write_checkpoint(directory: Path, weight_map: dict[str, str]) -> None:
    """One tensor per name, in the file that the map says."""
    directory.mkdir(exist_ok=True)
    for file_name in set(weight_map.values()):
        save_file(
            {name: torch.ones(2, 3) for name, home in weight_map.items() if home == file_name}, directory / file_name
        )
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_raw(path: Path, entries: dict[str, object], data: bytes) -> None:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_header_gives_type_shape_and_place_of_every_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    save_file({"x": values}, path)
    tensor = read_header(path).tensors["x"]
    assert (tensor.dtype, tensor.shape, tensor.num_rows, tensor.row_bytes) == ("BF16", (2, 3), 2, 6)
    raw = bytearray(path.read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes])
    assert torch.equal(torch.frombuffer(raw, dtype=torch.bfloat16).view(2, 3), values)


@pytest.mark.parametrize("missing", [1, 24, 10_000], ids=["last-byte", "all-values", "part-of-the-header"])
def test_truncated_file_is_refused_by_name(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "broken.safetensors"
    save_file({"x": torch.ones(2, 3)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: max(5, len(content) - missing)])
    with pytest.raises(ConversionError, match=r"broken\.safetensors is (truncated|not a whole)"):
        read_header(path)


@pytest.mark.parametrize(
    ("entries", "num_bytes", "message"),
    [
        pytest.param({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12, "gap or overlap", id="gap"),
        pytest.param({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 12, "longer than", id="too-long"),
        pytest.param({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8, "does not fill", id="shape"),
        pytest.param({"x": {"dtype": "F8", "shape": [2], "data_offsets": [0, 8]}}, 8, "type `F8`", id="type"),
        pytest.param({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "sizes", id="negative-size"),
        pytest.param({"x": {"shape": [2]}}, 8, "damaged", id="no-type"),
    ],
)
def test_header_that_does_not_describe_its_file_is_refused(
    tmp_path: Path, entries: dict[str, object], num_bytes: int, message: str
) -> None:
    path = tmp_path / "odd.safetensors"
    write_raw(path, entries, bytes(num_bytes))
    with pytest.raises(ConversionError, match=rf"odd\.safetensors.*{message}"):
        read_header(path)


def test_header_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}")
    with pytest.raises(ConversionError, match="damaged safetensors header"):
        read_header(path)


def test_directory_lists_tensors_of_all_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"})
    assert weight_files(tmp_path) == ["one.safetensors", "two.safetensors"]
    assert sorted(list_directory(tmp_path)) == ["a", "b", "c"]


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="neither"):
        list_directory(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "C:\\a.safetensors", "..", ""]
)
def test_index_that_points_outside_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "checkpoint"
    write_checkpoint(directory, {"a": "one.safetensors"})
    save_file({"b": torch.ones(1)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": name}}
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="points outside its directory"):
        list_directory(directory)


def test_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"lacks two\.safetensors"):
        list_directory(tmp_path)


def test_index_and_shards_that_disagree_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="disagree about a, b"):
        list_directory(tmp_path)


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, tmp_path / "two.safetensors")
    with pytest.raises(ConversionError, match=r"`a` is in one\.safetensors and in two\.safetensors"):
        list_directory(tmp_path)


@pytest.mark.parametrize("content", ["not json", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_index_without_names_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ConversionError, match=r"index\.json"):
        weight_files(tmp_path)
