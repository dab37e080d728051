"""Builders for tests: a valid event in its JSON form, and the record it becomes."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from audit_logging.spool import Record

from .routing import Router
from .serializers import parse_event


def make_event(**overrides: Any) -> dict[str, Any]:
    """Return a realistic event as a capture process sends it; `overrides` replace fields."""
    now = round(time.time(), 6)
    return {
        "request_id": str(uuid.uuid4()),
        "service_name": "inventory-api",
        "endpoint_name": "iac/v1/inventory",
        "path": "/iac/v1/inventory?store=4108",
        "method": "POST",
        "request_body": '{"items":[{"gtin":"00012345678905","quantity":12}]}',
        "response_body": '{"status":"ACCEPTED"}',
        "response_code": 202,
        "error_reason": None,
        "request_ts": now - 0.042,
        "response_ts": now,
        "headers": {"content-type": "application/json", "wm-svc.env": "prod"},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "consumer_id": "8f1f4b66-3f6c-4d24-9f6b-2b6d6a2f7a10",
        "site_id": "1704989259133687000",
        "user": None,
        "outcome": "completed",
        "request_size": 51,
        "response_size": 21,
        "request_body_state": "full",
        "response_body_state": "full",
        "producer_epoch": "5c1d0d0e",
        "seq": 0,
        "token_fingerprint": "bearer:9f86d081884c7d65",
        **overrides,
    }


def make_record(
    event: dict[str, Any] | None = None,
    *,
    http: dict[str, str] | None = None,
    now: int | None = None,
) -> Record:
    """Return the event log's record of `event` (JSON form), exactly as the publisher makes it.

    :param http: forwarded HTTP headers, as :func:`~audit_publisher.routing.http_headers` returns.
    :param now: the record's timestamp, epoch microseconds.
    """
    parsed = parse_event(msgspec.json.encode(make_event() if event is None else event))
    return Router(http or {}, now or time.time_ns() // 1000).to_record(parsed)[1]


def make_producer_record(**overrides: Any) -> dict[str, Any]:
    """Return a producer record as a capture process sends it; `overrides` replace fields."""
    now = round(time.time(), 6)
    return {
        "record": "producer",
        "request_id": str(uuid.uuid4()),
        "service_name": "inventory-api",
        "producer_epoch": uuid.uuid4().hex,
        "seq": 100,
        "state": "open",
        "started_at": now - 60,
        "at": now,
        "host": "api-7",
        "pid": 4711,
        "dropped": {},
        "skipped": {},
        **overrides,
    }
