"""The commands of docs/api.md, as they stand there; and what the server says by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_publisher.http import api_page
from audit_publisher.http.problem_kinds import KINDS
from tests.integration.servers import wire
from tests.unit.audit_publisher.conftest import CONSUMER, URL
from tests.unit.audit_publisher.served import Server, serve

pytestmark = [pytest.mark.slow]

HEAD = b"Host: 127.0.0.1\r\nConnection: close\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, public_pem: str) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("examples"), public_pem) as made:
        yield made


def commands(server: Server, private_key_file: Path) -> list[str]:
    """Every example, with this server's address and a key that it knows."""
    found = re.findall(r"```sh\n(.*?)```", api_page.render(), re.S)
    assert len(found) == 3
    return [
        text.replace("http://127.0.0.1:8001", f"http://127.0.0.1:{server.port}")
        .replace("id=inventory-api", f"id={CONSUMER}")
        .replace("inventory-api.pem", str(private_key_file))
        for text in found
    ]


def run(folder: Path, *texts: str) -> str:
    text = "set -e\n" + "".join(texts).replace("curl ", "curl -sS ")
    done = subprocess.run(
        ["sh", "-c", text], cwd=folder, check=True, capture_output=True, text=True, env=os.environ
    )
    return done.stdout


def test_the_examples_work(server: Server, private_key_file: Path, tmp_path: Path) -> None:
    one, signed, many = commands(server, private_key_file)
    # This publisher wants signatures: the first is told so, in so many words.
    assert json.loads(run(tmp_path, one))["code"] == "signature-missing"
    assert json.loads(run(tmp_path, signed))["status"] == "published"
    # The batch, signed as the one before it.
    headers = re.findall(r'-H "WM[^"]*"', signed)
    variables = signed.partition("curl ")[0]
    batch = many.replace("curl ", f"curl {' '.join(headers)} ")
    items = json.loads(run(tmp_path, variables, batch))["items"]
    assert [item["status"] for item in items] == ["published"] * 3
    assert len({item["request_id"] for item in items}) == 1


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "malformed-request"),
        (b"GET /v1/docs HTTP/1.1\r\n" + HEAD + b"Bad Name: x\r\n\r\n", 400, "malformed-request"),
        (b"GET /v1/docs HTTP/1.1\r\n" + HEAD + b"X: a\x00b\r\n\r\n", 400, "malformed-request"),
        (
            f"POST {URL} HTTP/1.1\r\n".encode()
            + HEAD
            + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            400,
            "malformed-request",
        ),
        (
            f"POST {URL} HTTP/1.1\r\n".encode() + HEAD + b"Content-Length: -5\r\n\r\nhello",
            400,
            "malformed-request",
        ),
        (b"GET /v1/docs HTTP/1.1\r\n" + HEAD + b"X: " + b"y" * 40_000, 431, "headers-too-large"),
        (
            b"GET /v1/docs HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n",
            400,
            "unknown-host",
        ),
        (
            f"POST {URL} HTTP/1.1\r\nHost: evil.test\r\n".encode() + b"Connection: close\r\n\r\n",
            400,
            "unknown-host",
        ),
        (f"GET {URL} HTTP/1.1\r\n".encode() + HEAD + b"\r\n", 405, "method-not-allowed"),
        (f"TRACE {URL} HTTP/1.1\r\n".encode() + HEAD + b"\r\n", 405, "method-not-allowed"),
        (f"OPTIONS {URL} HTTP/1.1\r\n".encode() + HEAD + b"\r\n", 405, "method-not-allowed"),
        (b"POST /v1/docs HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "method-not-allowed"),
        (b"DELETE /v1/config/x HTTP/1.1\r\n" + HEAD + b"\r\n", 405, "method-not-allowed"),
        (b"GET /v1/nothing HTTP/1.1\r\n" + HEAD + b"\r\n", 404, "not-found"),
        (b"GET /v1/logs/../../etc/passwd HTTP/1.1\r\n" + HEAD + b"\r\n", 404, "not-found"),
    ],
)
def test_what_is_refused_before_any_view(
    server: Server, sent: bytes, status: int, code: str
) -> None:
    answer = wire.parse(wire.exchange(server.port, sent))
    assert (answer.status, answer.headers["content-type"]) == (
        status,
        ["application/problem+json"],
    )
    document = json.loads(answer.body)
    assert document["code"] == code
    assert document["retryable"] is KINDS[code].retryable is ("retry-after" in answer.headers)


@pytest.mark.parametrize("path", [URL, "/v1/docs", "/v1/nothing", "/v1/config/x", "/health/live"])
def test_head_has_no_body_and_keeps_the_connection_in_step(server: Server, path: str) -> None:
    """A body after an answer to HEAD would be read as the next answer."""
    head = f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    live = b"GET /health/live HTTP/1.1\r\n" + HEAD + b"\r\n"
    raw = wire.exchange(server.port, head + live)
    first, _, rest = raw.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 ")
    assert rest.startswith(b"HTTP/1.1 200"), raw
