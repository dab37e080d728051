"""Events of a known size, as a capture process sends them."""

from __future__ import annotations

import json
import random
import time
import uuid
from typing import Any

from .stack import SERVICE

_WORDS = ("pallet", "inbound", "pending", "carrier", "warehouse", "lot", "expiry", "dock", "ramp")


def event(
    random_: random.Random, size: int = 2000, bodies: bool = True, now: float | None = None
) -> dict[str, Any]:
    """Return one event whose JSON has about `size` bytes, most of them in its two bodies.

    :param now: its time, in epoch seconds; without it the clock's, whose digits vary its length.
    """
    number = random_.randrange(10_000_000)
    now = time.time() if now is None else now
    made: dict[str, Any] = {
        "request_id": str(uuid.UUID(int=random_.getrandbits(128), version=4)),
        "service_name": SERVICE,
        "endpoint_name": random_.choice(
            ("api/v1/shipments/{id}", "api/v1/items", "api/v1/items/{sku}/stock", "api/v1/orders")
        ),
        "path": f"/api/v1/shipments/SHP{number}?expand=items",
        "method": random_.choice(("GET", "POST", "PUT")),
        "response_code": random_.choice((200, 200, 200, 201, 400, 404)),
        "request_ts": round(now - random_.random(), 6),
        "response_ts": round(now, 6),
        "headers": {
            "content-type": "application/json",
            "user-agent": "partner-sdk/4.2 (python)",
            "wm-site-id": random_.choice(("US", "CA", "MX")),
            "wm-qos.correlation-id": str(uuid.UUID(int=random_.getrandbits(128), version=4)),
        },
        "trace_id": f"{random_.getrandbits(128):032x}",
        "consumer_id": f"supplier-{number % 500}",
        "outcome": "completed",
        "request_body_state": "full",
        "response_body_state": "full",
        "producer_epoch": f"0198c3a1-{number % 4:04x}",
        "seq": number,
    }
    if bodies:
        left = max(0, size - len(json.dumps(made)) - 60)
        made["request_body"] = _document(random_, left // 3)
        made["response_body"] = _document(random_, left - left // 3 - _escapes(made))
        made["request_size"] = len(made["request_body"])
        made["response_size"] = len(made["response_body"])
    return made


def _escapes(made: dict[str, Any]) -> int:
    return len(json.dumps(made["request_body"])) - len(made["request_body"])


def _document(random_: random.Random, size: int) -> str:
    lines: list[dict[str, Any]] = []
    length = 0
    while length < size:
        lines.append(
            {
                "sku": f"SKU-{random_.randrange(1_000_000)}",
                "quantity": random_.randrange(500),
                "note": " ".join(random_.choices(_WORDS, k=3)),
            }
        )
        length += len(json.dumps(json.dumps(lines[-1])))
    return json.dumps({"lines": lines})[: max(0, size)]
