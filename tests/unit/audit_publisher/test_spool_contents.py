"""Looking into this host's spool, and deciding about what was refused: by page and by command."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection

from audit_logging.spool import Record
from audit_publisher import routing
from audit_publisher.conf import conf
from audit_publisher.durable.spool import CAUSE_HEADER, REFUSED, TOPIC_HEADER, Spool
from audit_publisher.models import TopicRoute, TrailLine
from audit_publisher.operating.chart import HEIGHT, chart
from audit_publisher.operating.sizes import size
from audit_publisher.operating.spool_contents import Contents, Unwilling
from audit_publisher.publish import get_publisher
from audit_publisher.serializers import parse_event
from tests.unit.audit_publisher.operating import DOWN, SPOOL, TRAIL, heard, person, send

pytestmark = pytest.mark.django_db

TOPIC = "api-audit-events"
CAUSE = "the broker takes 1,000 bytes"

Fill = Callable[..., list[str]]


@pytest.fixture
def spool() -> Spool:
    return Spool(conf.spool_dir(), conf.SPOOL_MAX_BYTES)


@pytest.fixture
def fill(spool: Spool) -> Fill:
    """Spools events; returns their request ids."""

    def add(count: int, topic: str = TOPIC, refuse: bool = False) -> list[str]:
        routing.refresh()
        records, ids = [], []
        for _ in range(count):
            request_id = str(uuid.uuid4())
            event = {
                "request_id": request_id,
                "service_name": "inventory-api",
                "endpoint_name": "items",
                "path": "/items?token=[redacted]",
                "method": "GET",
                "response_code": 200,
                "request_ts": time.time(),
                "response_ts": time.time(),
            }
            router = routing.Router({}, 1_764_000_000_000_000)
            _, record = router.to_record(parse_event(json.dumps(event).encode()))
            records.append(record)
            ids.append(request_id)
        spool.append(topic, records)
        if refuse:
            waiting = spool.oldest(topic, 1000)[-count:]
            spool.done(topic, (), [(record, CAUSE) for record in waiting])
        return ids

    return add


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("audit_publisher_spool", *arguments, stdout=out)
    return out.getvalue()


def url(page: str, **query: Any) -> str:
    return f"{SPOOL}{page}/?{urlencode({'place': Contents().place, **query})}"


# -- by command ---------------------------------------------------------------------------


def test_an_empty_spool_is_not_made_by_looking() -> None:
    assert "Nothing waits." in run("list")
    assert "Nothing in" in run("show")
    with pytest.raises(CommandError, match="no refused record 3 any more"):
        run("discard", "--offsets=3", "--reason=x")
    assert run("redrive", "--all", "--reason=x") == "0 will be appended again by the next drain.\n"
    assert not conf.spool_dir().exists()


def test_every_hosts_spool_is_listed(fill: Fill) -> None:
    fill(1)
    assert "no process is heard" in run("list")
    heard("web-1", 1, spool={"records": 12, "used_bytes": 950, "drain": "waiting"})
    heard("web-2", 2, age=100, spool={"records": 4})
    text = run("list")
    assert "  web-1 /var/spool/publisher: 95.0 % of 1 kB, 12 waiting, 0 refused; waits for" in text
    assert "4 waiting, 0 refused; not heard" in text
    assert TOPIC in text
    found = json.loads(run("list", "--json"))
    assert [(each["host"], each["fill"]) for each in found["everywhere"]] == [
        ("web-1", 95.0),
        ("web-2", 0.0),
    ]

    def down(*args: Any, **kwargs: Any) -> Any:
        raise DatabaseError("the database is down")

    with connection.execute_wrapper(down):
        text = run("list")
    assert "Other hosts' spools are not known" in text
    assert TOPIC in text


WAITS = {"records": 12, "used_bytes": 500, "drain": "waiting"}
FULL = "the spool is full (995 bytes)"
REFUSES = {"refuses": f"{FULL}."}


@pytest.mark.parametrize(
    ("spool", "up", "said"),
    [
        ({}, True, "empty"),
        (WAITS, False, "waits for a region"),
        (WAITS | {"drain": "draining"}, True, "draining"),
        (WAITS | {"used_bytes": 995}, False, "events are refused: it is full"),
        (WAITS | REFUSES, False, f"events are refused: {FULL}"),
        (
            WAITS | REFUSES | {"refused": 1},
            False,
            f"events are refused: {FULL}; 1 refused record: send again, or discard",
        ),
        (WAITS | REFUSES | {"drain": "draining"}, True, "full, and draining"),
        ({"refused": 3, "used_bytes": 400}, True, "3 refused records: send again, or discard"),
        (
            {"refused": 3, "used_bytes": 995},
            True,
            "it is full; 3 refused records: send again, or discard",
        ),
        (WAITS | {"problem": "the disk failed"}, True, "the disk failed"),
    ],
)
def test_the_page_says_how_a_spool_is_and_the_cure(
    spool: dict[str, Any], up: bool, said: str
) -> None:
    regions = {} if up else {"primary": DOWN, "secondary": DOWN}
    # One process knows that an event found no room; another was heard later.
    heard("web-1", 1, age=2, regions=regions, spool=spool)
    if spool.get("refuses"):
        heard("web-1", 2, age=1, regions=regions, spool=spool | {"refuses": ""})
    page = person("reader", "view_spoolpage").get(SPOOL).content.decode()
    assert f">{said}</span>" in page


def test_streams_and_records_are_listed(fill: Fill) -> None:
    ids = fill(3)
    (bad,) = fill(1, "other", refuse=True)
    found = json.loads(run("list", "--json"))
    assert {row["name"]: row["records"] for row in found["streams"]} == {TOPIC: 3, REFUSED: 1}
    assert "3 records" in run("list")
    shown = json.loads(run("show", f"--stream={TOPIC}", "--from=1", "--limit=1", "--json"))
    assert [(row["offset"], row["request_id"]) for row in shown] == [(1, ids[1])]
    assert shown[0]["key"] == "inventory-api/items"
    assert "value" not in shown[0]
    line = run("show")
    assert bad in line
    assert f"for other: {CAUSE}" in line


def test_an_event_is_shown_as_stored_and_the_look_is_noted(fill: Fill) -> None:
    (request_id,) = fill(1)
    event = json.loads(run("show", f"--stream={TOPIC}", "--event=0"))
    assert event["request_id"] == request_id
    assert event["path"] == "/items?token=[redacted]"
    line = TrailLine.objects.get(action="looked")
    assert line.fields == {"request_id": request_id}
    assert " by " in line.actor
    with pytest.raises(CommandError, match="no record 9"):
        run("show", f"--stream={TOPIC}", "--event=9")


def test_what_cannot_be_decoded_is_said(spool: Spool, fill: Fill) -> None:
    fill(1)
    (record,) = spool.oldest(TOPIC, 1)
    spool.append(TOPIC, [replace(record, value=b"\x01nonsense")])
    with pytest.raises(CommandError, match=r"cannot be decoded: .*magic byte"):
        run("show", f"--stream={TOPIC}", "--event=1")


def test_refused_records_go_back_to_their_topic_and_are_published(spool: Spool, fill: Fill) -> None:
    ids = fill(2, refuse=True)
    run("redrive", "--offsets=0-1", "--reason=limit raised")
    records = spool.oldest(TOPIC, 10)
    assert [dict(record.headers)["request_id"].decode() for record in records] == ids
    # As they were: what was noted about the refusal does not go to the event log.
    assert not any(name.startswith("#") for record in records for name, _ in record.headers)
    assert Contents().page(REFUSED, 0, 10) == []
    assert get_publisher().drain() == 2
    line = TrailLine.objects.get(action="redriven")
    assert (line.fields["request_ids"], line.reason) == (ids, "limit raised")
    # Two of something are not before and after.
    page = person("reader", "view_trailline").get(TRAIL).content.decode()
    assert "offsets: [0, 1]" in page
    out = StringIO()
    call_command("audit_trail", stdout=out)
    assert "offsets: [0, 1]" in out.getvalue()


def test_a_topic_that_is_no_more_is_not_written_to(spool: Spool, fill: Fill) -> None:
    fill(1, "gone-events", refuse=True)
    with pytest.raises(CommandError, match="no event goes to the topic 'gone-events' any more"):
        run("redrive", "--all", "--reason=x")
    assert spool.topics() == []
    assert TrailLine.objects.filter(action="failed").count() == 1
    with pytest.raises(CommandError, match="Use another name"):
        run("redrive", "--all", "--reason=x", "--topic=events_DLQ")
    run("redrive", "--all", "--reason=x", f"--topic={TOPIC}")
    assert spool.topics() == [TOPIC]
    fill(1, "gone-events", refuse=True)
    TopicRoute.objects.create(service_name="inventory-api", topic="gone-events", enabled=False)
    run("redrive", "--all", "--reason=x")
    assert spool.topics() == [TOPIC, "gone-events"]


def test_a_record_without_its_topic_asks_for_one(spool: Spool, fill: Fill) -> None:
    fill(1)
    (record,) = spool.oldest(TOPIC, 1)
    spool.queue.append(REFUSED, [record])
    with pytest.raises(CommandError, match="topic is not known"):
        run("redrive", "--all", "--reason=x")
    run("redrive", "--all", "--reason=x", f"--topic={TOPIC}")
    assert len(spool.oldest(TOPIC, 10)) == 2


def test_discarding_names_what_is_lost(spool: Spool, fill: Fill) -> None:
    ids = fill(3, refuse=True)
    assert run("discard", "--offsets=0,2", "--reason=test data") == "2 discarded.\n"
    assert [entry.request_id for entry in Contents().page(REFUSED, 0, 10)] == [ids[1]]
    line = TrailLine.objects.get(action="discarded")
    assert line.fields["request_ids"] == [ids[0], ids[2]]
    with pytest.raises(CommandError, match="nothing was done"):
        run("discard", "--offsets=0-1", "--reason=x")
    assert json.loads(run("discard", "--all", "--reason=x", "--json")) == {"records": 1}
    for wrong in ("x", "3-", "9-1", "0-99999999999", "-3"):
        with pytest.raises(CommandError, match="--offsets"):
            run("discard", f"--offsets={wrong}", "--reason=x")


def test_nothing_is_done_that_cannot_be_noted(spool: Spool, fill: Fill) -> None:
    fill(2, refuse=True)

    def down(execute: Any, sql: str, *args: Any) -> Any:
        if "trailline" in sql:
            raise DatabaseError("the database is down")
        return execute(sql, *args)

    contents = Contents()
    with connection.execute_wrapper(down):
        with pytest.raises(DatabaseError):
            contents.discard([0])
        with pytest.raises(DatabaseError):
            contents.redrive(None)
        with pytest.raises(DatabaseError):
            contents.event(REFUSED, 0)
    assert len(contents.page(REFUSED, 0, 10)) == 2


def test_many_are_moved_in_parts(spool: Spool, fill: Fill, monkeypatch: Any) -> None:
    monkeypatch.setattr("audit_publisher.operating.spool_contents._BATCH", 2)
    fill(5, refuse=True)
    assert Contents().redrive(None) == 5
    assert TrailLine.objects.filter(action="redriven").count() == 3


def test_large_ones_are_moved_without_reading_what_they_carry(spool: Spool) -> None:
    routing.refresh()
    headers = ((TOPIC_HEADER, TOPIC.encode()), (CAUSE_HEADER, CAUSE.encode()), ("a", b"1"))
    for _ in range(16):
        spool.queue.append(REFUSED, [Record(bytes(1 << 20), headers=headers)])
    was = spool.queue.used_bytes()
    tracemalloc.start()
    try:
        assert Contents().redrive(None) == 16
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    (first,) = spool.oldest(TOPIC, 1)
    assert (first.value, first.headers) == (bytes(1 << 20), (("a", b"1"),))
    told = sum(len(name) + len(value) for name, value in headers[:2])
    assert spool.queue.used_bytes() == was - 16 * told


def test_somebody_quicker_is_told(fill: Fill) -> None:
    fill(2, refuse=True)
    contents = Contents()
    batches = contents._batches([0, 1])
    entries = next(iter(batches))
    assert contents.discard([0]) == 1
    contents._batches = lambda offsets: iter([entries])  # type: ignore[method-assign]
    with pytest.raises(Unwilling, match="somebody else was quicker"):
        contents.redrive([0, 1])
    assert contents.discard([0, 1]) == 1
    assert TrailLine.objects.filter(action="failed").count() == 2


# -- by page ------------------------------------------------------------------------------


def test_the_pages_by_permission(fill: Fill) -> None:
    fill(1)
    pages = (SPOOL, url("stream", stream=TOPIC), url("record", stream=TOPIC, offset=0))
    nobody = person("nobody")
    assert [nobody.get(page).status_code for page in pages] == [403] * 3
    reader = person("reader", "view_spoolpage")
    assert [reader.get(page).status_code for page in pages] == [200] * 3
    assert "Show the event" not in reader.get(pages[2]).content.decode()
    assert send(reader, pages[2], place=Contents().place).status_code == 403
    for action in ("redrive", "discard"):
        answer = send(reader, f"{SPOOL}refused/{action}/", place=Contents().place, all="1")
        assert answer.status_code == 403
    assert reader.get(f"{SPOOL}add/").status_code == 404


def test_reading_an_event_is_a_post_and_noted(fill: Fill) -> None:
    (request_id,) = fill(1)
    client = person("rita", "read_spooled_events")
    page = url("record", stream=TOPIC, offset=0)
    assert "[redacted]" not in client.get(page).content.decode()
    assert client.post(page, {"place": Contents().place}).status_code == 403
    assert not TrailLine.objects.filter(action="looked").exists()
    answer = send(client, page, place=Contents().place, _change_reason="ticket 7")
    assert "/items?token=[redacted]" in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    line = TrailLine.objects.get(action="looked")
    assert (line.actor, line.reason, line.fields) == (
        "rita",
        "ticket 7",
        {"request_id": request_id},
    )


def test_an_event_is_text_never_markup(spool: Spool, fill: Fill) -> None:
    fill(1)
    (record,) = spool.oldest(TOPIC, 1)
    evil = b"<script>alert(1)</script>"
    spool.append(
        TOPIC, [replace(record, key=evil, headers=(("wm-site-id", evil), ("request_id", evil)))]
    )
    client = person("rita", "read_spooled_events")
    for page in (url("stream", stream=TOPIC), url("record", stream=TOPIC, offset=1)):
        text = client.get(page).content.decode()
        assert "<script>alert(1)" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_refused_records_by_page(spool: Spool, fill: Fill) -> None:
    ids = fill(3, refuse=True)
    client = person("olga", "control_spool")
    place = Contents().place
    assert CAUSE in client.get(url("stream", stream=REFUSED)).content.decode()
    redrive, discard = f"{SPOOL}refused/redrive/", f"{SPOOL}refused/discard/"
    assert client.post(redrive, {"place": place, "all": "1"}).status_code == 403
    client.get(url("stream", stream=REFUSED))
    token = client.cookies["csrftoken"].value

    def post(where: str, **fields: Any) -> Any:
        return client.post(where, {"csrfmiddlewaretoken": token, "place": place, **fields})

    assert client.get(redrive).status_code == 405
    assert "Send again: 2 refused records?" in post(redrive, offset=[0, 2]).content.decode()
    assert "Say why" in post(redrive, offset=[0, 2], confirmed="yes").content.decode()
    assert len(Contents().page(REFUSED, 0, 10)) == 3
    done = post(redrive, offset=[0, 2], confirmed="yes", _change_reason="raised")
    assert done.status_code == 302
    assert [entry.request_id for entry in Contents().page(TOPIC, 0, 10)] == [ids[0], ids[2]]
    assert "cannot be undone" in post(discard, all="1").content.decode()
    assert post(discard, all="1", confirmed="yes", _change_reason="no use").status_code == 302
    assert Contents().page(REFUSED, 0, 10) == []
    assert {line.actor for line in TrailLine.objects.filter(action="discarded")} == {"olga"}
    assert post(discard, all="1").status_code == 302
    assert post(f"{SPOOL}refused/explode/", all="1").status_code == 404


def test_a_page_of_another_hosts_spool_does_nothing(fill: Fill) -> None:
    fill(1, refuse=True)
    client = person("olga", "control_spool", "read_spooled_events")
    client.get(url("stream", stream=REFUSED))
    token = client.cookies["csrftoken"].value
    for where in (f"{SPOOL}refused/discard/", f"{SPOOL}record/?stream=%23refused&offset=0"):
        answer = client.post(
            where,
            {
                "csrfmiddlewaretoken": token,
                "place": "web-9:/var/spool",
                "all": "1",
                "confirmed": "yes",
                "_change_reason": "x",
            },
        )
        assert "Nothing was done" in answer.content.decode()
    assert len(Contents().page(REFUSED, 0, 10)) == 1
    assert not TrailLine.objects.filter(action__in=["looked", "discarded"]).exists()


def test_many_records_come_in_pages(fill: Fill) -> None:
    fill(60)
    client = person("reader", "view_spoolpage")
    first = client.get(url("stream", stream=TOPIC)).content.decode()
    assert "The next 50" in first
    assert "from=50" in first
    second = client.get(url("stream", stream=TOPIC, **{"from": 50})).content.decode()
    assert "The next 50" not in second
    assert second.count("inventory-api/items") == 10
    assert client.get(url("stream", stream=TOPIC, **{"from": "x"})).status_code == 404


def test_a_record_that_has_left_is_said(fill: Fill) -> None:
    client = person("reader", "view_spoolpage")
    assert client.get(url("record", stream=TOPIC, offset=4)).status_code == 302


def test_the_overview_tells_every_spool_and_whose_page_it_is(fill: Fill) -> None:
    fill(2)
    spool = {"records": 12, "used_bytes": 950, "refused": 3, "drain": "waiting"}
    heard("web-1", 1, spool={**spool, "oldest": time.time() - 7200})
    heard("web-1", 2, age=2, spool=spool)
    heard("web-2", 3, age=100, spool={"records": 4})
    page = person("reader", "view_spoolpage").get(SPOOL).content.decode()
    assert "95.0 % of 1 kB" in page
    assert re.search(r"\d\d:\d\d:\d\d UTC</time>", page)
    # What matters most comes first, and has its name beside it on a narrow screen.
    assert page.index('data-name="State"') < page.index('data-name="Full"')
    assert page.index('data-name="Full"') < page.index('data-name="Waiting"')
    assert "waits for a region" in page
    assert "not heard" in page
    assert f"served by <strong>{Contents().host}</strong>" in page
    assert "manage.py audit_publisher_spool list" in page
    assert TOPIC in page


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (2_000_000, "2 MB"),
        (190_500_000, "190.5 MB"),
        (999_999, "1 MB"),
        (1_000_000_000, "1 GB"),
        (5_000_000_000_000, "5 TB"),
    ],
)
def test_sizes_are_as_the_settings_count_them(count: int, said: str) -> None:
    assert size(count) == said


# -- the picture --------------------------------------------------------------------------


def test_the_last_hour_in_bars() -> None:
    now = 6_000_000.0
    end = 100_000
    made = chart(
        [
            [[end, 8, 2, 0, 0, 0], [end - 59, 1, 0, 0, 0, 0]],
            [[end, 10, 0, 0], [end - 60, 99, 0, 0]],
        ],
        now,
    )
    assert made is not None
    assert (made.most, made.totals) == (20, {"published": 19, "spooled": 2, "rejected": 0})
    newest = [bar for bar in made.bars if bar.x > 700]
    assert sum(bar.height for bar in newest) == HEIGHT
    assert min(bar.x for bar in made.bars) == 0
    assert chart([], now) is None
    assert chart([[[end, 0, 0, 0]]], now) is None
