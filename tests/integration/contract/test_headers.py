"""Our headers through real servers and a proxy, in every spelling that HTTP has for them.

Servers drop, merge and rename headers, and Django's test client hides it: raw sockets only.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from audit_logging import signing
from audit_logging.signing import Signer
from audit_publisher.testing import make_event
from tests.integration.contract.proxy import Proxy
from tests.integration.servers import wire
from tests.services.fixtures import serve as start
from tests.unit.audit_publisher.conftest import BATCH, CONSUMER, URL
from tests.unit.audit_publisher.served import Server, serve

pytestmark = [pytest.mark.services, pytest.mark.slow]

UVICORN = ("uvicorn", "config.asgi:application", "--port", "{port}", "--no-access-log")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORWARDED = {
    "wm_qos.correlation_id": "corr-7",
    "wm_svc.name": "équipe",
    "wm_svc.version": "1.2",
    "wm_svc.env": "prod",
    "wm-site-id": "1704989474816248000",
    "traceparent": TRACE,
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, public_pem: str) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("gunicorn"), public_pem) as made:
        yield made


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn", "nginx", "nginx-default"])
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    public_pem: str,
) -> Iterator[Server]:
    """The publisher behind each of them."""
    if request.param == "uvicorn":
        with serve(tmp_path_factory.mktemp("uvicorn"), public_pem, program=UVICORN) as made:
            yield made
        return
    behind: Server = request.getfixturevalue("shipped")
    if request.param == "gunicorn":
        yield behind
        return
    with start(Proxy(behind.port, lossy=request.param == "nginx-default")) as proxy:
        yield Server(proxy.port, behind.data, behind.process)


@pytest.fixture
def passes(request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """Whether a header's name gets through; nginx drops odd ones unless it is told not to."""
    lossy = "nginx-default" in request.node.name
    return lambda name: not lossy or bool(re.fullmatch("[A-Za-z0-9-]+", name))


@pytest.fixture
def signed(passes: Callable[[str], bool], private_key_file: Any) -> dict[str, str]:
    """Signature headers as they get through."""
    made = Signer(CONSUMER, "1", private_key_file).headers(int(time.time() * 1000))
    return {name if passes(name) else dotless(name): value for name, value in made.items()}


def hyphens(name: str) -> str:
    return name.upper().replace("_", "-")


def underscores(name: str) -> str:
    return name.upper().replace("-", "_")


def mixed(name: str) -> str:
    return name.title().replace("_", "-", 1)


