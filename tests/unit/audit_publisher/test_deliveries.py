"""What a worker of the capture tier sends, and this publisher takes: over HTTP, signed, packed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application

from audit_logging.batch import Batch
from audit_logging.conf import LoggingSettings
from audit_logging.dead_letter_file import DEAD_STREAM
from audit_logging.delivery import RETRY_STREAM, Deliverer, Publisher
from audit_publisher import authentication, routing
from audit_publisher.conf import conf
from audit_publisher.eventlog import Limits, get_region
from audit_publisher.models import Consumer, ConsumerKey
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import CONSUMER, Configure

pytestmark = pytest.mark.django_db


@pytest.fixture
def keys(tmp_path: Path, private_key_file: Path) -> Path:
    """The folder of signing keys, with version 1 in it."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "1.pem").write_bytes(private_key_file.read_bytes())
    return folder


@pytest.fixture
def url() -> Iterator[str]:
    """This publisher behind Django's own HTTP server, which drops headers with underscores."""
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(get_wsgi_application())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def make(
    url: str, keys: Path, tmp_path: Path, configure: Configure
) -> Iterator[Callable[..., Deliverer]]:
    made: list[Deliverer] = []

    def make(**values: Any) -> Deliverer:
        values = {
            "PUBLISHER_URL": url,
            "CONSUMER_ID": CONSUMER,
            "PRIVATE_KEY_PATH": keys,
            "DATA_DIR": tmp_path / "capture",
            "DELIVERY_RETRIES": 0,
        } | values
        chosen = LoggingSettings({f"AUDIT_LOGGING_{key}": str(v) for key, v in values.items()})
        deliverer = Deliverer(Publisher(chosen), chosen)
        deliverer.start = lambda: None  # type: ignore[method-assign]
        made.append(deliverer)
        return deliverer

    configure(SIGNATURE="enforce")
    routing.refresh()
    authentication.refresh()
    yield make
    for deliverer in made:
        deliverer.stop()
        deliverer.target.close()  # type: ignore[attr-defined]


def deliver(deliverer: Deliverer, *events: dict[str, Any]) -> None:
    batch = Batch.of([json.dumps(event) for event in events])
    deliverer.deliver(batch.message(), batch.count)


def stored() -> list[str]:
    log = get_region("primary")
    found = []
    for partition in range(log.partitions(conf.DEFAULT_TOPIC)):
        for record in log.read(conf.DEFAULT_TOPIC, partition, 0, Limits(timeout=0)):
            found.append((dict(record.headers)["request_id"] or b"").decode())
    return sorted(found)


def ids(events: list[dict[str, Any]]) -> list[str]:
    return sorted(event["request_id"] for event in events)


def test_a_full_batch_and_one_bad_event_in_it(
    make: Callable[..., Deliverer], consumer: Consumer
) -> None:
    deliverer = make()
    events = [make_event() for _ in range(500)]
    deliver(deliverer, *events, make_event(request_ts=1.0))
    assert stored() == ids(events)
    (letter,) = deliverer.dead_letters.read(DEAD_STREAM, 0)
    assert json.loads(dict(letter.headers)["reason"] or b"")["field"] == "request_ts"


@pytest.mark.parametrize("scheme", ["rsa-v1_5-sha256", "rsa-pss-sha512"])
def test_deliveries_whose_bodies_are_signed(
    make: Callable[..., Deliverer], consumer: Consumer, scheme: str
) -> None:
    Consumer.objects.update(schemes="message")
    authentication.refresh()
    events = [make_event() for _ in range(3)]
    legacy = make()
    deliver(legacy, events[0])
    assert legacy.spool.stats(RETRY_STREAM).records == 1
    signing = make(SIGNATURE_SCHEME=scheme)
    # What waited for the other scheme is in the same spool.
    signing.drain_step()
    deliver(signing, events[1])
    deliver(signing, events[2])
    assert stored() == ids(events)
    assert isinstance(signing.target, Publisher)
    assert signing.target.ask("inventory-api")[0] == 200


def test_more_than_the_publisher_takes_at_once_is_halved(
    make: Callable[..., Deliverer], consumer: Consumer, configure: Configure
) -> None:
    deliverer = make()
    configure(SIGNATURE="enforce", MAX_BATCH_EVENTS=30, MAX_BATCH_BYTES=20_000)
    routing.refresh()
    authentication.refresh()
    events = [make_event() for _ in range(100)]
    deliver(deliverer, *events)
    assert stored() == ids(events)


def test_a_key_rotates_while_deliveries_go_on(
    make: Callable[..., Deliverer], consumer: Consumer, keys: Path
) -> None:
    deliverer = make()
    events = [make_event() for _ in range(4)]
    deliver(deliverer, events[0])
    assert stored() == ids(events[:1])
    # Mounted before its public half is registered: nobody knows it yet.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (keys / "2.pem").write_bytes(pem)
    deliver(deliverer, events[1])
    assert deliverer.spool.stats(RETRY_STREAM).records == 1
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    ConsumerKey.objects.create(consumer=consumer, key_version="2", public_key=public.decode())
    authentication.refresh()
    deliver(deliverer, events[2])
    deliverer.drain_step()
    assert stored() == ids(events[:3])
    # The old one is taken away, and is refused from now on.
    (keys / "1.pem").unlink()
    ConsumerKey.objects.filter(key_version="1").update(revoked=True)
    authentication.refresh()
    deliver(deliverer, events[3])
    assert stored() == ids(events)
    assert deliverer.spool.stats(RETRY_STREAM).records == 0
