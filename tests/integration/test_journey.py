"""The journey: every request to an audited service is one row in the right bucket, and no other.

One test body, two ways to run. What is expected is worked out from what was sent and answered,
not from the code under test.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from examples.demo.sender import Answer, send
from examples.demo.traffic import SECRETS, SITES, Call, calls
from tests.integration.profiles import OBJECT, Embedded, Production, Profile, System, running
from tests.support import eventually

pytestmark = pytest.mark.slow

CALLS = 500
#: Kinds whose request holds a planted secret, and where.
SECRET_IN_BODY = {"form", "secret", "unauthorised"}
SECRET_IN_QUERY = {"query"}


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("production", marks=pytest.mark.services)],
)
def journey(request, tmp_path_factory) -> Iterator[Journey]:
    root = tmp_path_factory.mktemp(request.param)
    profile: Profile = (
        Embedded(root) if request.param == "embedded" else Production(root, request.getfixturevalue)
    )
    with running(profile) as system:
        yield Journey(system)


class Journey:
    """500 requests, sent once to the audited service and once to the same service without it."""

    def __init__(self, system: System) -> None:
        self.system = system
        sent = calls(CALLS, seed=41)
        host = "127.0.0.1"
        self.bare = send(sent, host, system.bare_port, threads=4)
        self.answers = send(sent, host, system.addresses.service_port, threads=4)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        eventually(self._all_stored, timeout=120, message=self._progress)

    def _all_stored(self) -> bool:
        self.system.supervisor.check()
        self.rows = {country: self.system.profile.rows(country) for country in SITES}
        return sum(map(len, self.rows.values())) >= CALLS

    def _progress(self) -> str:
        stored = {country: len(rows) for country, rows in self.rows.items()}
        return f"{CALLS} sent, stored {stored}\n{self.system.diagnosis()}"

    def row(self, call: Call) -> dict[str, Any]:
        found = [
            row
            for row in self.rows[call.country]
            if dict(row["headers"]).get("wm-qos.correlation-id") == call.id
        ]
        assert len(found) == 1, f"{call} is {len(found)} rows in the bucket of {call.country}"
        return found[0]


def test_answers_are_those_of_the_service_without_the_audit(journey: Journey) -> None:
    for audited, bare in zip(journey.answers, journey.bare, strict=True):
        assert audited.error == bare.error == ""
        assert (audited.status, audited.body) == (bare.status, bare.body), audited.call
        assert _stable(audited) == _stable(bare), audited.call
        assert audited.status == audited.call.expected


def test_each_request_is_one_row_in_its_bucket_and_no_other(journey: Journey) -> None:
    stored = [
        (country, dict(row["headers"])["wm-qos.correlation-id"])
        for country, rows in journey.rows.items()
        for row in rows
    ]
    sent = [(answer.call.country, answer.call.id) for answer in journey.answers]
    assert Counter(stored) == Counter(sent)


def test_rows_hold_what_was_sent_and_answered(journey: Journey) -> None:
    for answer in journey.answers:
        call, row = answer.call, journey.row(answer.call)
        assert row["service_name"] == "inventory-api"
        assert (row["method"], row["response_code"]) == (call.method, answer.status)
        assert (row["consumer_id"], row["site_id"]) == (call.consumer, call.site)
        assert row["request_size"] == len(call.body)
        assert row["response_size"] == len(answer.body)
        assert row["outcome"] == ("failed" if answer.status >= 500 else "completed")
        trace = dict(call.headers)["traceparent"].split("-")[1]
        assert row["trace_id"] == trace
        started, ended = row["request_ts"].timestamp(), row["response_ts"].timestamp()
        assert answer.sent_at - 0.001 <= started <= ended <= answer.sent_at + answer.seconds + 0.5
        if call.kind in SECRET_IN_QUERY:
            assert row["path"].startswith(call.path.partition("?")[0] + "?")
            assert "[REDACTED]" in row["path"]
        else:
            assert row["path"] == call.path
        assert (row["request_body"], row["request_body_state"]) == _expected_request(call, row)
        if row["response_body_state"] == "full":
            assert row["response_body"] == answer.body.decode()
        else:
            assert row["response_body_state"] == "redacted"
            assert call.kind in SECRET_IN_BODY
        if answer.status >= 400:
            assert row["error_reason"]
        else:
            assert row["error_reason"] is None


def test_no_secret_is_anywhere_in_a_bucket(journey: Journey) -> None:
    for rows in journey.rows.values():
        text = json.dumps(rows, default=str, ensure_ascii=False)
        for name, secret in SECRETS.items():
            assert secret not in text, name


def test_files_lie_where_their_rows_belong(journey: Journey) -> None:
    for rows in journey.rows.values():
        for row in rows:
            folders = dict(part.split("=") for part in row[OBJECT].split("/")[1:-1])
            assert list(folders) == ["service", "date", "endpoint"]
            assert folders["service"] == "inventory-api"
            assert folders["date"] == row["request_ts"].strftime("%Y-%m-%d")
            first = row["endpoint_name"].split("/")[0]
            assert folders["endpoint"] == first


def test_events_are_numbered_without_a_gap(journey: Journey) -> None:
    numbers: dict[str, list[int]] = {}
    for rows in journey.rows.values():
        for row in rows:
            numbers.setdefault(row["producer_epoch"], []).append(row["seq"])
    for epoch, found in numbers.items():
        assert sorted(found) == list(range(len(found))), epoch


def test_the_way_went_through_this_profile_s_parts(journey: Journey) -> None:
    profile = journey.system.profile
    # A batch whose delivery was repeated may be in the log twice; never in the lake.
    assert profile.appended() >= CALLS
    assert profile.ledger_rows() == CALLS


def test_sql_reads_the_same_rows(journey: Journey) -> None:
    answer = journey.system.manage(
        "audit_query",
        "SELECT site, response_code, count(*) AS calls FROM audit_logs GROUP BY ALL",
        "--format",
        "json",
    )
    counted = {
        (row["site"], row["response_code"]): row["calls"]
        for row in json.loads(answer[answer.index("[") :])
    }
    assert counted == Counter((answer.call.country, answer.status) for answer in journey.answers)


def test_the_ledger_and_the_buckets_agree(journey: Journey) -> None:
    journey.system.manage("audit_verify")


def _expected_request(call: Call, row: dict[str, Any]) -> tuple[str | None, str]:
    body = call.body
    if dict(call.headers).get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    if call.kind == "broken":
        return f"[could not be parsed: application/json, {len(body)} bytes]", "omitted_parse"
    if call.kind in SECRET_IN_BODY:
        assert "[REDACTED]" in row["request_body"]
        # What is no secret is still there.
        if call.kind == "secret":
            assert json.loads(body)["purchase_order"] in row["request_body"]
        return row["request_body"], "redacted"
    return body.decode(), "full"


def _stable(answer: Answer) -> list[tuple[str, str]]:
    return sorted(item for item in answer.headers if item[0].lower() != "date")
