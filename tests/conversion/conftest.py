"""Released directories and converted ones, made once."""

from pathlib import Path

import pytest

from .released_files import GRIDS, write_released_files


@pytest.fixture(scope="session")
def instruct_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory as released for an instruct model: the image settings list grids. Not to be changed."""
    return write_released_files(tmp_path_factory.mktemp("released") / "original", grids=GRIDS)


@pytest.fixture(scope="session")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory as released for the base model: the image settings say `grids: null`. Not to be changed."""
    return write_released_files(tmp_path_factory.mktemp("released") / "original")


@pytest.fixture(scope="session")
def converted_files(instruct_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`instruct_files` in our layout, in several shards. Not to be changed."""
    from xgen_mm.conversion.convert_checkpoint import ConversionOptions, convert_checkpoint

    destination = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(instruct_files, destination, options=ConversionOptions(max_shard_bytes=200_000))
    return destination
