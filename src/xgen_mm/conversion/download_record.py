"""Checks downloaded files against the hashes that huggingface_hub noted when it fetched them."""

import hashlib
import re
from pathlib import Path

# `hf download --local-dir` writes one of these per file: commit, entity tag, time.
METADATA = Path(".cache", "huggingface", "download")
# Large files have their SHA-256 as entity tag; small ones a Git hash, which is shorter.
_SHA256 = re.compile(r"[0-9a-f]{64}")


def noted_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the large files of a downloaded directory, by file name; empty if it was not downloaded.

    Both forms are read: a folder given with `--local-dir`, and a snapshot in the cache, whose files are links to blobs
    that bear the hash as their name.
    """
    hashes = {}
    for path in sorted(directory.iterdir()):
        metadata = directory / METADATA / f"{path.name}.metadata"
        tag = path.resolve().name if path.is_symlink() else ""
        if metadata.is_file():
            tag = "".join(metadata.read_text(encoding="utf-8").splitlines()[1:2]).strip()
        if _SHA256.fullmatch(tag):
            hashes[path.name] = tag
    return hashes


def changed_downloads(directory: Path) -> list[str] | None:
    """Names of files that are not what was downloaded; `None` if no hashes were noted."""
    hashes = noted_hashes(directory)
    return [name for name, expected in hashes.items() if _sha256(directory / name) != expected] if hashes else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
