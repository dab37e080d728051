"""Every refusal is problem details: of the publisher's views, and of Django before them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, TypeGuard

import jsonschema
import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, TooManyFieldsSent
from django.test import Client

import audit_publisher
from audit_publisher.http import openapi, refusals
from audit_publisher.http.problem_kinds import KINDS, kind_of
from audit_publisher.http.problems import Problem
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, LEGACY, URL, Configure
from tests.unit.audit_publisher.test_views import post, problem

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check one problem against the contract, and return it."""
    document = problem(response, status, retryable=KINDS[code].retryable)
    assert document["code"] == code
    assert document["type"] == f"/v1/docs#{code}"
    schema = {"$ref": "#/components/schemas/Problem", **openapi.document()}
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


@pytest.mark.parametrize(
    "path",
    [
        "/v1/",
        "/v1",
        "/v1/logs",
        "/v1/logs/",
        "/v1/logs/api-requests/",
        "/v1/logs/api-requests:other",
        "/v1/logs/api-requests%0Ax",
        "/v1/LOGREQUEST",
        "/v1/config/",
        "/v1/config/a/b",
        "/v1/config/a%00b",
        "/v1/config/" + "a" * 201,
        "/v2/logs",
        "/health/",
        "/health/other",
        "/metrics/x",
        "/v1/%00",
        "/v1/docs/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_an_unknown_path(api: Client, path: str, method: str) -> None:
    refused(api.generic(method, path), 404, "not-found")


def test_paths_of_ours_do_not_need_the_project_s_handlers(api: Client, settings: Any) -> None:
    settings.DEBUG = True
    for path in ("/v1/logs/other", "/v1/config/a/b", "/v1/logRequest/"):
        refused(api.post(path), 404, "not-found")


def test_people_get_a_page_where_there_are_pages(api: Client) -> None:
    response = api.get("/admin/no-such-page", headers=BROWSER, follow=True)
    assert response["Content-Type"].startswith("text/html")
    response = api.get("/nothing-here", headers=BROWSER)
    assert (response.status_code, response["Content-Type"]) == (404, "text/html; charset=utf-8")
    # Below the publisher's own paths there are none, whoever asks.
    refused(api.get("/v1/nothing-here", headers=BROWSER), 404, "not-found")


@pytest.mark.parametrize("url", [URL, LEGACY, BATCH])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"])
def test_a_wrong_method(api: Client, url: str, method: str, configure: Configure) -> None:
    configure(SIGNATURE="enforce")
    response = api.generic(method, url)
    assert response["Allow"] == "POST"
    if method == "HEAD":
        assert response.status_code == 405
    else:
        refused(response, 405, "method-not-allowed")


@pytest.mark.parametrize(
    "path", ["/v1/openapi.json", "/v1/docs", "/health/live", "/health/ready", "/metrics"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_pages_are_only_read(path: str, method: str) -> None:
    # As for a browser: Django's own protection must not answer first, with a page.
    response = Client(enforce_csrf_checks=True).generic(method, path)
    refused(response, 405, "method-not-allowed")
    assert response["Allow"] == "GET, HEAD"


def test_posts_need_no_token_of_a_form(db: None) -> None:
    response = Client(enforce_csrf_checks=True).post("/v1/logs/other", data={"a": "b"})
    refused(response, 404, "not-found")


@pytest.mark.parametrize("path", [URL, "/v1/docs", "/health/live", "/", "/v1/other"])
def test_a_host_that_is_not_ours(api: Client, path: str) -> None:
    document = refused(api.get(path, headers={"host": "evil.test"}), 400, "unknown-host")
    assert document["error"]["header"] == "Host"
    assert "evil" not in document["detail"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestDataTooBig(), 413, "too-large"),
        (TooManyFieldsSent("secret"), 400, "bad-request"),
        (PermissionDenied("secret"), 403, "forbidden"),
        (RuntimeError("secret"), 500, "internal-error"),
    ],
)
def test_what_django_catches(
    api: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(openapi, "text", fail)
    response = api.get("/v1/openapi.json")
    refused(response, status, code)
    assert b"secret" not in response.content


def test_each_handler_has_a_page_for_people(rf: Any) -> None:
    request = rf.get("/admin/x", headers=BROWSER)
    gone = Exception("gone")
    for handler, arguments, status in (
        (refusals.handler400, (gone,), 400),
        (refusals.handler403, (gone,), 403),
        (refusals.handler404, (gone,), 404),
        (refusals.handler500, (), 500),
    ):
        response = handler(request, *arguments)
        assert response.status_code == status
        assert response["Content-Type"].startswith("text/html")


def test_metrics_for_staff_only(api: Client, configure: Configure) -> None:
    configure(METRICS_PUBLIC=False)
    refused(api.get("/metrics"), 403, "forbidden")


# -- reasons of the operations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "error"),
    [
        (b"{", {}, 400, "not-json", {"field": ""}),
        (b"x", {"content-encoding": "gzip"}, 400, "not-gzip", None),
        (b"x", {"content-encoding": "br"}, 415, "unsupported-encoding", "Content-Encoding"),
        (b"x" * 6000, {}, 413, "too-large", {"field": ""}),
        (b"{}", {}, 422, "invalid-event", {"field": "request_id"}),
        (b"{}", {"wm-site-id": "1,2"}, 400, "ambiguous-header", "wm-site-id"),
        (b"{}", {"wm-svc.name": "x" * 300}, 422, "invalid-header", "wm_svc.name"),
    ],
)
def test_each_reason_has_a_code(
    api: Client,
    configure: Configure,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    error: Any,
) -> None:
    configure(MAX_EVENT_BYTES=5000)
    document = refused(post(api, URL, body, headers=headers), status, code)
    if isinstance(error, str):
        assert document["error"]["header"] == error
    elif error is not None:
        assert document["error"]["field"] == error["field"]


def test_codes_of_a_batch(api: Client, configure: Configure) -> None:
    configure(MAX_BATCH_EVENTS=3, MAX_EVENT_BYTES=3000)
    items = [make_event(seq="x"), make_event(request_ts=1), make_event(response_body="x" * 3000)]
    answers = post(api, BATCH, items).json()["items"]
    assert [item["error"]["code"] for item in answers] == ["invalid-event", "odd-time", "too-large"]
    refused(post(api, BATCH, [*items, {}]), 413, "too-many-events")
    refused(post(api, URL, make_event(), content_type="text/xml"), 415, "unsupported-media-type")


# -- the list of kinds -----------------------------------------------------------------------


def test_kinds_are_complete() -> None:
    for code, kind in KINDS.items():
        assert code == kind.code
        for text in (kind.title, kind.cause, kind.cure):
            assert text
        assert kind.cure.endswith(".")
    for status in (400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 422, 429, 431, 500, 501, 503):
        assert kind_of(status).status == status
    assert kind_of(418).status == 400
    assert kind_of(504).status == 500


def _named_in_code() -> set[str]:
    """Every code that a call in the app's source passes as `code=`."""
    found = set()
    for path in Path(audit_publisher.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= {part.value for part in ast.walk(node.value) if _is_text(part)}
    return found - {""}


def _is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_every_code_in_the_source_is_listed() -> None:
    assert {"not-json", "ambiguous-header"} <= _named_in_code() <= set(KINDS)


def test_signature_problems_are_told_by_their_reason() -> None:
    assert Problem(401, "…", reason="key_revoked").kind.code == "signature-key-revoked"
    assert Problem(401, "…", reason="something_new").kind.code == "signature-refused"
