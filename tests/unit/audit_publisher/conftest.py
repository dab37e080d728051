"""A publisher of its own for each test: fresh folders, nothing refreshed behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.test import Client

from audit_publisher import authentication, eventlog, publish, routing
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


@pytest.fixture
def api(db: None) -> Client:
    routing.refresh()
    return Client(raise_request_exception=False)


def stored(region: str = "primary", topic: str = "api-audit-events") -> list[Any]:
    """Every record in a topic, in no promised order over partitions."""
    log = eventlog.get_region(region)
    return [
        record
        for partition in range(log.partitions(topic))
        for record in log.read(topic, partition, 0, Limits(timeout=0))
    ]
