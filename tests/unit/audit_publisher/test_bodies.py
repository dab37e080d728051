"""Whatever comes as a body: bounded, never a fault of ours, and each item has its own fate."""

from __future__ import annotations

import gzip
import json
import random
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_publisher.conf import conf
from audit_publisher.exceptions import InvalidEvent, TooManyItems
from audit_publisher.http.body import BodyReader
from audit_publisher.http.problems import Problem
from audit_publisher.identity.allowed import Allowed
from audit_publisher.identity.senders import Sender
from audit_publisher.intake import take
from audit_publisher.operations import BATCH, EVENT, JSON, NDJSON
from audit_publisher.producer_records import is_producer_record
from audit_publisher.serializers import parse_event, request_id_of, split_array, split_lines
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import Configure, stored

HERE = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# -- what may come -----------------------------------------------------------------------------

#: Pieces that are wrong in their own ways, or only look it.
ODD = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"-0",
    b"1.0",
    b"01",
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\xff"',
    b'"\xc0\xaf"',
    b"\xef\xbb\xbf{}",
    b"{",
    b"}",
    b"]",
    b'{"a": 1,}',
    b"[1,]",
    b"'single'",
    b"// comment",
    b"null",
    b"true",
    b'"text"',
    b"{}",
    b"\x00",
    b"\r",
    b" ",
    b"",
    b"[" * 3000 + b"]" * 3000,
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    json.dumps(make_event(request_ts=1e300)).encode(),
    json.dumps(make_event(seq=2**63)).encode(),
    json.dumps(make_event(response_code=-1)).encode(),
    json.dumps(make_event(headers={"a": None})).encode(),
    b'{"request_id": "x", "request_id": "y"}',
    b'{"record": "producer", "seq": "x"}',
]


def good() -> bytes:
    return json.dumps(make_event()).encode()


_items = st.lists(
    st.one_of(st.builds(good), st.sampled_from(ODD), st.binary(max_size=40)), max_size=8
)


