"""The schema registry suite against each backend."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from audit_publisher.avro import registry as module
from audit_publisher.avro.registry import ConfluentRegistry, FolderRegistry, Registry
from audit_publisher.codec import schema_text
from audit_publisher.exceptions import RegistryUnavailable, SchemaIncompatible
from tests.contracts.registry import OpenRegistry, RegistryContract, changed


class Canned:
    """A registry with one schema and one id, or one that says what it is told to."""

    def __init__(self) -> None:
        #: (status, body) of every answer; None: it hangs up; True: a registry's own.
        self.answers: tuple[int, bytes] | bool | None = True
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say({"schema": '"string"'})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._say({"id": 7})

            def _say(self, document: dict[str, Any]) -> None:
                if canned.answers is None:
                    return
                status, body = 200, json.dumps(document).encode()
                if isinstance(canned.answers, tuple):
                    status, body = canned.answers
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def registry(self, cache: Path) -> ConfluentRegistry:
        """A client of it that knows nothing but what `cache` holds."""
        return ConfluentRegistry(self.url, cache, timeout=5)

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def canned() -> Iterator[Canned]:
    made = Canned()
    yield made
    made.close()


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

    def test_a_registry_that_takes_everything_is_not_given_it(
        self, schema_registry: Any, registry: Registry, subject: str
    ) -> None:
        """As Apicurio is until it is told otherwise."""
        assert isinstance(registry, ConfluentRegistry)
        registry.register(subject, schema_text())
        assert registry.guards(subject, schema_text())
        schema_registry.request("PUT", "/config", {"compatibility": "NONE"})
        try:
            assert not registry.guards(subject, schema_text())
            with pytest.raises(SchemaIncompatible, match="must_have: a new field needs a default"):
                registry.register(subject, changed(name="must_have", type="string"))
            registry.enforce(subject)
            assert registry.guards(subject, schema_text())
        finally:
            schema_registry.request("PUT", "/config", {"compatibility": "BACKWARD"})

    def test_who_knows_no_better_asks_the_registry_itself(
        self, schema_registry: Any, registry: Registry, subject: str
    ) -> None:
        """The registry refuses what another client of it, without our check, would register."""
        registry.register(subject, schema_text())
        text = changed(name="must_have", type="string")
        path = f"/subjects/{subject}/versions"
        with pytest.raises(HTTPError) as caught:
            schema_registry.request("POST", path, {"schema": text})
        assert caught.value.code == 409

    def test_what_is_registered_needs_no_right_to_register(
        self, schema_registry: Any, registry: Registry, tmp_path: Path, subject: str
    ) -> None:
        schema_id = registry.register(subject, schema_text())

        class ReadOnly(ConfluentRegistry):
            def _request(self, method: str, path: str, body: Any = None) -> Any:
                assert not path.endswith("/versions")
                return super()._request(method, path, body)

        other = ReadOnly(schema_registry.url, tmp_path / "other")
        assert other.register(subject, schema_text()) == schema_id


#: What a disk may make of a cache file.
DAMAGE = [b"", b"12", b"\xff\xfe\x00", b"{", b"-3\n", b"1\n2\n", "\u0663\n".encode()]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_no_more_than_an_empty_one(
    canned: Canned, tmp_path: Path, damage: bytes
) -> None:
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7
    assert json.loads(canned.registry(tmp_path).schema(7)) == "string"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(damage)
    # The registry is asked again, and what it says is kept.
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7
    assert json.loads(canned.registry(tmp_path).schema(7)) == "string"
    (ids,) = tmp_path.rglob("*.id")
    ids.write_bytes(damage)
    canned.answers = None
    with pytest.raises(RegistryUnavailable):
        canned.registry(tmp_path).register("events-value", '"string"')
    ids.write_bytes(b"7\n")
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7


def test_what_another_registry_said_is_not_believed(canned: Canned, tmp_path: Path) -> None:
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7
    dead = ConfluentRegistry("http://127.0.0.1:1", tmp_path, timeout=0.5)
    with pytest.raises(RegistryUnavailable):
        dead.register("events-value", '"string"')
    with pytest.raises(RegistryUnavailable):
        dead.schema(7)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>a proxy's page</html>"),
        (404, b"<html>not found</html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"id": "7"}'),
        (200, b'{"id": 4294967296}'),
        (401, b"{}"),
        (403, b'{"error_code": 40301, "message": "no"}'),
        (500, b"{}"),
        (503, b""),
    ],
)
def test_what_is_no_registry_s_answer_changes_nothing(
    canned: Canned, tmp_path: Path, status: int, body: bytes
) -> None:
    """What is known goes on; what is not, waits, and nothing is believed."""
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7
    canned.answers = (status, body)
    assert canned.registry(tmp_path).register("events-value", '"string"') == 7
    assert canned.registry(tmp_path).schema(7) == '"string"'
    with pytest.raises(RegistryUnavailable):
        canned.registry(tmp_path).register("new-value", '"string"')


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"subject": "x"}', b"\xff"])
def test_a_damaged_folder_is_named(tmp_path: Path, damage: bytes) -> None:
    FolderRegistry(tmp_path).register("events-value", '"string"')
    (tmp_path / "1.json").write_bytes(damage)
    with pytest.raises(RegistryUnavailable, match=r"1\.json is damaged"):
        FolderRegistry(tmp_path).schema(1)
    # A second schema beside it might contradict it.
    with pytest.raises(RegistryUnavailable, match=r"1\.json is damaged"):
        FolderRegistry(tmp_path).register("events-value", '"long"')


def test_a_registry_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        dead = ConfluentRegistry(f"http://127.0.0.1:{port}", tmp_path, timeout=0.5)
        with pytest.raises(RegistryUnavailable, match="AUDIT_PUBLISHER_REGISTRY_URL"):
            dead.register("events-value", '"string"')
