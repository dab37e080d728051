"""The publisher behind its real server: what arrives of our headers, and of bodies.

Django's test client sets META itself and would hide what a server does to header names.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from audit_logging.signing import Signer
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, CONSUMER, URL
from tests.unit.audit_publisher.served import ROOT, Server, serve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, public_pem: str) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("served"), public_pem) as made:
        yield made


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, public_pem: str) -> Iterator[Server]:
    """A server that gives each request half a second."""
    data = tmp_path_factory.mktemp("impatient")
    with serve(data, public_pem, GUNICORN_READ_TIMEOUT="0.5") as made:
        yield made


@pytest.fixture
def signed(private_key_file: Path) -> dict[str, str]:
    return Signer(CONSUMER, "1", private_key_file).headers(int(time.time() * 1000))


def body(**overrides: Any) -> bytes:
    return json.dumps(make_event(**overrides)).encode()


UNDERSCORES = {
    "WM-CONSUMER.ID": "WM_CONSUMER.ID",
    "WM-CONSUMER.INTIMESTAMP": "WM_CONSUMER.INTIMESTAMP",
    "WM-SEC.KEY-VERSION": "WM_SEC.KEY_VERSION",
    "WM-SEC.AUTH-SIGNATURE": "WM_SEC.AUTH_SIGNATURE",
}


def test_hyphen_spelling(server: Server, signed: dict[str, str]) -> None:
    status, answer = server.post([*signed.items()], body())
    assert (status, answer["status"]) == (200, "published")


def test_underscore_spelling(server: Server, signed: dict[str, str]) -> None:
    headers = [(UNDERSCORES[name], value) for name, value in signed.items()]
    assert server.post(headers, body())[0] == 200
    lower = [(name.lower(), value) for name, value in headers]
    assert server.post(lower, body())[0] == 200


@pytest.mark.parametrize("name", sorted(UNDERSCORES))
def test_twice_is_refused(server: Server, signed: dict[str, str], name: str) -> None:
    for twin in (name, UNDERSCORES[name]):
        for value in (signed[name], "other"):
            status, answer = server.post([*signed.items(), (twin, value)], body())
            assert (status, answer["detail"]) == (401, f"{name} was sent more than once.")


def test_without_a_signature(server: Server) -> None:
    assert server.post([], body())[0] == 401


@pytest.mark.parametrize("name", ["WM-Site-Id", "wm_site_id", "WM_SITE_ID", "WM-SITE_ID"])
def test_the_site_in_any_spelling(server: Server, signed: dict[str, str], name: str) -> None:
    data = body(site_id=None, headers={})
    status, answer = server.post([*signed.items(), (name, "1704989474816248000")], data)
    assert status == 200
    sites = {
        dict(record.headers)["request_id"].decode(): dict(record.headers).get("wm-site-id")
        for record in server.records()
    }
    assert sites[answer["request_id"]] == b"1704989474816248000"


@pytest.mark.parametrize("twin", ["WM_SITE_ID", "WM-SITE.ID", "wm-site-id"])
def test_two_sites_are_refused(server: Server, signed: dict[str, str], twin: str) -> None:
    status, answer = server.post([*signed.items(), ("WM-SITE-ID", "1"), (twin, "2")], body())
    assert status == 400
    assert "wm-site-id" in answer["detail"]


def test_a_peer_cannot_set_what_only_a_proxy_may(server: Server, signed: dict[str, str]) -> None:
    status, _ = server.post([*signed.items(), ("SCRIPT_NAME", "/admin")], body())
    assert status == 200


def test_a_chunked_body(server: Server, signed: dict[str, str]) -> None:
    data = body(response_body="x" * 100_000)
    parts = [data[i : i + 30_000] for i in range(0, len(data), 30_000)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    status, answer = server.post([*signed.items(), ("Transfer-Encoding", "chunked")], chunked)
    assert (status, answer["status"]) == (200, "published")


def test_a_chunked_body_over_the_limit(server: Server, signed: dict[str, str]) -> None:
    chunked = (b"%x\r\n" % 300_000 + b"x" * 300_000 + b"\r\n") * 2 + b"0\r\n\r\n"
    status, _ = server.post([*signed.items(), ("Transfer-Encoding", "chunked")], chunked)
    assert status == 413


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nabcdefg", b"\r\n", b"3;\x01=\r\nabc\r\n"])
def test_chunks_that_are_none(server: Server, signed: dict[str, str], broken: bytes) -> None:
    status, answer = server.post([*signed.items(), ("Transfer-Encoding", "chunked")], broken)
    assert (status, answer["retryable"]) == (400, False)
    assert "Traceback" not in server.log()


HEAD = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST /v1/lo",
        HEAD + b"X-Half: ",
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"{signed}Content-Length: 100\r\n\r\n{",
        HEAD + b"{signed}Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        # Answered, and then neither used nor closed.
        LIVE.replace(b"Connection: close\r\n", b""),
        LIVE,
        b"broken\r\n\r\n",
    ],
    ids=["nothing", "line", "head", "unsigned", "body", "chunk", "kept", "closed", "broken"],
)
def test_idle_connections_stop_nobody(
    impatient: Server, signed: dict[str, str], beginning: bytes
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    beginning = beginning.replace(b"{signed}", lines.encode())
    with ExitStack() as connections:
        for _ in range(60):
            connections.enter_context(impatient.connect(beginning))
        for _ in range(6):
            # 30 idle ones for 4 threads of half a second each come to 4 s when they are in front.
            started = time.monotonic()
            assert impatient.raw(LIVE)[0] == 200
            assert time.monotonic() - started < 10
    assert "Traceback" not in impatient.log()


def test_a_body_that_comes_too_slowly_is_told_so(impatient: Server, signed: dict[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items()).encode()
    for framing in (b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with impatient.connect(HEAD + lines + framing) as connection:
            started = time.monotonic()
            connection.settimeout(0.05)
            answer = b""
            while time.monotonic() - started < 20:
                # Each byte comes in time; all of them do not.
                try:
                    connection.sendall(b"1\r\nx\r\n")
                    if not (part := connection.recv(65536)):
                        break
                    answer += part
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        assert answer.split()[1] == b"408"
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (document["status"], document["retryable"]) == (408, True)


def test_an_answer_that_nobody_reads_holds_no_thread(impatient: Server) -> None:
    request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(24):
            connection = connections.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", impatient.port))
            connection.sendall(request * 1000)
        # First the kernel holds the answers, some seconds long; then their writers would wait.
        started = time.monotonic()
        while time.monotonic() - started < 10:
            assert impatient.raw(LIVE)[0] == 200
    assert "Traceback" not in impatient.log()


def test_a_length_over_the_limit_is_refused_before_the_body(
    server: Server, signed: dict[str, str]
) -> None:
    lines = [f"POST {URL} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in signed.items()]
    lines += ["Content-Type: application/json", "Content-Length: 900000000"]
    assert server.raw("\r\n".join(lines).encode() + b"\r\n\r\n")[0] == 413


def test_a_refusal_reaches_whoever_still_sends(server: Server) -> None:
    # A whole batch, after an answer that came before it: a reset would take the answer back.
    status, answer = server.post([], b"x" * 8_000_000, url=BATCH)
    assert (status, answer["status"]) == (401, 401)


def test_a_batch(server: Server, signed: dict[str, str]) -> None:
    status, answer = server.post([*signed.items()], b"[" + body() + b"," + body() + b"]", BATCH)
    assert (status, [item["status"] for item in answer["items"]]) == (200, ["published"] * 2)


def test_metrics_of_all_processes(server: Server, signed: dict[str, str]) -> None:
    def published() -> float:
        url = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
        (value,) = re.findall(
            r'^audit_publisher_events_published_total{region="primary"} (.*)$', text, re.M
        )
        assert re.search(r'^audit_publisher_region_up{region="primary"} 1.0$', text, re.M)
        return float(value)

    server.post([*signed.items()], body())
    before = published()
    for _ in range(6):
        server.post([*signed.items()], body())
    assert published() == before + 6


def test_a_key_revoked_in_the_admin_is_refused_within_seconds(
    server: Server, signed: dict[str, str]
) -> None:
    environ = os.environ | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "AUDIT_DATA_DIR": str(server.data),
    }

    def key(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", "audit_key", *arguments, f"--consumer={CONSUMER}"],
            cwd=ROOT,
            env=environ,
            check=True,
            capture_output=True,
        )

    key("revoke", "--key-version=1")
    deadline = time.monotonic() + 5
    while {server.post([*signed.items()], body())[0] for _ in range(8)} != {401}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    key("add", f"--public-key={server.data / 'public.pem'}", "--reinstate")
    deadline = time.monotonic() + 5
    while {server.post([*signed.items()], body())[0] for _ in range(8)} != {200}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_answer_before_the_bodys_end_arrives(server: Server) -> None:
    """Refused at its head; the rest of a large body must not take the answer back."""
    body = b"x" * 4_000_000
    head = [f"POST {BATCH} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}"]
    for close in ([], ["Connection: close"]):
        request = "\r\n".join([*head, *close]).encode() + b"\r\n\r\n"
        with server.connect(request) as connection:
            # It comes only after the answer was sent.
            for n in range(0, len(body), 100_000):
                connection.sendall(body[n : n + 100_000])
            if not close:
                connection.sendall(LIVE)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.split()[1] == b"401"
        # The connection goes on with the next request, if it was to.
        assert answer.count(b"HTTP/1.1 ") == 2 - len(close)
