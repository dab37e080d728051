"""The example service: what its endpoints answer, and that it carries the light tier alone."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.demo.observe import events_in
from examples.demo.processes import clean_environ
from examples.demo.sender import send
from examples.demo.traffic import SECRETS, calls
from examples.inventory_api.serializers import MAX_BODY
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[3]
MILK = "00078742051451"


def ask(
    port: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send one request; a body that is not bytes goes as JSON."""
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    try:
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", f"/iac/v1/inventory/{MILK}", 200),
        ("GET", "/iac/v1/inventory/1", 404),
        ("DELETE", f"/iac/v1/inventory/{MILK}", 204),
        ("GET", f"/iac/v1/availability/{MILK}", 200),
        ("GET", "/iac/v1/availability/1", 404),
        ("GET", f"/iac/v1/forecast/{MILK}?days=7", 200),
        ("GET", f"/iac/v1/forecast/{MILK}?days=0", 500),
        ("GET", "/dsd/v1/shipments/SHP70230000", 200),
        ("GET", "/dsd/v1/shipments/SHP1", 404),
        ("GET", "/dsd/v1/shipments/SHP1/events", 404),
        ("POST", "/dsd/v1/payments", 401),
        ("PUT", "/iac/v1/inventory", 405),
    ],
)
def test_status(plain_port: int, method: str, path: str, status: int) -> None:
    assert ask(plain_port, method, path)[0] == status


def test_a_refused_count_says_why_field_by_field(plain_port: int) -> None:
    count = {"store": 9999, "item": "78742051451", "quantity": -1}
    status, _, body = ask(plain_port, "POST", "/iac/v1/inventory", count)
    assert status == 400
    assert json.loads(body) == {
        "store": ["There is no store 9999."],
        "item": ["A GTIN has 14 digits, with leading zeros."],
        "quantity": ["Ensure this value is greater than or equal to 0."],
    }


def test_a_count_is_accepted(plain_port: int) -> None:
    count = {"store": 100, "item": MILK, "quantity": 12, "note": "señal ☕"}
    status, _, body = ask(plain_port, "POST", "/iac/v1/inventory", count)
    assert status == 201
    assert json.loads(body)["note"] == "señal ☕"


def test_the_stream_is_one_json_object_a_line(plain_port: int) -> None:
    status, headers, body = ask(plain_port, "GET", "/dsd/v1/shipments/SHP70230037/events")
    assert (status, headers["Content-Type"]) == (200, "application/x-ndjson")
    assert [json.loads(line)["event"] for line in body.splitlines()] == [
        "tendered",
        "accepted",
        "loaded",
    ]


def test_a_form_is_booked_and_a_missing_field_named(plain_port: int) -> None:
    path = "/dsd/v1/shipments/SHP70230037/appointment"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, body = ask(plain_port, "POST", path, b"dock=D01&slot=07%3A30&driver=J%C3%A9", **form)
    assert (status, json.loads(body)["driver"]) == (200, "Jé")
    status, _, body = ask(plain_port, "POST", path, b"dock=D01&slot=07%3A30", **form)
    assert (status, json.loads(body)) == (400, {"driver": ["This field is required."]})


def test_a_token_is_needed_to_pay(plain_port: int) -> None:
    charge = {
        "purchase_order": "4501000000",
        "amount": "12.50",
        "currency": "USD",
        "card": {"number": SECRETS["card number"]},
    }
    good = {"Authorization": f"Bearer {SECRETS['bearer token']}"}
    assert ask(plain_port, "POST", "/dsd/v1/payments", charge)[0] == 401
    wrong = {"Authorization": "Bearer nobody"}
    assert ask(plain_port, "POST", "/dsd/v1/payments", charge, **wrong)[0] == 401
    status, _, body = ask(plain_port, "POST", "/dsd/v1/payments", charge, **good)
    assert (status, json.loads(body)["paid_by"]) == (201, "northfield-foods")


def test_bodies_over_a_megabyte_are_refused(plain_port: int) -> None:
    line = {"store": 100, "item": MILK, "quantity": 1}
    bulk = {"batch": "b", "lines": [line] * 20_000}
    assert ask(plain_port, "POST", "/iac/v1/inventory/bulk", bulk)[0] == 413

    packed = gzip.compress(json.dumps(bulk).encode())
    assert len(packed) < MAX_BODY
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    status, _, body = ask(plain_port, "POST", "/iac/v1/inventory/snapshot", packed, **headers)
    assert status == 400
    assert b"unpacks to more than" in body


