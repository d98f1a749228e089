"""Which split of a data set a file belongs to, told from its name by the words that `datasets` looks for."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

logger = logging.getLogger(__name__)

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_SEPARATORS = re.compile(r"[-._ 0-9]+")


def split_of(path: PurePath) -> str | None:
    """The split that a path names, in its last part or else in the innermost directory that names one.

    Args:
        path: File or directory, relative to the data set.

    >>> split_of(PurePath("data/val2014-00001.parquet")), split_of(PurePath("test/latest.jsonl"))
    ('validation', 'test')
    >>> split_of(PurePath("rows.jsonl")) is None
    True
    """
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in _SEPARATORS.split(part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def choose_split(files: Sequence[Path], split: str, *, root: Path, is_pattern: bool = False) -> list[Path]:
    """Files of one split, so that what is to be tested on is not trained on.

    Files whose names say no split belong to `train`. Where no name says any, or a pattern picked files of a single
    split, there is nothing to choose. What is left out is logged once.

    Args:
        files: Files of one data set.
        split: Split to read; also one of another name, which its files begin with or lie in.
        root: Directory of the data set; directories above it say nothing.
        is_pattern: Whether the files were picked by a pattern.

    Raises:
        ValueError: If there are files of other splits only.
    """
    found = {file: split_of(file.relative_to(root)) for file in files}
    if not any(found.values()) or (is_pattern and len({name or "train" for name in found.values()}) == 1):
        named = [file for file in files if _is_named(file.relative_to(root), split)]
        return named or list(files)
    wanted = _SPLITS.get(split.lower(), split)
    if wanted in _WORDS:
        chosen = [file for file in files if (found[file] or "train") == wanted]
    else:
        chosen = [file for file in files if _is_named(file.relative_to(root), split)]
    others = sorted({name or "train" for file, name in found.items() if file not in set(chosen)})
    if not chosen:
        raise ValueError(
            f"`{root}` holds no file of split `{split}`, but of {', '.join(others)}; choose one with `split` "
            f"(`--split {others[0]}` on the command line), or name the files."
        )
    if others:
        _say_once(
            f"{root}: {len(chosen)} of {len(files)} files belong to split `{split}` and are read; those of "
            f"{', '.join(others)} are left out. Choose another with `split`, or name the files."
        )
    return chosen


def _is_named(path: PurePath, split: str) -> bool:
    return split in path.parent.parts or re.match(rf"{re.escape(split)}(?=[-._ ]|$)", path.name) is not None


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
