"""A Hub on the loopback interface, and directories to push to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publishing.hub_server import HubServer, running_hub
from tests.publishing.pushable import TOKEN, use_hub, write_checkpoint


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub that huggingface_hub uses; `TOKEN` may write to `someone`."""
    with running_hub() as server:
        server.tokens[TOKEN] = ("someone",)
        use_hub(server, monkeypatch=monkeypatch, home=tmp_path / "hub_home")
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Checkpoint with two small shards, and what training leaves beside one."""
    return write_checkpoint(tmp_path / "checkpoint")
