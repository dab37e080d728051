"""The schema registry suite against each backend."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from audit_publisher import registry as module
from audit_publisher.exceptions import RegistryUnavailable
from audit_publisher.registry import ConfluentRegistry, FolderRegistry
from tests.contracts.registry import OpenRegistry, RegistryContract


class TestFolder(RegistryContract):
    """Files in a folder."""

    @pytest.fixture
    def open_registry(self, tmp_path: Path) -> OpenRegistry:
        return lambda: FolderRegistry(tmp_path / "schemas")

    @pytest.fixture
    def down(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenRegistry:
        """A disk that takes nothing more; what is on it can be read."""

        def opener() -> FolderRegistry:
            def refuse(*args: Any) -> bool:
                raise OSError(28, os.strerror(28))

            monkeypatch.setattr(module, "_create", refuse)
            return FolderRegistry(tmp_path / "schemas")

        return opener


@pytest.mark.services
class TestConfluent(RegistryContract):
    """A real registry over HTTP."""

    @pytest.fixture
    def open_registry(self, schema_registry: Any, tmp_path: Path) -> OpenRegistry:
        return lambda: ConfluentRegistry(schema_registry.url, tmp_path, timeout=10)

    @pytest.fixture
    def down(self, schema_registry: Any, tmp_path: Path) -> OpenRegistry:
        """The same address and the same cache, with a network that lets nothing through."""

        class Unplugged(ConfluentRegistry):
            def _request(self, method: str, path: str, body: Any = None) -> Any:
                raise RegistryUnavailable("unplugged")

        return lambda: Unplugged(schema_registry.url, tmp_path)


def test_a_registry_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        dead = ConfluentRegistry(f"http://127.0.0.1:{port}", tmp_path, timeout=0.5)
        with pytest.raises(RegistryUnavailable, match="AUDIT_PUBLISHER_REGISTRY_URL"):
            dead.register("events-value", '"string"')
