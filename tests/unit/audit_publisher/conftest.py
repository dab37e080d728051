"""A publisher of its own for each test: fresh folders, nothing refreshed behind its back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.http import HttpResponse
from django.test import Client

from audit_publisher import authentication, eventlog, publish, routing
from audit_publisher.asgi import front
from audit_publisher.eventlog import Limits
from audit_publisher.models import Consumer, ConsumerKey

CONSUMER = "8f1f4b66-3f6c-4d24-9f6b-2b6d6a2f7a10"
URL = "/v1/logs/api-requests"
LEGACY = "/v1/logRequest"
BATCH = "/v1/logs/api-requests:batch"

Configure = Callable[..., None]


@pytest.fixture(autouse=True)
def configure(settings: Any, tmp_path: Path) -> Iterator[Configure]:
    """Sets options for one test; signatures are off until a test asks for them."""
    base = {"DATA_DIR": tmp_path / "data", "SIGNATURE": "off", "REFRESH_SECONDS": 3600}

    def apply(**options: Any) -> None:
        settings.AUDIT_PUBLISHER = {**base, **options}

    apply()
    yield apply
    publish.reset()
    eventlog.close_regions()


@pytest.fixture(scope="session")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def public_pem(private_key: rsa.RSAPrivateKey) -> str:
    return (
        private_key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


@pytest.fixture(scope="session")
def private_key_file(
    private_key: rsa.RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("keys") / "private.pem"
    path.write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def consumer(db: None, public_pem: str) -> Consumer:
    """A registered consumer with one key, version 1, that may publish for everybody; call
    `authentication.refresh` to know it."""
    made = Consumer.objects.create(
        consumer_id=CONSUMER, name="Inventory API", service_names="*", caller_ids="*"
    )
    ConsumerKey.objects.create(consumer=made, key_version="1", public_key=public_pem)
    authentication.refresh()
    return made


class Fronted(Client):
    """A client whose requests on events are taken in front of Django, as by the shipped server."""

    def generic(
        self,
        method: str,
        path: str,
        data: Any = "",
        content_type: str | None = "application/octet-stream",
        *args: Any,
        **extra: Any,
    ) -> Any:
        if path not in (URL, BATCH, LEGACY):
            return super().generic(method, path, data, content_type, *args, **extra)
        # As the server did when it started, on a thread that may ask the database.
        authentication.known()
        routing.known()
        body = data if isinstance(data, bytes) else data.encode()
        given = {"HTTP_HOST": "testserver", "CONTENT_LENGTH": str(len(body))}
        given |= {"CONTENT_TYPE": content_type or ""} | {
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in (extra.pop("headers", None) or {}).items()
        }
        given |= extra
        return asyncio.run(self._ask(method, path, body, given))

    async def _ask(self, method: str, path: str, body: bytes, meta: dict[str, str]) -> Any:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "scheme": "http",
            "query_string": b"",
            "client": ("127.0.0.1", 4711),
            "headers": [
                (
                    name.removeprefix("HTTP_").lower().replace("_", "-").encode(),
                    value.encode("latin-1"),
                )
                for name, value in meta.items()
                if name.startswith(("HTTP_", "CONTENT_"))
            ],
        }
        half = len(body) // 2
        parts = [(body[:half], True), (body[half:], False)]
        sent: list[Any] = []

        async def receive() -> Any:
            part, more = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": more}

        async def send(message: Any) -> None:
            sent.append(message)

        async def django(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("This request is not Django's.")

        await front(django)(scope, receive, send)
        start, content = sent
        headers = {name.decode("latin-1"): value.decode() for name, value in start["headers"]}
        response = HttpResponse(content["body"], status=start["status"], headers=headers)
        response.json = lambda: json.loads(response.content)  # type: ignore[attr-defined]
        return response


@pytest.fixture(params=["views", "front"])
def api(request: pytest.FixtureRequest, db: None) -> Client:
    """The operations as Django's views serve them, and as they are served in front of Django."""
    routing.refresh()
    made = Client if request.param == "views" else Fronted
    return made(raise_request_exception=False)


def stored(region: str = "primary", topic: str = "api-audit-events") -> list[Any]:
    """Every record in a topic, in no promised order over partitions."""
    log = eventlog.get_region(region)
    return [
        record
        for partition in range(log.partitions(topic))
        for record in log.read(topic, partition, 0, Limits(timeout=0))
    ]
