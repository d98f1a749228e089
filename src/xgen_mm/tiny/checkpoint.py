"""Where the trained small model lies."""

from pathlib import Path

CHECKPOINT_DIR = Path(__file__).parent / "checkpoint"


def tiny_checkpoint() -> Path:
    """Directory of the small checkpoint that ships with the package, ready for `from_pretrained`.

    Raises:
        FileNotFoundError: If this installation came without it.

    >>> (tiny_checkpoint() / "config.json").is_file()
    True
    """
    if not (CHECKPOINT_DIR / "config.json").is_file():
        raise FileNotFoundError(
            f"`{CHECKPOINT_DIR}` holds no checkpoint. Install the package with its data files, or train the model: "
            "see `recipes/tiny/README.md`."
        )
    return CHECKPOINT_DIR
