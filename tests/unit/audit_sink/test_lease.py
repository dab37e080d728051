"""A claim outlasts the work on it, and not its worker."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from audit_sink.exceptions import ClaimLost
from audit_sink.ingest import claims
from audit_sink.ingest.lease import kept
from audit_sink.models import Batch, Lane
from tests.support import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batch(sink_options: Callable[..., None]) -> Batch:
    sink_options(LEASE_SECONDS=1)
    lane = Lane.objects.create(
        sink="US", region="primary", topic="t", partition=0, start_offset=0, high_watermark=10
    )
    made = claims.claim(lane, 0, 10, owner="first", now=time.time(), read=10, taken=10)
    assert made is not None
    return made


def expires(batch: Batch) -> float:
    return Batch.objects.values_list("lease_expires", flat=True).get(pk=batch.pk)


def test_a_claim_stands_as_long_as_its_worker_works(batch: Batch) -> None:
    first = expires(batch)
    with kept(batch, time.time):
        # As long as one call to a slow bucket.
        eventually(lambda: expires(batch) >= first + 1.5, 20)
        assert claims.take_over(batch, owner="second", now=time.time()) is None
    last = expires(batch)
    assert claims.take_over(batch, owner="second", now=last) is not None


def test_a_claim_that_was_lost_is_not_won_back(batch: Batch) -> None:
    ahead = 100.0
    with kept(batch, time.time):
        taken = claims.take_over(batch, owner="second", now=time.time() + ahead)
        assert taken is not None
        with pytest.raises(ClaimLost):
            claims.renew(batch, now=time.time())
    assert Batch.objects.get(pk=batch.pk).owner == "second"
    assert expires(batch) > time.time() + ahead - 1
