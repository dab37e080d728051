"""Flags for many pollers: one question to the database, none that waits for it; who has them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import DatabaseError
from django.test import Client

from audit_logging import policy, uptake
from audit_logging.models import CaptureFlags, CaptureProcess
from audit_publisher import views
from audit_publisher.flags import Board, FlagsCache, matches


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("header", "same"),
    [
        ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ('"b",W/"a"', True), ("*", True),
        ("", False), ('"b"', False), ("a", False), ('"ab"', False), ('"a', False), (",", False),
    ],
)  # fmt: skip
def test_entity_tags(header: str, same: bool) -> None:
    assert matches(header, '"a"') is same


@pytest.mark.django_db
def test_a_tag_that_a_proxy_made_weak_still_saves_the_answer(api: Client) -> None:
    tag = api.get("/v1/config/shop")["ETag"]
    assert tag == policy.etag(policy.document("shop"))
    for asked in ("W/" + tag, '"other", ' + tag):
        answer = api.get("/v1/config/shop", headers={"if-none-match": asked})
        assert (answer.status_code, answer.content, answer["ETag"]) == (304, b"", tag)


def test_a_database_that_fails_leaves_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), []
    failing = False

    def document(service: str) -> dict[str, Any]:
        asked.append(service)
        if failing:
            raise DatabaseError("away")
        return {"flags": {}, "rules": [], "version": len(asked)}

    monkeypatch.setattr(policy, "document", document)
    cache = FlagsCache(clock)
    first = cache.get("a")
    failing = True
    clock.now += 2
    assert cache.get("a") == first
    # It is left alone for a while, for every service.
    assert cache.get("a") == first
    with pytest.raises(ConnectionError):
        cache.get("b")
    assert asked == ["a", "a"]
    failing = False
    clock.now += cache.PAUSE
    assert cache.get("a") != first


def test_a_database_that_hangs_holds_one_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    entered, go_on = threading.Event(), threading.Event()
    slow = False

    def document(service: str) -> dict[str, Any]:
        if slow:
            entered.set()
            go_on.wait(30)
        return {"flags": {}, "rules": []}

    monkeypatch.setattr(policy, "document", document)
    cache = FlagsCache(clock)
    first = cache.get("a")
    slow = True
    clock.now += 5
    held = threading.Thread(target=cache.get, args=("a",))
    held.start()
    try:
        assert entered.wait(10)
        clock.now += 5
        begun = time.monotonic()
        for _ in range(50):
            assert cache.get("a") == first
            with pytest.raises(TimeoutError):
                cache.get("never heard of")
        # A hundred pollers that each waited would take a hundred seconds.
        assert time.monotonic() - begun < 20
    finally:
        go_on.set()
        held.join()


def header(pid: int = 7, settings: str = "") -> str:
    return uptake.to_header(
        uptake.Report("", "api-1", pid, 1_789_999_000.0, "0.1", "publisher", "", 0, settings)
    )


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> tuple[Board, Clock]:
    clock = Clock()
    made = Board(clock)
    monkeypatch.setattr(views, "_board", made)
    return made, clock


@pytest.mark.django_db
def test_what_a_process_has_in_force_is_noted(api: Client, board: tuple[Board, Clock]) -> None:
    noted, clock = board
    CaptureFlags.objects.create(service_name="shop")

    def poll(tag: str = "", process: str = header()) -> str:
        asked = {"audit-process": process} | ({"if-none-match": tag} if tag else {})
        return api.get("/v1/config/shop", headers=asked)["ETag"]

    tag = poll(process=header(settings="{}"))
    # It comes back before anything was written: its settings are not lost.
    poll("W/" + tag)
    assert noted.flush() == 1
    row = CaptureProcess.objects.get()
    assert (row.service_name, row.host, row.pid, row.flags_etag) == ("shop", "api-1", 7, tag)
    assert (row.source, row.version, row.settings) == ("publisher", "0.1", "{}")
    since = row.since
    # Nothing new: nothing to write, but now and then that it still lives.
    clock.now += 2
    poll(tag)
    assert noted.flush() == 0
    clock.now += uptake.HEARTBEAT
    poll(tag)
    assert noted.flush() == 1
    row.refresh_from_db()
    assert row.last_seen > row.since == since
    # Other flags.
    clock.now += 1
    poll('"other"')
    poll(tag, header(pid=8))
    assert noted.flush() == 2
    row.refresh_from_db()
    assert (row.flags_etag, row.settings) == ('"other"', "{}")
    assert row.since > since
    # The dead are forgotten.
    clock.now += uptake.FORGET + 100
    poll(tag)
    noted.flush()
    assert list(CaptureProcess.objects.values_list("pid", flat=True)) == [7]


@pytest.mark.django_db
def test_what_two_publishers_heard_late_does_not_undo_what_is_newer() -> None:
    clock = Clock()
    one, two = Board(clock), Board(clock)
    one.heard("shop", '"old"', header())
    clock.now += 1
    two.heard("shop", '"new"', header())
    two.flush()
    one.flush()
    assert CaptureProcess.objects.get().flags_etag == '"new"'


@pytest.mark.django_db
@pytest.mark.parametrize(
    "said",
    ["", "x", "host=a", "host=a&pid=x&started=1", "host=a&pid=-1&started=1",
     "host=&pid=1&started=1",
     "host=a&pid=1&started=1e99", "host=a&pid=1&started=nan", "host=a&pid=99999999999&started=1",
     "&".join(f"a{n}=1" for n in range(99)), "host=" + "a" * 7000, "\x00\xff"],
)  # fmt: skip
def test_what_is_no_process_is_ignored(api: Client, board: tuple[Board, Clock], said: str) -> None:
    answer = api.get("/v1/config/shop", headers={"audit-process": said})
    assert answer.status_code == 200
    assert board[0].flush() == 0


@pytest.mark.django_db
def test_what_is_said_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(Clock())
    monkeypatch.setattr(board, "MOST", 20)
    monkeypatch.setattr(uptake, "MOST", 30)
    for n in range(1, 101):
        board.heard("shop", "", header(pid=n))
    assert board.flush() == 20
    for n in range(101, 201):
        board.heard("shop", "", header(pid=n))
    board.flush()
    for n in range(201, 301):
        board.heard("shop", "", header(pid=n))
    board.flush()
    assert CaptureProcess.objects.count() == 40


@pytest.mark.django_db
def test_a_table_that_is_away_fails_no_poll(
    api: Client, board: tuple[Board, Clock], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def away(reports: Any) -> None:
        raise DatabaseError("no such table")

    noted, _ = board
    with monkeypatch.context() as broken:
        broken.setattr(uptake, "store", away)
        for _ in range(3):
            assert api.get(
                "/v1/config/shop", headers={"audit-process": header()}
            ).status_code == 200  # fmt: skip
            assert noted._step() >= 5
    assert len([record for record in caplog.records if "no such table" in record.message]) == 1
    # Once it is there, the next poll is noted.
    api.get("/v1/config/shop", headers={"audit-process": header()})
    noted.flush()
    assert CaptureProcess.objects.count() == 1


@pytest.mark.django_db
def test_only_those_who_may_read_the_flags_are_noted(
    board: tuple[Board, Clock], consumer: Any, api: Client, configure: Any
) -> None:
    consumer.service_names = "other"
    consumer.save()
    from audit_publisher import authentication

    authentication.refresh()
    answer = api.get(
        "/v1/config/shop",
        headers={"audit-process": header(), "wm-consumer.id": consumer.consumer_id},
    )
    assert answer.status_code == 403
    assert board[0].flush() == 0
