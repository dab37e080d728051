"""A publisher that is restarted while the schema registry is down goes on with what it knows."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from audit_logging.signing import Signer
from audit_publisher.testing import make_event
from tests.services.fixtures import serve as start
from tests.services.registry import Registry
from tests.support import eventually
from tests.unit.audit_publisher.conftest import CONSUMER
from tests.unit.audit_publisher.served import Server, serve

pytestmark = [pytest.mark.services, pytest.mark.slow]


def send(server: Server, key: Path) -> tuple[int, dict[str, Any]]:
    signed = Signer(CONSUMER, "1", key).headers(int(time.time() * 1000))
    return server.post([*signed.items()], json.dumps(make_event()).encode())


def test_a_restart_needs_no_registry(
    tmp_path: Path, public_pem: str, private_key_file: Path
) -> None:
    topic = f"events-{uuid.uuid4().hex[:8]}"
    with start(Registry(own=True)) as registry:
        options = {
            "AUDIT_PUBLISHER_REGISTRY_URL": registry.url,
            "AUDIT_PUBLISHER_REGISTRY_TIMEOUT": "20",
            "AUDIT_PUBLISHER_DEFAULT_TOPIC": topic,
        }
        with serve(tmp_path, public_pem, **options) as server:
            # Both processes must have asked; one that was turned away asks again.
            eventually(lambda: send(server, private_key_file)[0] == 200, 30)
        registry.kill()
        with serve(tmp_path, public_pem, **options) as server:
            status, answer = send(server, private_key_file)
            assert (status, answer.get("status")) == (200, "published")
