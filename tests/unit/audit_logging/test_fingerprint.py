"""Fingerprints of tokens: equal for equal tokens and keys, and never the token."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_logging.conf import LoggingSettings
from audit_logging.event import EventBuilder
from audit_logging.fingerprint import SHORTEST_KEY, Fingerprints, KeyFile, token_of

from .test_event import exchange

Options = Callable[..., LoggingSettings]

TOKEN = "Xk9vTq7ZpL2mWd"
KEY = "k" * SHORTEST_KEY


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def of(**meta: str) -> str:
    found = Fingerprints(None).of(meta)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("header", "value", "kind"),
    [
        ("HTTP_AUTHORIZATION", f"Bearer {TOKEN}", "bearer"),
        ("HTTP_AUTHORIZATION", f"  bearer   {TOKEN} ", "bearer"),
        ("HTTP_AUTHORIZATION", f"Token {TOKEN}", "token"),
        ("HTTP_AUTHORIZATION", f"DPoP {TOKEN}", "dpop"),
        ("HTTP_X_API_KEY", TOKEN, "x-api-key"),
        ("HTTP_API_KEY", TOKEN, "api-key"),
        ("HTTP_OCP_APIM_SUBSCRIPTION_KEY", TOKEN, "ocp-apim-subscription-key"),
    ],
)
def test_one_token_has_one_fingerprint_wherever_it_is_sent(
    header: str, value: str, kind: str
) -> None:
    found = of(**{header: value})
    name, _, digest = found.partition(":")
    assert name == kind
    assert len(digest) == 16
    assert digest == of(HTTP_AUTHORIZATION=f"Bearer {TOKEN}").partition(":")[2]
    assert digest != of(HTTP_AUTHORIZATION=f"Bearer {TOKEN}x").partition(":")[2]


def test_authorization_goes_before_a_key() -> None:
    both = of(HTTP_AUTHORIZATION=f"Bearer {TOKEN}", HTTP_X_API_KEY="another")
    assert both == of(HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    assert of(HTTP_AUTHORIZATION=" ", HTTP_X_API_KEY=TOKEN).startswith("x-api-key:")


def test_basic_is_user_and_password_together() -> None:
    one = of(HTTP_AUTHORIZATION=basic("bob", "hush"))
    assert one.startswith("basic:")
    assert one == of(HTTP_AUTHORIZATION=basic("bob", "hush").rstrip("="))
    assert one != of(HTTP_AUTHORIZATION=basic("bob", "hush2"))
    assert one != of(HTTP_AUTHORIZATION=basic("ann", "hush"))
    assert of(HTTP_AUTHORIZATION="Basic not-base64!").startswith("basic:")


def test_what_is_no_known_scheme_is_never_shown() -> None:
    for value in (TOKEN, f"{TOKEN} x", f"{TOKEN},x y", "é ü"):
        found = of(HTTP_AUTHORIZATION=value)
        assert found.startswith("other:")
        assert TOKEN.lower() not in found.lower()


@pytest.mark.parametrize(
    ("one", "same", "another"),
    [
        (
            'Digest username="bob", nonce="a", response="1"',
            'Digest realm="r", username="bob", nonce="b", response="2"',
            'Digest username="ann", nonce="a", response="1"',
        ),
        (
            "AWS4-HMAC-SHA256 Credential=AKIA1/20261123/x/s3/aws4_request, Signature=1",
            "AWS4-HMAC-SHA256 Credential=AKIA1/20261124/x/s3/aws4_request, Signature=2",
            "AWS4-HMAC-SHA256 Credential=AKIA2/20261123/x/s3/aws4_request, Signature=1",
        ),
        ('Hawk id="a", ts="1", mac="x"', 'Hawk id="a", ts="2", mac="y"', 'Hawk id="b", ts="1"'),
        ('Signature keyId="a",signature="1"', 'Signature keyId="a",signature="2"',
         'Signature keyId="b",signature="1"'),
    ],
)  # fmt: skip
def test_who_signs_each_request_anew_has_one_fingerprint(one: str, same: str, another: str) -> None:
    assert of(HTTP_AUTHORIZATION=one) == of(HTTP_AUTHORIZATION=same)
    assert of(HTTP_AUTHORIZATION=one) != of(HTTP_AUTHORIZATION=another)


def test_no_token_and_no_key_are_none(settings: Any) -> None:
    assert Fingerprints(None).of({}) is None
    assert Fingerprints(None).of({"HTTP_AUTHORIZATION": "", "HTTP_X_API_KEY": 5}) is None
    settings.SECRET_KEY = ""
    assert Fingerprints(None).of({"HTTP_X_API_KEY": TOKEN}) is None


def test_services_share_fingerprints_by_a_file_alone(settings: Any, tmp_path: Path) -> None:
    meta = {"HTTP_X_API_KEY": TOKEN}
    (tmp_path / "key").write_text(f"{KEY}\n")
    settings.SECRET_KEY = "one"
    own, shared = Fingerprints(None).of(meta), Fingerprints(tmp_path / "key").of(meta)
    settings.SECRET_KEY = "two"
    assert Fingerprints(None).of(meta) != own
    assert Fingerprints(tmp_path / "key").of(meta) == shared
    settings.SECRET_KEY = KEY
    assert Fingerprints(None).of(meta) != shared


def test_a_key_file_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    key = KeyFile(path)
    with caplog.at_level(logging.WARNING):
        assert key.key(0) is None
        assert key.key(5) is None
    assert len(caplog.records) == 1
    path.write_text(KEY)
    assert key.key(5.5) is None
    assert key.key(10) == KEY.encode()
    # As a mounted secret changes: another file takes its place.
    (tmp_path / "new").write_text(KEY[::-1] + "2")
    (tmp_path / "new").replace(path)
    assert key.key(20) == f"{KEY[::-1]}2".encode()
    path.write_text("short")
    assert key.key(30) == f"{KEY[::-1]}2".encode()
    path.unlink()
    assert key.key(40) == f"{KEY[::-1]}2".encode()
    assert KEY not in caplog.text


def test_a_key_that_is_too_short_makes_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * (SHORTEST_KEY - 1))
    assert Fingerprints(tmp_path / "key").of({"HTTP_X_API_KEY": TOKEN}) is None


def test_the_event_has_it_and_nothing_of_the_token(options: Options, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    builder = EventBuilder(options(FINGERPRINT_KEY_PATH=tmp_path / "key"))
    made = exchange(HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    line = builder.encode(builder.build(made))
    assert json.loads(line)["token_fingerprint"] == "bearer:193ba5bdeac4abb4"
    assert TOKEN not in line
    assert builder.build(exchange()).token_fingerprint is None


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(), max_size=80))
def test_any_header_makes_a_fingerprint_or_none(value: str) -> None:
    found = Fingerprints(None).of({"HTTP_AUTHORIZATION": value})
    token = token_of({"HTTP_AUTHORIZATION": value})
    assert (found is None) == (token is None) == (not value.strip())
    if found is not None:
        kind, _, digest = found.partition(":")
        assert len(digest) == 16
        assert kind == "other" or value.strip().lower().startswith(kind)
