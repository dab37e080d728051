"""The contract: committed, served, readable, and kept by the answers."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from audit_publisher.http import openapi
from audit_publisher.http.problem_kinds import KINDS
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, LEGACY, URL, Configure
from tests.unit.audit_publisher.test_views import post


def schema(name: str) -> dict[str, Any]:
    """One of the document's schemas, with what it refers to."""
    return {"$ref": f"#/components/schemas/{name}", **openapi.document()}


def check(value: Any, name: str) -> None:
    jsonschema.Draft202012Validator(schema(name)).validate(value)


def test_the_committed_document_is_the_served_one() -> None:
    served = Client().get("/v1/openapi.json")
    assert served.status_code == 200
    assert served.content.decode() == openapi.DOCUMENT_PATH.read_text()


def test_the_command_notices_an_old_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    out = StringIO()
    call_command("audit_openapi", "--check", stdout=out)
    assert "up to date" in out.getvalue()
    monkeypatch.setattr(openapi, "DOCUMENT_PATH", tmp_path / "openapi.json")
    with pytest.raises(CommandError, match="audit_openapi"):
        call_command("audit_openapi", "--check")
    call_command("audit_openapi", stdout=StringIO())
    call_command("audit_openapi", "--check", stdout=StringIO())


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the committed document does not have: one status of one operation."""
    changed = copy.deepcopy(openapi.document())
    del changed["paths"][URL]["post"]["responses"]["429"]
    monkeypatch.setattr(openapi, "document", lambda: changed)
    openapi.text.cache_clear()
    try:
        with pytest.raises(AssertionError):
            test_the_committed_document_is_the_served_one()
        with pytest.raises(CommandError, match="out of date"):
            call_command("audit_openapi", "--check")
    finally:
        openapi.text.cache_clear()


def test_the_document_names_every_operation_and_status() -> None:
    document = openapi.document()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {URL, LEGACY, BATCH, "/v1/config/{service_name}"}
    event = document["paths"][URL]["post"]
    refusals = {"400", "401", "404", "405", "408", "409", "413", "414", "415", "417", "422", "429"}
    assert set(event["responses"]) == {"200", *refusals, "431", "500", "501", "503"}
    assert event["responses"]["401"]["content"] == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }
    assert event["requestBody"]["required"] is True
    legacy, message = (
        {document["components"]["securitySchemes"][name]["name"] for name in scheme}
        for scheme in event["security"]
    )
    assert legacy == set(openapi.SIGNATURE_HEADERS)
    assert message == {"WM-CONSUMER.ID", *openapi.MESSAGE_HEADERS}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


def test_answers_keep_the_contract(api: Client, configure: Configure) -> None:
    check(make_event(), "LogEvent")
    check(post(api, URL, make_event()).json(), "Published")
    batch = post(api, BATCH, [make_event(), {"request_id": 7}, make_event(seq="x")])
    check(batch.json(), "BatchAnswer")
    for response in (post(api, URL, b"{"), post(api, URL, {}), api.get(URL)):
        check(response.json(), "Problem")


def test_the_event_s_schema_refuses_what_the_publisher_refuses() -> None:
    for wrong in (
        {"response_code": "x"},
        {"outcome": "maybe"},
        {"service_name": ""},
        {"service_name": "a/b"},
        {"site_id": "17\x00"},
        {"request_ts": -1},
        {"response_ts": 1_790_000_000_000},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(make_event(**wrong), "LogEvent")


def test_the_page_for_people_needs_no_other_host() -> None:
    response = Client().get("/v1/docs")
    page = response.content.decode()
    assert response.status_code == 200
    for word in (URL, BATCH, "request_id", "WM-SEC.AUTH-SIGNATURE", "Retry-After"):
        assert word in page
    # What a problem's type points to.
    for code in KINDS:
        assert f'id="{code}"' in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script" not in page


def test_many_that_ask_first_all_get_it() -> None:
    script = """
import threading, django
django.setup()
from audit_publisher.http import openapi
from audit_publisher.http.problem_kinds import KINDS
found, barrier = [], threading.Barrier(8)
def ask():
    barrier.wait()
    found.append(openapi.text())
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 8 and len(set(found)) == 1, len(found)
"""
    environ = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env=environ,
        cwd=Path(__file__).resolve().parents[3],
    )