def is_json(data: bytes) -> bool:
    """By an implementation that is not ours, and stricter than it is by itself."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates
    except (ValueError, RecursionError):
        return False
    return True


def taken(body: bytes, form: str) -> list[Any]:
    """What becomes of a batch's items."""
    events = BATCH.events_in(body, form)
    everything = Allowed(everything=True)
    sender = Sender(services=everything, callers=everything)
    return take(events, {}, sender, time.time_ns() // 1000, batch=True)


# -- splitting ---------------------------------------------------------------------------------


@HERE
@given(items=_items, ends=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n"]))
def test_one_bad_line_loses_no_other(db: None, items: list[bytes], ends: bytes) -> None:
    lines = [item for item in ends.join(items).split(b"\n") if item.strip()]
    results = taken(ends.join(items), NDJSON)
    assert len(results) == len(lines)
    for line, result in zip(lines, results, strict=True):
        try:
            event = parse_event(line.strip())
        except (InvalidEvent, ValueError):
            assert result.outcome.status == "rejected"
            assert result.outcome.retryable is False
        else:
            # Only its age can still be against it.
            assert result.outcome.status == "published" or event.request_ts > 1e10
            assert result.request_id == str(event.request_id)


@HERE
@given(items=_items)
def test_one_bad_item_loses_no_other(db: None, items: list[bytes]) -> None:
    body = b"[" + b",".join(items) + b"]"
    results, refusal = [], None
    try:
        results = taken(body, JSON)
    except Problem as problem:
        refusal = problem
    if refusal is not None:
        assert (refusal.status, refusal.kind.code) == (400, "not-json")
        assert not is_json(body) or body.count(b"[" * 500)
        return
    assert all(result.outcome.status in ("published", "rejected") for result in results)
    if is_json(body):
        assert len(results) == len(json.loads(body))
    good_ones = [item for item in items if item[:14] == b'{"request_id":' and len(item) > 300]
    published = [result for result in results if result.outcome.status == "published"]
    assert len(published) >= sum(_fits(item) for item in good_ones)


def _fits(item: bytes) -> bool:
    try:
        parse_event(item)
    except (InvalidEvent, ValueError):
        return False
    return True


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_a_reason(data: bytes) -> None:
    assert request_id_of(data) is None or isinstance(request_id_of(data), str)
    statuses = set()
    for operation, form in ((EVENT, JSON), (BATCH, JSON), (BATCH, NDJSON)):
        try:
            events = operation.events_in(data, form)
        except Problem as problem:
            statuses.add(problem.status)
            continue
        for event in events:
            try:
                parse_event(event)
            except (InvalidEvent, ValueError):
                pass
    assert statuses <= {400}


@pytest.mark.parametrize(
    ("body", "form"),
    [(b"[]", JSON), (b" [ ] ", JSON), (b"", NDJSON), (b"\n\r\n \t\n", NDJSON)],
)
def test_an_empty_batch(db: None, body: bytes, form: str) -> None:
    assert taken(body, form) == []


def test_a_byte_order_mark_is_told(db: None) -> None:
    with pytest.raises(Problem, match="without a byte order mark"):
        BATCH.events_in(b"\xef\xbb\xbf[]", JSON)
    first, second = taken(b"\xef\xbb\xbf" + good() + b"\n" + good(), NDJSON)
    assert (first.outcome.status, second.outcome.status) == ("rejected", "published")


def test_of_a_key_that_came_twice_the_last_counts(db: None) -> None:
    twice = good()[:-1] + b', "service_name": "other-api"}'
    (result,) = taken(twice, NDJSON)
    assert result.outcome.status == "published"
    (record,) = stored()
    assert (record.key or b"").startswith(b"other-api/")


# -- bounds ------------------------------------------------------------------------------------


def peak_of(work: Any, expected: type[Exception]) -> int:
    """The most memory that `work` took at once, in bytes; it must end in an error."""
    tracemalloc.start()
    try:
        with pytest.raises(expected):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", [b"0,", b"{},", b'"",', b"[],", b"0 ,\n"])
def test_many_small_items_take_no_memory(item: bytes) -> None:
    """A few kilobytes, compressed; eight million objects if each were made one."""
    body = b"[" + item * (16_000_000 // len(item)) + b"0]"
    assert peak_of(lambda: split_array(body, 1000), TooManyItems) < 3 * len(body)


@pytest.mark.parametrize("name", [b"request_id", b"record", b"other"])
@pytest.mark.parametrize("small", [b"{},", b'"",', b"0,"])
def test_one_item_of_many_values_takes_no_memory(name: bytes, small: bytes) -> None:
    """What is not used is not made: fifteen kilobytes, compressed, would be 400 MB of values."""
    item = b'{"' + name + b'":[' + small * 400_000 + b"0]}"

    def work() -> None:
        (found,) = split_array(b"[" + item + b"]", 1000)
        assert request_id_of(found) is None
        assert request_id_of(b'{"' + name + b'":[' + small * 200_000 + b"0]}") is None
        assert not is_producer_record(bytes(found))
        raise TooManyItems(0)

    assert peak_of(work, TooManyItems) < 5 * len(item)


def test_the_id_of_what_is_no_event() -> None:
    assert request_id_of(b'{"request_id": "abc"}') == "abc"
    assert request_id_of(b'{"request_id": "\\u0061' + b"b" * 63 + b'"}') == "a" + "b" * 63
    assert request_id_of(b'{"request_id": "' + b"b" * 65 + b'"}') is None
    # It was not read because it is too long: nor is it read for its id.
    assert request_id_of(b'{"request_id": "abc"}' + b" " * conf.MAX_EVENT_BYTES) is None


@pytest.mark.parametrize("line", [b"x\n", b"{}\r\n"])
def test_many_small_lines_take_no_memory(line: bytes) -> None:
    body = line * (16_000_000 // len(line))
    assert peak_of(lambda: split_lines(body, 1000), TooManyItems) < 1_000_000


def test_blank_lines_are_nothing() -> None:
    assert split_lines(b"\n" * 16_000_000 + b"{}", 1) == [b"{}"]


def test_many_commas_are_not_many_items() -> None:
    """Bodies of events hold JSON of their own."""
    item = json.dumps({"request_body": "1," * 300_000, "list": [1] * 10}).encode()
    assert [bytes(each) for each in split_array(b"[" + item + b" , " + item + b"]", 2)] == [
        item,
        item,
    ]
    with pytest.raises(TooManyItems):
        split_array(b"[" + item + b"," + item + b"]", 1)


@pytest.mark.parametrize("end", [b"", b"]", b"\xff]", b"NaN]", b"[" * 5000])
def test_a_large_array_that_is_none(end: bytes) -> None:
    with pytest.raises((ValueError, TooManyItems)):
        split_array(b"[" + b"0," * 300_000 + end, 1_000_000)


def test_the_limit_is_exact() -> None:
    assert len(split_array(b"[1,2,3]", 3)) == len(split_lines(b"1\n2\n3", 3)) == 3
    for split, body in ((split_array, b"[1,2,3,4]"), (split_lines, b"1\n2\n3\n4\n")):
        with pytest.raises(TooManyItems, match="more than 3 events"):
            split(body, 3)


# -- compression -------------------------------------------------------------------------------


def unpacked(data: bytes, limit: int = 100_000) -> bytes:
    reader = BodyReader({"HTTP_CONTENT_ENCODING": "gzip", "CONTENT_LENGTH": str(len(data))}, limit)
    reader.feed(data)
    return reader.plain(reader.raw())


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=5))
def test_members_are_joined(parts: list[bytes]) -> None:
    assert unpacked(b"".join(gzip.compress(part) for part in parts)) == b"".join(parts)


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_damaged_gzip_is_told_or_harmless(data: bytes, at: int, value: int) -> None:
    packed = bytearray(gzip.compress(data, mtime=0))
    packed[at % len(packed)] = value
    code, plain = "", b""
    try:
        plain = unpacked(bytes(packed))
    except Problem as problem:
        code = problem.kind.code
    # If its checksum held, what was changed is not of the data (a date, a flag, a name).
    assert code in ("not-gzip", "too-large") or plain == data


@given(st.binary(min_size=1, max_size=300), st.integers(1, 30))
def test_cut_short_is_told(data: bytes, missing: int) -> None:
    packed = gzip.compress(data)
    with pytest.raises(Problem) as caught:
        unpacked(packed[: max(1, len(packed) - missing)])
    assert caught.value.kind.code == "not-gzip"


@pytest.mark.parametrize("kind", ["one", "members", "empty members"])
def test_a_bomb_is_not_unpacked(kind: str) -> None:
    member = gzip.compress(b" " * 1_000_000)
    bomb = {
        "one": gzip.compress(b" " * 50_000_000),
        "members": member * 90,
        "empty members": gzip.compress(b"") * 900 + member,
    }[kind]
    peak = peak_of(lambda: unpacked(bomb, 100_000), Problem)
    assert peak < 1_000_000


def test_members_that_hold_nothing_take_no_time() -> None:
    """Each is twenty bytes; a copy of all that follows it would make that quadratic: hours."""
    with pytest.raises(Problem, match="members"):
        unpacked(gzip.compress(b"") * 800_000, 16_000_000)
    many = gzip.compress(b"") * 999 + gzip.compress(random.Random(1).randbytes(15_000_000))
    assert len(unpacked(many, 16_000_000)) == 15_000_000
    assert unpacked(gzip.compress(b"a") * 1000) == b"a" * 1000


@given(st.integers(0, 3), st.integers(0, 200_000))
def test_members_of_any_size_are_joined(members: int, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert unpacked(gzip.compress(data, 1) * (members + 1), 1_000_000) == data * (members + 1)


def test_what_else_is_called_gzip() -> None:
    for data in (zlib.compress(b"[]"), b"", b"\x1f\x8b"):
        if data:
            with pytest.raises(Problem):
                unpacked(data)


def test_counts_fit(db: None, configure: Configure) -> None:
    """`received` is what has a fate: no item is counted twice, none is forgotten."""
    from prometheus_client import REGISTRY

    def counted(*names: str) -> float:
        found = 0.0
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                if sample.name in names:
                    found += sample.value
        return found

    names = [f"audit_publisher_events_{fate}_total" for fate in ("published", "rejected")]
    before = counted(*names)
    results = taken(b"\n".join([good(), *(odd for odd in ODD if b"\n" not in odd)]), NDJSON)
    assert counted(*names) - before == len(results)
