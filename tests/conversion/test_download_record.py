import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from xgen_mm.conversion.download_record import changed_downloads, noted_hashes
from xgen_mm.conversion.verify_checkpoint import check_files

CONTENT = b"weights"
HASH = hashlib.sha256(CONTENT).hexdigest()


def local_folder(directory: Path) -> Path:
    """As `hf download --local-dir` leaves it."""
    metadata = directory / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(CONTENT)
    (directory / "config.json").write_text("{}")
    (metadata / "model.safetensors.metadata").write_text(f"{'c' * 40}\n{HASH}\n1700000000.5\n")
    (metadata / "config.json.metadata").write_text(f"{'c' * 40}\n{'a' * 40}\n1700000000.5\n")
    return directory


def cache_snapshot(directory: Path) -> Path:
    """As the cache keeps it."""
    blobs, snapshot = directory / "blobs", directory / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / HASH).write_bytes(CONTENT)
    (blobs / ("a" * 40)).write_text("{}")
    (snapshot / "model.safetensors").symlink_to(blobs / HASH)
    (snapshot / "config.json").symlink_to(blobs / ("a" * 40))
    return snapshot


@pytest.mark.parametrize("download", [local_folder, cache_snapshot])
def test_intact_download_passes_and_changed_one_is_named(download: Callable[[Path], Path], tmp_path: Path) -> None:
    directory = download(tmp_path)
    assert noted_hashes(directory) == {"model.safetensors": HASH}
    assert changed_downloads(directory) == []
    (directory / "model.safetensors").write_bytes(b"weightt")
    assert changed_downloads(directory) == ["model.safetensors"]
    result = check_files(directory)
    assert result is not None
    assert not result.has_passed
    assert "model.safetensors" in result.stage


def test_folder_that_was_not_downloaded_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    assert changed_downloads(tmp_path) is None
    assert check_files(tmp_path) is None
