"""Links that lead out of a directory are not followed when it is published: what they lead to was not meant."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import XGenMMError


def refuse_links(directory: str | os.PathLike[str] | None, names: Iterable[str] | None = None) -> None:
    """Refuse a directory with links, of files or folders, that lead out of it.

    The cache of the Hub's library keeps files as links to its own store; those are what they say they are.

    Args:
        directory: Directory; anything else passes.
        names: Files in it that matter; `None` means all.

    Raises:
        XGenMMError: If there are such links; all are named.
    """
    if directory is None or not Path(directory).is_dir():
        return
    root = Path(directory).resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    if names is None:
        names = [
            Path(folder, name).relative_to(root).as_posix()
            for folder, folders, files in os.walk(root)
            for name in (*folders, *files)
        ]
    found = [name for name in names if not any((root / name).resolve().is_relative_to(home) for home in homes)]
    if found:
        raise XGenMMError(
            f"`{directory}` holds links that lead out of it, which are not followed: {', '.join(sorted(found))}. Copy "
            "what they lead to, or remove them."
        )
