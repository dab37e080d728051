"""Every fault of a bucket, small and large: stored once with equal bytes, or the right error.

Never poison, never a lost object, never a changed one, and never later than the deadline.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from google.cloud import storage

from audit_sink.exceptions import BucketError, BucketRefused, BucketUnavailable, ConflictError
from audit_sink.lake.storage import Bucket, open_bucket

from .fault_proxy import KINDS, Fault, FaultProxy

pytestmark = pytest.mark.services

NAME = "events/service=a/date=2026-01-02/endpoint=b/t-primary-0-0-10.parquet"
DATA = {"small": b"PAR1" + bytes(range(256)) * 8, "large": bytes(range(256)) * 36_000}
SIZES = tuple(DATA)
#: What the scheduler of a busy machine may add to a deadline, in seconds.
SLACK = 1.5
#: Seconds in which the library's policy gets over one failure.
PATIENT = 10.0
ONCE = 1

Open = Callable[[float], Bucket]


class Store:
    """A bucket of the emulator, seen past the proxy."""

    def __init__(self, server: Any) -> None:
        self.name = f"faults-{uuid.uuid4().hex}"
        self.bucket: storage.Bucket = server.create_bucket(self.name)

    def put(self, data: bytes) -> None:
        self.bucket.blob(NAME).upload_from_string(data)

    def objects(self) -> dict[str, bytes]:
        return {blob.name: blob.download_as_bytes() for blob in self.bucket.list_blobs()}


@pytest.fixture
def store(gcs_server: Any) -> Store:
    return Store(gcs_server)


@pytest.fixture
def proxy(gcs_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(gcs_server.address)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: FaultProxy, store: Store, settings: Any) -> Open:
    """Open the bucket through the proxy, with so many seconds for a call."""

    def open_with(seconds: float) -> Bucket:
        settings.AUDIT_SINK = {"BUCKET_TIMEOUT_SECONDS": seconds}
        return open_bucket(f"gs://{store.name}")

    return open_with


def attempt(bucket: Bucket, data: bytes, seconds: float) -> BucketError | ConflictError | bool:
    """What `create` returned or raised, in time."""
    begun = time.monotonic()
    outcome: Any
    try:
        outcome = bucket.create(NAME, data)
    except (BucketError, ConflictError) as error:
        outcome = error
    assert time.monotonic() - begun < seconds + SLACK
    return outcome


# -- once: the library's policy gets over it ----------------------------------------------------

_BREAKS = [
    *(Fault("status", status=status) for status in (429, 500, 503)),
    *(Fault(action) for action in ("before", "during", "after", "half")),
]
_PLACES = [("small", "commit"), ("large", "start"), ("large", "part"), ("large", "commit")]


def _known(size: str, kind: str, fault: Fault) -> bool:
    # A part whose answer is lost is sent again; the emulator appends it twice: see below.
    return (size, kind) == ("large", "part") and fault.action in ("after", "half")


@pytest.mark.parametrize(
    ("size", "kind", "fault"),
    [
        pytest.param(size, kind, fault, id=f"{size}-{kind}-{fault.action}{fault.status or ''}")
        for size, kind in _PLACES
        for fault in _BREAKS
        if not _known(size, kind, fault)
    ],
)
def test_a_fault_that_passes_is_got_over(
    size: str, kind: str, fault: Fault, through: Open, proxy: FaultProxy, store: Store
) -> None:
    bucket, data = through(PATIENT), DATA[size]
    with proxy.failing(Fault(fault.action, (kind,), ONCE, fault.status)):
        # False: the first try had landed, and only its answer was lost.
        assert attempt(bucket, data, PATIENT) in (True, False)
    assert proxy.seen.count(kind) >= 2 or fault.action in ("after", "half")
    assert store.objects() == {NAME: data}
    assert bucket.create(NAME, data) is False


@pytest.mark.parametrize("action", ["after", "half"])
def test_what_a_server_stored_otherwise_than_sent_is_taken_back(
    action: str, through: Open, proxy: FaultProxy, store: Store
) -> None:
    # The emulator appends a part that is sent twice; the real service drops what it has.
    bucket, data = through(PATIENT), DATA["large"]
    with proxy.failing(Fault(action, ("part",), ONCE)):
        assert isinstance(attempt(bucket, data, PATIENT), BucketUnavailable)
    assert store.objects() == {}
    assert bucket.create(NAME, data) is True
    assert store.objects() == {NAME: data}


def test_bytes_that_are_mangled_on_the_way_are_not_stored(
    through: Open, proxy: FaultProxy, store: Store
) -> None:
    bucket, data = through(PATIENT), DATA["small"]
    with proxy.failing(Fault("mangle", times=ONCE)):
        assert isinstance(attempt(bucket, data, PATIENT), BucketUnavailable)
    assert store.objects() == {}
    assert bucket.create(NAME, data) is True


# -- always: the right error, in time, and nothing broken ---------------------------------------

_ENDLESS: list[Fault] = [
    *(Fault("status", status=status) for status in (401, 403, 412, 429, 500, 503)),
    *(Fault(action) for action in ("before", "during", "after", "silent")),
    # Longer than the deadline, though no byte is late.
    *(Fault(action, seconds=4) for action in ("slow", "slow_body")),
]
_NAMED = [pytest.param(fault, id=f"{fault.action}{fault.status or ''}") for fault in _ENDLESS]


@pytest.mark.parametrize("size", SIZES)
def test_a_fault_that_stays_is_told_and_made_good_later(
    size: str, gcs_server: Any, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    seconds, data = 2.0, DATA[size]

    def suffer(fault: Fault, proxy: FaultProxy, store: Store, bucket: Bucket) -> str:
        with proxy.failing(fault):
            outcome = attempt(bucket, data, seconds)
        # Nothing, or all of it; and the same call, later, makes it good.
        assert store.objects() in ({}, {NAME: data})
        if outcome is False:
            # It landed, and a look at the name has shown it.
            assert store.objects() == {NAME: data}
        assert eventually_stored(bucket, data) in (True, False)
        assert store.objects() == {NAME: data}
        return type(outcome).__name__

    # Side by side, as each of them waits for its end.
    settings.AUDIT_SINK = {"BUCKET_TIMEOUT_SECONDS": seconds}
    names = [f"{fault.action}{fault.status or ''}" for fault in _ENDLESS]
    proxies = [FaultProxy(gcs_server.address) for _ in _ENDLESS]
    with ThreadPoolExecutor(4) as pool:
        futures = []
        for fault, proxy in zip(_ENDLESS, proxies, strict=True):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            store = Store(gcs_server)
            bucket = open_bucket(f"gs://{store.name}")
            futures.append(pool.submit(suffer, replace(fault), proxy, store, bucket))
        found = {
            name: future.exception() or future.result()
            for name, future in zip(names, futures, strict=True)
        }
    for proxy in proxies:
        proxy.close()
    expected = dict.fromkeys(names, "BucketUnavailable")
    expected |= {"status401": "BucketRefused", "status403": "BucketRefused"}
    # Where the upload's answer is lost but the bucket answers else, a look is enough.
    assert found.pop("after") in ("bool", expected.pop("after"))
    assert found == expected


def eventually_stored(bucket: Bucket, data: bytes) -> bool:
    """Create until it is done, as a lane does."""
    for _ in range(5):
        try:
            return bucket.create(NAME, data)
        except BucketUnavailable:
            # This machine was too slow for the deadline.
            continue
    raise AssertionError("it was never stored")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", ["slow", "slow_body"])
def test_slow_but_in_time_is_stored(
    action: str, size: str, through: Open, proxy: FaultProxy, store: Store
) -> None:
    with proxy.failing(Fault(action, seconds=0.5)):
        assert attempt(through(PATIENT), DATA[size], PATIENT) is True
    assert store.objects() == {NAME: DATA[size]}


@pytest.mark.parametrize("size", SIZES)
def test_a_name_that_is_taken_is_compared(
    size: str, through: Open, proxy: FaultProxy, store: Store
) -> None:
    data = DATA[size]
    store.put(data)
    assert attempt(through(PATIENT), data, PATIENT) is False
    other = data[:-1] + b"!"
    assert isinstance(attempt(through(PATIENT), other, PATIENT), ConflictError)
    assert store.objects() == {NAME: data}


@pytest.mark.parametrize("fault", [one for one in _NAMED if one.id not in ("status429", "silent")])
@pytest.mark.parametrize("size", SIZES)
def test_no_fault_changes_an_object_that_is_there(
    size: str, fault: Fault, through: Open, proxy: FaultProxy, store: Store
) -> None:
    store.put(b"not ours")
    slow = min(fault.seconds, 0.2)
    with proxy.failing(Fault(fault.action, ("commit",), ONCE, fault.status, slow)):
        outcome = attempt(through(PATIENT), DATA[size], PATIENT)
    # Whatever was said of the upload, a look at the name tells that it is another's.
    assert isinstance(outcome, ConflictError), outcome
    assert store.objects() == {NAME: b"not ours"}


def test_a_limit_of_requests_is_no_refusal(through: Open, proxy: FaultProxy, store: Store) -> None:
    limit = Fault("status", times=math.inf, status=403, reason="userRateLimitExceeded")
    with proxy.failing(limit):
        assert isinstance(attempt(through(PATIENT), b"data", PATIENT), BucketUnavailable)


def test_a_refusal_says_what_to_do_and_is_not_waited_for(through: Open, proxy: FaultProxy) -> None:
    bucket = through(PATIENT)
    for status, cure in ((403, "Storage Object User"), (401, "Set GOOGLE_APPLICATION|Renew")):
        with proxy.failing(Fault("status", KINDS, status=status)):
            begun = time.monotonic()
            for call in (
                lambda: bucket.create(NAME, b"data"),
                lambda: bucket.read(NAME),
                lambda: bucket.size(NAME),
                lambda: list(bucket.list()),
                lambda: bucket.delete(NAME),
                bucket.probe,
            ):
                with pytest.raises(BucketRefused, match=cure):
                    call()
            assert time.monotonic() - begun < 2


# -- the other calls ----------------------------------------------------------------------------

CALLS: dict[str, Callable[[Bucket], Any]] = {
    "read": lambda bucket: bucket.read(NAME),
    "list": lambda bucket: list(bucket.list()),
    "probe": lambda bucket: bucket.probe(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("action", ["status", "before", "half"])
def test_reading_gets_over_a_fault_that_passes(
    action: str, call: str, through: Open, proxy: FaultProxy, store: Store
) -> None:
    store.put(DATA["small"])
    bucket = through(PATIENT)
    expected = CALLS[call](bucket)
    with proxy.failing(Fault(action, KINDS, ONCE, 503)):
        assert CALLS[call](bucket) == expected


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("action", ["status", "silent", "slow"])
def test_reading_ends_in_time_when_a_fault_stays(
    action: str, call: str, through: Open, proxy: FaultProxy, store: Store
) -> None:
    store.put(DATA["small"])
    bucket = through(1.0)
    with proxy.failing(Fault(action, KINDS, math.inf, 503, seconds=4)):
        begun = time.monotonic()
        with pytest.raises(BucketUnavailable):
            CALLS[call](bucket)
        assert time.monotonic() - begun < 1.0 + SLACK
    assert bucket.read(NAME) == DATA["small"]


# -- the whole sink -----------------------------------------------------------------------------


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("status", "said", "stalls"),
    [(401, "no credentials", True), (403, "Storage Object User", True), (503, "503", False)],
)
def test_a_site_whose_bucket_refuses_stands_still_alone_and_goes_on_by_itself(
    status: int,
    said: str,
    stalls: bool,
    tmp_path: Any,
    settings: Any,
    proxy: FaultProxy,
    store: Store,
) -> None:
    from audit_publisher.conf import conf as publisher_conf
    from audit_publisher.eventlog import Limits, get_region
    from audit_publisher.testing import make_event, make_record
    from audit_sink.conf import conf
    from audit_sink.ingest.run import ingest_all
    from audit_sink.lake.ledger import ledger_problems
    from audit_sink.models import LakeFile, Lane, Site
    from audit_sink.status import sink_statuses

    settings.AUDIT_PUBLISHER = {"DATA_DIR": tmp_path / "publisher", "TOPIC_PARTITIONS": 1}
    settings.AUDIT_SINK = {"DATA_DIR": tmp_path / "sink", "BUCKET_TIMEOUT_SECONDS": 1}
    Site.objects.filter(code="US").update(bucket=f"gs://{store.name}")
    canada = Site.objects.get(code="CA").site_id
    log, topic, clock = get_region("primary"), publisher_conf.DEFAULT_TOPIC, Clock()
    log.append(topic, [make_record(make_event(site_id=site)) for site in (None, canada)])
    with proxy.failing(Fault("status", KINDS, status=status)):
        ingest_all(clock=clock)
        # The other site has its row; this one shows what is wrong, and how bad it is.
        assert list(LakeFile.objects.values_list("site", flat=True)) == ["CA"]
        lane = Lane.objects.get(sink="US", region="primary")
        assert (lane.failures > conf.RETRIES) == stalls
        wait = conf.STALLED_RETRY_SECONDS if stalls else conf.RETRY_SECONDS
        assert lane.due_at == clock.now + wait
        assert said in Site.objects.get(code="US").last_error
        (us,) = (one for one in sink_statuses(clock=clock) if one.sink == "US")
        assert us.stalled_lanes == int(stalls)
        clock.now += wait
        ingest_all(clock=clock)
        assert store.objects() == {}
    clock.now += 60
    ingest_all(clock=clock)
    assert len(store.objects()) == LakeFile.objects.filter(site="US", rows=1).count() == 1
    assert ledger_problems() == []
    assert Site.objects.get(code="US").last_error == ""
    assert Lane.objects.get(pk=lane.pk).failures == 0
    # None of it was ever poison.
    dead = f"{topic}_DLQ"
    assert log.watermarks(dead, 0)[1] == 0 or not log.read(dead, 0, 0, Limits(timeout=0))
