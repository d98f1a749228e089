import os
import pickle
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from xgen_mm.conversion.pickle_files import list_pickle, seal, write_skeleton
from xgen_mm.errors import ConversionError


class Attack:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def read_values(path: Path, name: str) -> torch.Tensor:
    tensor = list_pickle(path)[0][name]
    raw = bytearray(path.read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes])
    return torch.frombuffer(raw, dtype=torch.float32).view(tensor.shape)


@pytest.mark.parametrize("wrapper", [None, "model_state_dict"], ids=["bare", "training-checkpoint"])
def test_state_dict_is_found_with_and_without_wrapper(tmp_path: Path, wrapper: str | None) -> None:
    values = torch.randn(4, 5)
    state = {"a": values, "b": values[1:3]}
    moments = {"state": {0: {"exp_avg": torch.zeros(2)}}}
    torch.save({wrapper: state, "epoch": 1, "optimizer_state_dict": moments} if wrapper else state, tmp_path / "x.pt")
    tensors, found = list_pickle(tmp_path / "x.pt")
    assert found == wrapper
    assert list(tensors) == ["a", "b"]
    assert torch.equal(read_values(tmp_path / "x.pt", "a"), values)
    assert torch.equal(read_values(tmp_path / "x.pt", "b"), values[1:3])


def test_file_with_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "extra": Attack(tmp_path / "RAN")}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="they could run code when loaded, so nothing was loaded"):
        list_pickle(tmp_path / "x.pt")
    assert not (tmp_path / "RAN").exists()


def test_plain_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Attack(tmp_path / "RAN")}))
    with pytest.raises(ConversionError, match="Plain pickles can run code and are never opened"):
        list_pickle(tmp_path / "x.pt")
    assert not (tmp_path / "RAN").exists()


def test_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(200)}, tmp_path / "broken.pt")
    content = (tmp_path / "broken.pt").read_bytes()
    (tmp_path / "broken.pt").write_bytes(content[:-300])
    with pytest.raises(ConversionError, match=r"broken\.pt is not a whole file"):
        list_pickle(tmp_path / "broken.pt")


def test_archive_that_is_no_torch_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ConversionError, match=r"x\.pt is not a whole file"):
        list_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([torch.ones(2)], "holds no state dict", id="list"),
        pytest.param({"a": torch.ones(2), "note": "text"}, "not tensors: note", id="text-entry"),
        pytest.param({"a": torch.ones(2, 3).t()}, "not stored in one piece", id="transposed"),
        pytest.param({"a": torch.ones(2, dtype=torch.complex64)}, "complex64; expected one of", id="type"),
    ],
)
def test_file_that_is_no_plain_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=message):
        list_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize("wrapper", [None, "model_state_dict"])
def test_sealed_skeleton_is_a_valid_archive_that_loads(tmp_path: Path, wrapper: str | None) -> None:
    path = tmp_path / "x.pt"
    values = torch.randn(3, 4)
    write_skeleton(path, {"a": ("F32", (3, 4))}, wrapper=wrapper)
    place = list_pickle(path)[0]["a"]
    raw = values.numpy().tobytes()
    with path.open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(raw)
    seal(path, {place.offset: zlib.crc32(raw)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    loaded = torch.load(path, weights_only=True)
    assert torch.equal((loaded[wrapper] if wrapper else loaded)["a"], values)
