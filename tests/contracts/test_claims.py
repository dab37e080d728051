"""One contract for both places where claims on requests are kept: a host's file, and Redis."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from audit_publisher.identity.replay import BUSY, TAKEN, CacheClaims, Claim, Claims, Memory
from audit_publisher.identity.replay_file import FileClaims
from tests.services.fixtures import serve
from tests.services.redis import Redis


def redis_cache(url: str) -> dict[str, Any]:
    return {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "replays": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": url,
            "OPTIONS": {"socket_timeout": 0.5, "socket_connect_timeout": 0.5},
        },
    }


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.services)])
def hosts(request: pytest.FixtureRequest, tmp_path: Path, settings: Any) -> list[Claims]:
    """Two who share what they know: processes of one host, or hosts."""
    if request.param == "file":
        return [FileClaims(tmp_path / "replays.bin") for _ in range(2)]
    settings.CACHES = redis_cache(request.getfixturevalue("redis_server").url)
    return [CacheClaims("replays") for _ in range(2)]


def test_one_takes_it(hosts: list[Claims]) -> None:
    here, there = (Memory(lambda claims=claims: claims) for claims in hosts)
    identity = b"contract %d" % time.monotonic_ns()
    until = time.time() + 60
    claim = here.claim(identity, until)
    assert isinstance(claim, Claim)
    assert there.claim(identity, until) == BUSY
    claim.settle(taken=False)
    claim = there.claim(identity, until)
    assert isinstance(claim, Claim)
    claim.settle(taken=True)
    assert [each.claim(identity, until) for each in (here, there)] == [TAKEN, TAKEN]


def test_a_claim_lapses(hosts: list[Claims]) -> None:
    key = (b"lapses %d" % time.monotonic_ns())[-16:]
    now = time.time()
    assert hosts[0].claim(key, 1, now, now + 0.2) is None
    assert hosts[1].claim(key, 2, now, now + 60) == BUSY
    deadline = time.monotonic() + 20
    while hosts[1].claim(key, 3, now := time.time(), now + 60) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Who was too slow gives back nothing that is another's.
    hosts[0].release(key, 1)
    assert hosts[0].claim(key, 4, now, now + 60) == BUSY


@pytest.mark.services
def test_requests_go_on_without_the_cache(settings: Any) -> None:
    def unseen() -> float:
        labels = {"reason": "store"}
        return REGISTRY.get_sample_value("audit_publisher_replays_unseen_total", labels) or 0.0

    clock, waits = [time.time()], [0.0]
    with serve(Redis(own=True)) as redis:
        settings.CACHES = redis_cache(redis.url)
        memory = Memory(lambda: CacheClaims("replays"), lambda: clock[0], waits=lambda: waits[0])
        claim = memory.claim(b"a", clock[0] + 60)
        assert isinstance(claim, Claim)
        redis.kill()
        before = unseen()
        # It cannot be settled; that is nothing to fail a request for.
        claim.settle(taken=True)
        assert memory.claim(b"b", clock[0] + 60) is None
        clock[0] += 6
        waits[0] += 6
        assert memory.claim(b"c", clock[0] + 60) is None
        assert unseen() == before + 2
        redis.start()
        clock[0] += 6
        waits[0] += 6
        assert isinstance(memory.claim(b"d", clock[0] + 60), Claim)