def dotless(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


Spell = Callable[[str], str]
#: The signature headers by a spelling that always gets through.
DOTTED = {
    dotless(name): name
    for name in (signing.CONSUMER_ID, signing.TIMESTAMP, signing.KEY_VERSION, signing.SIGNATURE)
}
SPELLINGS: list[Spell] = [hyphens, str.lower, mixed, underscores, dotless]


def send(server: Server, lines: list[tuple[str, bytes | str]], url: str = URL) -> wire.Answer:
    """One event that names nothing itself, with exactly these header lines."""
    event = make_event(site_id=None, consumer_id=None, trace_id=None, headers={})
    body = json.dumps([event] if url == BATCH else event).encode()
    head = [f"POST {url} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Connection: close"]
    head += [b"Content-Type: application/json", f"Content-Length: {len(body)}".encode()]
    for name, value in lines:
        raw = value if isinstance(value, bytes) else value.encode()
        head.append(name.encode() + b": " + raw)
    return wire.parse(wire.exchange(server.port, b"\r\n".join(head) + b"\r\n\r\n" + body))


def carried(server: Server, answer: wire.Answer) -> dict[str, bytes | None]:
    """The headers of the record that a request became."""
    request_id = json.loads(answer.body)["request_id"].encode()
    found = [dict(record.headers) for record in server.records()]
    (headers,) = [each for each in found if each["request_id"] == request_id]
    del headers["request_id"]
    return headers


@pytest.mark.parametrize("spell", SPELLINGS)
def test_forwarded_headers_arrive(
    server: Server, signed: dict[str, str], spell: Spell, passes: Callable[[str], bool]
) -> None:
    lines = [(spell(name), value) for name, value in FORWARDED.items()]
    answer = send(server, [*signed.items(), *lines])
    assert answer.status == 200, answer
    expected = {name: value.encode() for name, value in FORWARDED.items() if passes(spell(name))}
    assert carried(server, answer) == {"wm_consumer.id": CONSUMER.encode(), **expected}


@pytest.mark.parametrize("spell", SPELLINGS)
def test_signature_headers_arrive(
    server: Server, signed: dict[str, str], spell: Spell, passes: Callable[[str], bool]
) -> None:
    lines = [(spell(DOTTED[dotless(name)]), value) for name, value in signed.items()]
    answer = send(server, lines)
    if all(passes(name) for name, _ in lines):
        assert answer.status == 200, answer
    else:
        assert (answer.status, json.loads(answer.body)["code"]) == (401, "signature-missing")
    # Flags are handed out by other code.
    head = [f"{name}: {value}" for name, value in lines]
    sent = wire.message("GET", "/v1/config/inventory-api", headers=head)
    flags = wire.parse(wire.exchange(server.port, sent.replace(b"shop.test", b"127.0.0.1")))
    assert flags.status == answer.status


@pytest.mark.parametrize("name", sorted(FORWARDED))
def test_twice_is_refused(
    server: Server, signed: dict[str, str], name: str, passes: Callable[[str], bool]
) -> None:
    for second in {spell(name) for spell in SPELLINGS}:
        if not passes(second):
            continue
        answer = send(server, [*signed.items(), (dotless(name), "a"), (second, "b")])
        problem = json.loads(answer.body)
        assert (answer.status, problem["code"]) == (400, "ambiguous-header"), second
        assert problem["error"]["header"] == name
        assert answer.headers["content-type"] == ["application/problem+json"]


@pytest.mark.parametrize("second", SPELLINGS)
def test_a_signature_header_twice_is_refused(
    server: Server, signed: dict[str, str], second: Spell, passes: Callable[[str], bool]
) -> None:
    for name, value in signed.items():
        again = second(DOTTED[dotless(name)])
        if not passes(again):
            continue
        for other in (value, "other"):
            answer = send(server, [*signed.items(), (again, other)])
            problem = json.loads(answer.body)
            assert (answer.status, problem["code"]) == (401, "signature-duplicate"), name


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a\tb", b"\xe2\x80\xae71", b"x" * 257])
@pytest.mark.parametrize("url", [URL, BATCH])
def test_values_that_no_record_can_carry_are_refused(
    server: Server, signed: dict[str, str], value: bytes, url: str
) -> None:
    before = len(server.records())
    for name in FORWARDED:
        answer = send(server, [*signed.items(), (dotless(name), value)], url)
        problem = json.loads(answer.body)
        assert (answer.status, problem["code"]) == (422, "invalid-header"), name
        assert problem["error"]["header"] == name
        assert problem["retryable"] is False
    assert len(server.records()) == before


@pytest.mark.parametrize("value", [b"a\x00b", b"a\x01b", b"a\rb"])
def test_values_that_http_forbids_reach_nobody(
    server: Server, signed: dict[str, str], value: bytes
) -> None:
    before = len(server.records())
    answer = send(server, [*signed.items(), ("WM-SVC-NAME", value)])
    assert 400 <= answer.status < 500
    assert len(server.records()) == before


def test_what_is_not_forwarded_is_not_kept(server: Server, signed: dict[str, str]) -> None:
    lines = [("Authorization", "Bearer secret"), ("X-Other", "1"), ("WM-SVC.OTHER", "2")]
    answer = send(server, [*signed.items(), *lines])
    assert carried(server, answer) == {"wm_consumer.id": CONSUMER.encode()}