def test_a_gzipped_body_is_unpacked_and_a_broken_one_refused(plain_port: int) -> None:
    bulk = {"batch": "b", "lines": [{"store": 100, "item": MILK, "quantity": 3}]}
    packed = gzip.compress(json.dumps(bulk).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    status, _, body = ask(plain_port, "POST", "/iac/v1/inventory/snapshot", packed, **headers)
    assert (status, json.loads(body)["units"]) == (200, 3)
    status, _, body = ask(plain_port, "POST", "/iac/v1/inventory/snapshot", packed[:-9], **headers)
    assert (status, json.loads(body)) == (400, {"detail": "The body is not valid gzip."})


def test_the_audit_takes_under_ten_lines() -> None:
    settings = (ROOT / "examples/inventory_api/settings.py").read_text()
    block = re.search(r"# -+ the audit, whole -+\n(.*?)\n *# -+ that was all", settings, re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) < 10
    # What its README shows is what it does.
    readme = (ROOT / "examples/inventory_api/README.md").read_text()
    shown = re.search(r"```python\n(.*?)\n```", readme, re.DOTALL)
    assert shown is not None
    assert [line.strip() for line in shown[1].splitlines()] == [
        line.strip() for line in block[1].splitlines()
    ]


#: Serves a request in a process of its own, then says which of some packages it has loaded.
SERVE_AND_LIST = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "examples.inventory_api.settings"
from examples.inventory_api.wsgi import application
from django.test import Client
client = Client(raise_request_exception=False, headers={"host": "localhost"})
answers = [
    client.get("/dsd/v1/shipments/SHP70230000").status_code,
    client.get("/iac/v1/availability/00078742051451").status_code,
    client.get("/iac/v1/forecast/00078742051451?days=0").status_code,
]
assert answers == [200, 200, 500], answers
assert "audit_logging" in sys.modules
print(",".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""
# psycopg, prometheus_client, opentelemetry and msgspec are not listed: where they are installed,
# Django REST framework and our own metrics, traces and redaction use them; the light tier works
# without.
HEAVY = {
    *("audit_publisher", "audit_sink", "config", "pyarrow", "fastavro", "pyruhvro", "duckdb"),
    *("confluent_kafka", "google", "drf_spectacular", "django_celery_beat", "rich"),
    *("polars", "avro"),
}


def test_it_imports_neither_sibling_nor_anything_heavy(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SERVE_AND_LIST],
        env=clean_environ({"AUDIT_LOGGING_DATA_DIR": str(tmp_path)}) | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.strip().split(",")) & HEAVY == set()


def test_callers_get_the_same_bytes_with_the_audit_and_without(
    plain_port: int, start_inventory_api: Callable[..., int], tmp_path: Path
) -> None:
    audited_port = start_inventory_api(AUDIT_LOGGING_DATA_DIR=str(tmp_path))
    batch = calls(60)
    plain = send(batch, "127.0.0.1", plain_port, threads=2)
    audited = send(batch, "127.0.0.1", audited_port, threads=2)
    for without, with_audit in zip(plain, audited, strict=True):
        told = [(name, value) for name, value in without.headers if name != "Date"]
        assert with_audit.status == without.status, without.call.path
        assert with_audit.body == without.body, without.call.path
        assert [pair for pair in with_audit.headers if pair[0] != "Date"] == told


@pytest.mark.parametrize(
    "names",
    [("WM-CONSUMER.ID", "WM-SITE-ID"), ("WM_CONSUMER.ID", "WM_SITE_ID")],
    ids=["hyphens", "underscores"],
)
def test_partner_headers_reach_the_event_in_either_spelling(
    start_inventory_api: Callable[..., int], tmp_path: Path, names: tuple[str, str]
) -> None:
    port = start_inventory_api(AUDIT_LOGGING_DATA_DIR=str(tmp_path))
    path = "/dsd/v1/shipments/SHP70230000"
    ask(port, "GET", path, **dict(zip(names, ("me", "17"), strict=True)))
    # No worker runs: the event stays with the broker, among what the process tells of itself.
    broker = tmp_path / "broker.sqlite3"

    def events() -> list[dict[str, Any]]:
        records = map(json.loads, events_in(broker)) if broker.exists() else ()
        return [record for record in records if "record" not in record]

    eventually(events)
    (event,) = events()
    assert (event["path"], event["consumer_id"], event["site_id"]) == (path, "me", "17")
