"""Events as a day's traffic has them: ids, prices and signatures in them, about 2 KB of JSON.

The same seed gives the same events. Their shape is the publisher's benchmark's own; what differs is
what compression feels: several services, products that come again and again, and values that
nothing can compress.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections.abc import Iterator
from typing import Any

from benchmarks.publish.events import event

SEED = 7
#: Bytes of JSON.
SIZE = 2067
#: Epoch seconds of the first event's day: 2026-11-24 00:00 UTC.
DAY = 1_795_478_400
#: Service → endpoints, the busiest first.
SERVICES: dict[str, tuple[str, ...]] = {
    "inventory-api": ("iac/v1/inventory", "iac/v1/items/{gtin}", "iac/v1/nodes", "iac/v1/holds"),
    "order-api": ("v3/orders", "v3/orders/{id}/ship", "v3/orders/{id}/cancel", "v3/returns"),
    "price-api": ("v2/prices", "v2/prices/{sku}", "v2/promotions"),
    "shipment-api": ("api/v1/shipments/{id}", "api/v1/labels", "api/v1/carriers", "api/v1/asn"),
}
_WORDS = ("organic", "diced", "tomato", "no salt", "whole", "milk", "bag", "family", "pack", "red")
_NODES = [f"NODE-{number:04d}" for number in range(4100, 4500)]
_catalogue: list[tuple[str, str, str]] = []


def events(count: int, *, seed: int = SEED, spread: int = 0) -> Iterator[dict[str, Any]]:
    """Yield `count` events, spread evenly over one day.

    :param spread: instead of a handful of partitions, so many of (service, date, endpoint).
    """
    random_ = random.Random(seed)
    names = [(service, each) for service, many in SERVICES.items() for each in many]
    weights = [1 / (1 + number) for number in range(len(names))]
    for number in range(count):
        now = DAY + 86_400 * number / count
        made = event(random_, bodies=False, now=now)
        service, endpoint = random_.choices(names, weights)[0]
        if spread:
            place = random_.randrange(spread)
            service = f"service-{place % 10}"
            endpoint = f"api/v1/endpoint-{place // 10 % 25}"
            shift = 86_400 * (place // 250)
            made["request_ts"] -= shift
            made["response_ts"] -= shift
        consumer = f"{uuid.UUID(int=hash_of(int(made['consumer_id'].rpartition('-')[2])))}"
        path = f"/{endpoint.replace('{id}', str(random_.randrange(10**10)))}"
        made |= {
            "service_name": service,
            "endpoint_name": endpoint,
            "path": path.replace("{gtin}", _product(random_)[0]).replace("{sku}", "4108"),
            "consumer_id": consumer,
        }
        made["headers"] |= {
            "wm-site-id": "US",
            "wm-consumer.intimestamp": f"{int(now * 1000)}",
            "x-request-id": str(uuid.UUID(int=random_.getrandbits(128))),
            "wm-svc.version": random_.choice(("1.0.0", "1.1.0")),
        }
        _bodies(random_, made)
        yield made


def hash_of(number: int) -> int:
    """128 bits that a number always has."""
    return random.Random(number).getrandbits(128)


def _bodies(random_: random.Random, made: dict[str, Any]) -> None:
    lines = [_line(random_)]
    request = {
        "orderId": random_.randrange(10**12),
        "shipNode": random_.choice(_NODES),
        "channel": random_.choice(("WEB", "STORE", "MARKETPLACE")),
        "lines": [{key: line[key] for key in ("gtin", "quantity")} for line in lines],
    }
    if random_.random() < 0.25:
        request["signature"] = base64.b64encode(random_.randbytes(32)).decode()
    answer: dict[str, Any] = {"status": "ACCEPTED", "node": random_.choice(_NODES), "lines": lines}
    while _size(made, request, answer) < SIZE - 165:
        lines.append(_line(random_))
        if len(lines) % 2:
            request["lines"].append({key: lines[-1][key] for key in ("gtin", "quantity")})
    made["request_body"] = json.dumps(request)
    made["response_body"] = json.dumps(answer)
    made["request_size"] = len(made["request_body"])
    made["response_size"] = len(made["response_body"])


def _size(made: dict[str, Any], request: Any, answer: Any) -> int:
    # A body's quotes are escaped once more.
    return sum(len(json.dumps(text)) for text in (json.dumps(request), json.dumps(answer))) + len(
        json.dumps(made)
    )


def _line(random_: random.Random) -> dict[str, Any]:
    gtin, name, category = _product(random_)
    cents = random_.randrange(99, 9999)
    return {
        "gtin": gtin,
        "name": name,
        "category": category,
        "lot": f"{random_.getrandbits(48):012X}",
        "quantity": random_.randrange(1, 24),
        "unitPrice": {"amount": cents / 100, "currency": "USD"},
        "available": random_.random() < 0.9,
    }


def _product(random_: random.Random) -> tuple[str, str, str]:
    if not _catalogue:
        own = random.Random(SEED)
        _catalogue.extend(
            (
                f"{own.randrange(10**13):014d}",
                " ".join(own.choices(_WORDS, k=4)),
                own.choice(("grocery", "dairy", "produce", "household")),
            )
            for _ in range(20_000)
        )
    # Some products sell much more than others.
    return _catalogue[int(len(_catalogue) * random_.random() ** 2)]
