"""Whatever a request holds and wherever: its secret is not in the event, and hostile ones end."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_logging.conf import LoggingSettings
from audit_logging.event import EventBuilder

from .test_event import exchange
from .test_redaction import KEYS, SECRET, planted

Options = Callable[..., LoggingSettings]

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"


def multipart(name: str, value: str) -> bytes:
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--b--\r\n'
    ).encode()


def line_of(options: Options, body: bytes = b"", media: str = "", **meta: str) -> str:
    """The event of a request and an answer with this body, as it leaves the process."""
    builder = EventBuilder(
        options(
            HEADERS="accept,authorization,content-type,cookie,user-agent,x-note,x-password",
            REDACT_KEYS="loyalty-id",
        )
    )
    made = exchange(CONTENT_TYPE=media, **meta)
    made.status, made.error = 500, f"ValueError: {body[:2000].decode('utf-8', 'replace')}"
    made.request_body = made.response_body = body
    made.request_size = made.response_size = len(body)
    made.response_type = media
    made.response_encoding = meta.get("HTTP_CONTENT_ENCODING", "")
    if made.response_encoding:
        made.error = None
    return builder.encode(builder.build(made))


@quick
@given(document=planted())
def test_no_secret_of_a_document_is_in_the_event(options: Options, document: Any) -> None:
    text = json.dumps(document)
    for body, media, encoding in (
        (text.encode(), "application/json", ""),
        (gzip.compress(text.encode(), mtime=0), "application/json", "gzip"),
        (zlib.compress(text.encode()), "application/json", "deflate"),
        (text.encode("utf-16"), "application/json; charset=utf-16", ""),
        (urlencode({"payload": text}).encode(), FORM, ""),
        (multipart("payload", text), MULTIPART, ""),
    ):
        meta = {"HTTP_CONTENT_ENCODING": encoding} if encoding else {}
        line = line_of(options, body, media, QUERY_STRING=f"filter={quote(text)}", **meta)
        assert SECRET not in line
    # A server gives what is no ASCII as Latin-1.
    note = text.encode().decode("latin-1")
    assert SECRET not in line_of(options, HTTP_X_NOTE=note, HTTP_USER_AGENT=f"x {note}")


@quick
@given(key=st.sampled_from(KEYS), value=st.sampled_from([SECRET, f"a b {SECRET}", f"{SECRET}&=;"]))
def test_no_secret_under_any_name_in_any_place(options: Options, key: str, value: str) -> None:
    for line in (
        line_of(options, QUERY_STRING=urlencode({"page": 2, key: value})),
        line_of(options, QUERY_STRING=urlencode({"user[" + key + "]": value})),
        line_of(options, urlencode({"a": "b", key: value}).encode(), FORM),
        line_of(options, multipart(key, value), MULTIPART),
        line_of(options, json.dumps({key: [{"x": value}]}).encode(), ""),
        line_of(options, HTTP_COOKIE=f"a=b; {quote(key)}={quote(value)}; c={SECRET}"),
        line_of(options, HTTP_X_PASSWORD=value, HTTP_AUTHORIZATION=value),
        line_of(
            options,
            HTTP_AUTHORIZATION="Basic " + base64.b64encode(f"bob:{value}".encode()).decode(),
        ),
    ):
        assert SECRET not in line


@pytest.fixture
def unbounded_digits() -> Iterator[None]:
    """A service that lifted the interpreter's bound on the digits of a number."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


HUGE = b"9" * 500_000


@pytest.mark.usefixtures("unbounded_digits")
@pytest.mark.parametrize(
    "body",
    [
        b'{"n": ' + HUGE + b"}",
        b'{"n": -' + HUGE + b', "password": "hush"}',
        b'{"n": "{\\"m\\": ' + HUGE + b'}"}',
    ],
)
def test_a_huge_number_costs_no_more_where_the_bound_is_lifted(
    options: Options, body: bytes
) -> None:
    event = json.loads(line_of(options, body, "application/json"))
    assert event["request_body_state"] in ("omitted_parse", "full", "redacted")
    assert len(event["request_body"]) < len(body) + 100
    assert "hush" not in event["request_body"]


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (b'{"n": ' + HUGE + b"}", "omitted_parse"),
        (b'{"n": 1' + b"0" * 4000 + b"}", "full"),
        (b'{"n": 1e999999999, "m": -0, "o": 0.1e-999999999}', "full"),
        (b'{"n": NaN, "m": [Infinity, -Infinity]}', "full"),
        (b'{"n": NaN, "pin": -Infinity}', "redacted"),
        (b'{"a": 1, "a": 2}', "redacted"),
        (b'{"\\ud800": "\\udfff"}', "full"),
        (b'{"\xff": 1}', "omitted_parse"),
        (b'{"a": "\xed\xa0\x80"}', "omitted_parse"),
        (b'{"a": "b"}\x00', "omitted_binary"),
        (b"[" * 200_000, "omitted_parse"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "omitted_parse"),
        (b'{"a": "' + b'[\\"' * 100_000 + b'"}', "full"),
        (b"[" + b"{}," * 150_000 + b"{}]", "full"),
        (b"[" + b"[]," * 170_000 + b"[]]", "full"),
        (b"[" + b"1," * 210_000 + b"1]", "omitted_parse"),
        (b'{"a": 1} {"b": 2}', "omitted_parse"),
        (b"", "full"),
        (b"  ", "omitted_parse"),
    ],
)
def test_hostile_json_is_told_by_its_state(options: Options, body: bytes, state: str) -> None:
    event = json.loads(line_of(options, body, "application/json"))
    assert event["request_body_state"] == event["response_body_state"] == state


@pytest.mark.parametrize(
    ("body", "encoding", "state"),
    [
        (gzip.compress(b" " * 200_000_000, 9, mtime=0), "gzip", "omitted_size"),
        (zlib.compress(b"[" * 200_000_000, 9), "deflate", "omitted_size"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip, gzip", "omitted_parse"),
        (gzip.compress(b"{}", mtime=0)[:-5], "gzip", "omitted_parse"),
        (b"\x0b\x02\x80{}\x03", "br", "omitted_parse"),
        (b"{}", "zstd", "omitted_parse"),
        (b"{}", "identity", "full"),
        (gzip.compress(b'{"pin": "hush"}', mtime=0), "GZIP", "redacted"),
    ],
)
def test_compressed_bodies_are_bounded(
    options: Options, body: bytes, encoding: str, state: str
) -> None:
    line = line_of(options, body, "application/json", HTTP_CONTENT_ENCODING=encoding)
    assert json.loads(line)["request_body_state"] == state
    assert len(line) < 3000
    assert "hush" not in line


@quick
@given(st.binary(max_size=400), st.sampled_from(["application/json", "text/csv", FORM, "", "a/b"]))
def test_any_bytes_make_an_event(options: Options, body: bytes, media: str) -> None:
    event = json.loads(line_of(options, body, media))
    assert event["request_size"] == len(body)
    assert event["request_body_state"]
