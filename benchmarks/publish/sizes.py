"""How large events are as Avro, beside their JSON."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from .events import event

_EVENTS = 500
#: Epoch seconds of every event, for figures that do not depend on the hour.
_NOW = 1_795_500_000.123456
#: Bytes of an event's JSON in real traffic, and how many of a hundred events have them.
_MIX = ((600, 25), (1_200, 25), (2_000, 25), (6_000, 15), (20_000, 8), (100_000, 2))


@dataclass(frozen=True)
class Size:
    """Mean bytes of some events.

    :ivar share: Avro's part of the JSON.
    """

    what: str
    json: float
    avro: float

    @property
    def share(self) -> float:
        return self.avro / self.json


def measure() -> list[Size]:
    """Sizes without bodies, with bodies of 2 KB in all, and over a mix of sizes."""
    random_ = random.Random(7)
    sizes = [size for size, many in _MIX for _ in range(many)]
    return [
        _size("without bodies", [event(random_, bodies=False, now=_NOW) for _ in range(_EVENTS)]),
        _size("2 KB", [event(random_, 2000, now=_NOW) for _ in range(_EVENTS)]),
        _size(
            "a mix of 0.6 to 100 KB",
            [event(random_, random_.choice(sizes), now=_NOW) for _ in range(_EVENTS)],
        ),
    ]


def _size(what: str, events: list[dict[str, Any]]) -> Size:
    from audit_publisher import codec
    from audit_publisher.serializers import parse_event, to_avro

    texts = [json.dumps(each).encode() for each in events]
    encoded = 0
    for text in texts:
        parsed = parse_event(text)
        fields = to_avro(
            parsed,
            headers=parsed.headers or {},
            site_id=parsed.site_id,
            consumer_id=parsed.consumer_id,
        )
        encoded += len(codec.writer()(fields)) + 5
    return Size(what, sum(map(len, texts)) / len(texts), encoded / len(texts))
