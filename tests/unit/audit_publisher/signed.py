"""Requests to the publisher, signed in any scheme, as tests send them and change them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from django.core.cache.backends.locmem import LocMemCache
from django.test import Client
from prometheus_client import REGISTRY

from audit_logging.signing import Scheme, Signer
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import CONSUMER, URL


class SharedCache(LocMemCache):
    """Stands for one that hosts share."""


PSS: Scheme = "rsa-pss-sha512"
V15: Scheme = "rsa-v1_5-sha256"
LEGACY: Scheme = "legacy"


def now_ms(shift: float = 0) -> int:
    """Epoch milliseconds, `shift` seconds from now."""
    return int((time.time() + shift) * 1000)


def counted(result: str) -> float:
    """How many signature checks ended so."""
    labels = {"result": result}
    return REGISTRY.get_sample_value("audit_publisher_signatures_total", labels) or 0.0


def event_body(**event: Any) -> bytes:
    """One event as it is sent."""
    return json.dumps(make_event(**event)).encode()


class Sending:
    """Signs and sends; what is signed and what is sent may differ.

    :param api: the publisher.
    :param key: PEM file of the private key.
    """

    def __init__(self, api: Client, key: Path, scheme: Scheme = PSS) -> None:
        self.api = api
        self.signer = Signer(CONSUMER, "1", key, scheme)

    def headers(
        self,
        body: bytes | None,
        *,
        method: str = "POST",
        url: str = URL,
        shift: float = 0,
        sent: dict[str, str] | None = None,
    ) -> dict[str, str]:
        """The signature's headers of one request; of JSON, unless `sent` says otherwise."""
        if sent is None and body is not None:
            sent = {"Content-Type": "application/json"}
        return self.signer.sign(method, url, body, now_ms(shift), sent)

    def post(
        self,
        body: bytes,
        headers: dict[str, str] | None = None,
        url: str = URL,
        content_type: str = "application/json",
    ) -> Any:
        """Send it, signed unless `headers` say otherwise."""
        if headers is None:
            headers = self.headers(body, url=url, sent={"Content-Type": content_type})
        return self.api.post(url, body, content_type=content_type, headers=headers)


def refusal(response: Any, status: int = 401) -> dict[str, Any]:
    """The problem that a request was answered with."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    return response.json()
