"""What the demo says when requests did not arrive exactly once; and what it shows of redaction."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from audit_logging.batch import Batch, pack
from audit_logging.spool import DurableQueue, Record
from examples.demo.observe import DEAD_LETTERS, Observer, events_in
from examples.demo.prepare import Places
from examples.demo.redacted import secrets_found, what_was_redacted
from examples.demo.report import Counts
from examples.demo.sender import Answer
from examples.demo.traffic import SECRETS, calls

pytestmark = pytest.mark.django_db
BATCH = calls(60)


@pytest.fixture
def observer(tmp_path: Path) -> Observer:
    """One that has seen every call where it belongs."""
    observer = Observer(Places(tmp_path), BATCH)
    observer.seen.captured = {call.id for call in BATCH}
    observer.seen.published.update(call.id for call in BATCH)
    observer.seen.stored = {call.id: [call.country] for call in BATCH}
    return observer


def test_all_is_well(observer: Observer) -> None:
    assert list(observer.problems()) == []
    assert observer.complete()


def test_what_is_still_on_its_way_is_not_complete(observer: Observer) -> None:
    observer.seen.waiting = 1
    assert not observer.complete()


def test_a_request_that_never_left_the_service(observer: Observer) -> None:
    lost = BATCH[7].id
    observer.seen.captured.discard(lost)
    del observer.seen.published[lost]
    del observer.seen.stored[lost]
    (sentence,) = observer.problems()
    assert sentence.startswith("1 of 60 requests never left the service")
    assert lost in sentence
    assert "inventory-api.log" in sentence
    assert not observer.complete()


def test_an_event_that_the_publisher_did_not_take(observer: Observer) -> None:
    lost = BATCH[7].id
    del observer.seen.published[lost]
    del observer.seen.stored[lost]
    refused = Record(b"{}", headers=(("reason", b"path is missing"),))
    DurableQueue(observer.places.service / DEAD_LETTERS).append("dead-letters", [refused])
    first, second = observer.problems()
    assert "did not reach the event log" in first
    assert "delivery.log" in first
    assert "publisher.log" in first
    assert "path is missing" in second


def test_an_event_that_the_sink_did_not_store(observer: Observer) -> None:
    del observer.seen.stored[BATCH[7].id]
    (sentence,) = observer.problems()
    assert "in the event log and not in the lake" in sentence
    assert "sink.log" in sentence


def test_a_request_with_two_rows(observer: Observer) -> None:
    observer.seen.stored[BATCH[7].id] *= 2
    (sentence,) = observer.problems()
    assert "more than one row" in sentence


def test_a_request_in_the_wrong_bucket(observer: Observer) -> None:
    call = next(call for call in BATCH if call.country == "CA")
    observer.seen.stored[call.id] = ["MX"]
    (sentence,) = observer.problems()
    assert f"{call.id}: it belongs to CA and is in MX" in sentence


def test_counts_are_by_country_and_stage(observer: Observer) -> None:
    counts = Counts(BATCH)
    counts.sent(Answer(BATCH[0], 200))
    counts.seen(observer.seen)
    assert counts.line() == "sent 1  captured 60  published 60  stored 60"
    assert counts.by_stage["sent"] == {BATCH[0].country: 1}


def _rows(**changed: object) -> dict[str, dict[str, object]]:
    """Rows as they would be if nothing were redacted, but for `changed`."""
    return {
        call.id: {
            "path": call.path,
            "request_body": call.body.decode("latin-1"),
            "headers": [(name.lower(), value) for name, value in call.headers],
        }
        | changed
        for call in BATCH
    }


def test_a_secret_in_clear_is_found_wherever_it_stands() -> None:
    found = " ".join(secrets_found(_rows().values()))
    for name in SECRETS:
        assert f"The {name} is stored in clear" in found


def test_what_redaction_changed_is_shown_and_nothing_else() -> None:
    rows = _rows(headers=[], path="/iac/v1/inventory/1?access_token=[REDACTED]&fields=stores")
    for call in BATCH:
        if call.kind == "form":
            rows[call.id]["request_body"] = call.body.decode().rpartition("=")[0] + "=[REDACTED]"
    shown = {each.name: each for each in what_was_redacted(BATCH, rows)}
    assert shown.keys() == SECRETS.keys()
    assert shown["portal password"].sent.startswith("password=Dock")
    assert shown["portal password"].stored == "password=[REDACTED]"
    assert "not kept" in shown["bearer token"].stored
    assert "access_token=[REDACTED]" in shown["access token"].stored


def test_events_are_found_in_every_form_they_wait_in(tmp_path: Path) -> None:
    lines = ['{"path": "/a"}', '{"path": "/b"}']
    message = {"body": base64.b64encode(json.dumps([[Batch.of(lines).message(), 2]]).encode())}
    body = json.dumps({"body": message["body"].decode()}).encode()
    for name, value in (
        ("broker.sqlite3", body),
        ("capture-spool.sqlite3", pack(lines)),
        ("dead-letters.sqlite3", "\n".join(lines).encode()),
    ):
        DurableQueue(tmp_path / name).append("any", [Record(value)])
        assert list(events_in(tmp_path / name)) == lines
