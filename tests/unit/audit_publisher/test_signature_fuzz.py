"""Whatever arrives as a signature: refused with a reason, or it is exactly what was signed."""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import http_sf
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_logging.signing import Scheme, Signer
from audit_publisher.identity import structured_fields
from audit_publisher.identity.allowed import EVERY
from audit_publisher.identity.consumers import Key, KnownConsumer
from audit_publisher.identity.message_verification import is_signed, verify_message
from audit_publisher.identity.signatures import Proof, SignatureRefused, verify_legacy
from audit_publisher.identity.structured_fields import (
    MAX_LENGTH,
    InnerList,
    Malformed,
    byte_sequences,
    inner_lists,
)

NOW = 1_764_000_000.0
CONSUMER = "8f1f4b66"
PATH = "/v1/logs/api-requests"
BODY = b'{"request_id":"0"}'

#: What fields are made of, so that chance finds more than garbage.
PIECES = st.sampled_from(
    [
        *'()=;:," \\?-0123456789.*@%\t\n\x00é\x7f',
        *("sig1", "a", "created", "keyid", "alg", "nonce", "expires", "?1", ":AAAA:", '"x"'),
        *('"@method"', '"@path"', '"content-digest"', '"wm-consumer.id"', ";created=1764000000"),
        *(f'keyid="{CONSUMER}:1"', 'alg="rsa-pss-sha512"', 'nonce="n"', "sha-256=:", "sha-512=:"),
    ]
)
FIELDS = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.text(max_size=60),
    st.text("=(;\"' ", max_size=80),
)

HEADERS = (
    *("HTTP_SIGNATURE_INPUT", "HTTP_SIGNATURE", "HTTP_CONTENT_DIGEST", "HTTP_WM_CONSUMER.ID"),
    *("HTTP_WM_CONSUMER.INTIMESTAMP", "HTTP_WM_SEC.KEY_VERSION", "HTTP_WM_SEC.AUTH_SIGNATURE"),
    *("HTTP_WM_SITE_ID", "HTTP_HOST", "CONTENT_TYPE", "QUERY_STRING", "PATH_INFO", "RAW_URI"),
    *("SCRIPT_NAME", "REQUEST_METHOD"),
)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def consumers(key: rsa.RSAPrivateKey) -> dict[str, KnownConsumer]:
    known = Key(key.public_key(), None, None, False)
    made = KnownConsumer(
        active=True,
        enforcement="inherit",
        message_only=False,
        replay="inherit",
        services=EVERY,
        callers=EVERY,
        keys={"1": known},
    )
    return {CONSUMER: made, "other": made}


@pytest.fixture(scope="module")
def key_file(key: rsa.RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "private.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


SENT = {"Content-Type": "application/json"}


def meta_of(headers: dict[str, str]) -> dict[str, str]:
    return {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()} | {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": PATH,
        "RAW_URI": f"{PATH}?a=b",
        "QUERY_STRING": "a=b",
        "SCRIPT_NAME": "",
        "HTTP_HOST": "audit.example",
        "CONTENT_TYPE": "application/json",
    }


@lru_cache
def signed(key_file: Path, scheme: Scheme) -> tuple[tuple[str, str], ...]:
    signer = Signer(CONSUMER, "1", key_file, scheme, nonce=lambda: "nonce-1")
    headers = signer.sign("POST", f"{PATH}?a=b", BODY, int(NOW * 1000), SENT)
    return tuple(meta_of(headers).items())


def check(meta: dict[str, Any], consumers: Any, body: bytes) -> Proof:
    verify = verify_message if is_signed(meta) else verify_legacy
    proof = verify(meta, consumers, NOW)
    proof.check_body(body)
    return proof


@settings(max_examples=300, deadline=None)
@given(text=FIELDS)
def test_a_field_is_read_or_refused(text: str) -> None:
    for read in (inner_lists, byte_sequences):
        try:
            found = read(text)
        except Malformed:
            continue
        # What we take, others read alike.
        theirs: Any = http_sf.parse(text.strip(" ").encode(), tltype="dictionary")
        for label, member in found.items():
            value, params = theirs[label]
            if isinstance(member, InnerList):
                assert [name for name, _ in member.items] == [item for item, _ in value]
                assert member.params == {name: _plain(each) for name, each in params.items()}
                assert inner_lists(f"{label}={member.text}") == {label: member}
            else:
                assert value == member


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, http_sf.Token) else value


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(meta=st.dictionaries(st.sampled_from(HEADERS), FIELDS, max_size=len(HEADERS)))
def test_any_headers_at_all(consumers: Any, meta: dict[str, str]) -> None:
    with pytest.raises(SignatureRefused) as refused:
        check(meta, consumers, BODY)
    assert refused.value.reason.replace("_", "").isalpha()
    assert str(refused.value)


@pytest.mark.parametrize("scheme", ["legacy", "rsa-v1_5-sha256", "rsa-pss-sha512"])
def test_what_was_signed_is_accepted(consumers: Any, key_file: Path, scheme: Scheme) -> None:
    assert check(dict(signed(key_file, scheme)), consumers, BODY).until > NOW


@pytest.mark.parametrize("scheme", ["legacy", "rsa-v1_5-sha256", "rsa-pss-sha512"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_nothing_that_was_signed_can_be_changed(
    consumers: Any, key_file: Path, scheme: Scheme, data: st.DataObject
) -> None:
    original = dict(signed(key_file, scheme))
    true = check(original, consumers, BODY)
    meta, body = dict(original), BODY
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*sorted(original), "body", "HTTP_WM_SITE_ID"]))
        if name == "body":
            body = data.draw(st.one_of(st.just(BODY + b" "), st.binary(max_size=30)))
            continue
        meta[name] = data.draw(_mutated(meta.get(name, "")))
    try:
        proof = check(meta, consumers, body)
    except SignatureRefused:
        return
    assert proof.identity == true.identity
    assert meta["HTTP_WM_CONSUMER.ID"].strip() == CONSUMER
    if scheme != "legacy":
        assert body == BODY
        for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_WM_SITE_ID"):
            assert meta.get(name) == original.get(name), name


def _mutated(text: str) -> st.SearchStrategy[str]:
    """`text` with something of it taken away, put in, swapped or doubled."""
    at = st.integers(0, len(text))
    return st.one_of(
        st.builds(lambda a, new: text[:a] + new + text[a:], at, PIECES),
        st.builds(lambda a, b: text[: min(a, b)] + text[max(a, b) :], at, at),
        st.builds(lambda a, new: text[:a] + new + text[a + 1 :], at, PIECES),
        st.builds(lambda a, b: text[:a] + text[b:], at, at),
        st.sampled_from([text.upper(), text.lower(), text + text, f"{text},{text}", f" {text} "]),
        FIELDS,
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(st.sampled_from(["sha-256", "sha-512", "md5"]), min_size=1), data=st.data())
def test_digests_of_another_body(
    key: rsa.RSAPrivateKey, consumers: Any, parts: list[str], data: st.DataObject
) -> None:
    raw = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512, "md5": hashlib.sha1}
    digests = {
        name: raw[name](data.draw(st.sampled_from([BODY, b"other"]))).digest() for name in parts
    }
    known = {name: digest for name, digest in digests.items() if name != "md5"}
    proof = Proof(consumers[CONSUMER], b"x", NOW, known)
    right = all(digest == raw[name](BODY).digest() for name, digest in known.items())
    if right:
        proof.check_body(BODY)
    else:
        with pytest.raises(SignatureRefused):
            proof.check_body(BODY)


RUNS = (
    *(
        "a",
        "a=",
        "a=(",
        '"',
        '\\"',
        "\\",
        " ",
        "\t",
        ":",
        "=",
        ";",
        ";a",
        ";a=1",
        ",",
        "a,",
        "a=1,",
    ),
    *(
        '"x" ',
        '("x")',
        "-",
        "1",
        "?",
        "AAAA",
        ":AAAA:",
        ";a=:",
        ';a="',
        "*",
        "(",
        ")",
        "a=();",
        ". ",
    ),
)


@pytest.mark.parametrize("run", RUNS)
def test_the_work_is_bounded_by_the_length(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    def work(length: int) -> int:
        nonlocal steps
        steps = 0
        for before in ("", "a=(", 'a=("', 'a=("x" ', 'a=("x");b=', "a=:", "a=1, "):
            text = (before + run * length)[:length]
            sys.setprofile(count)
            try:
                inner_lists(text)
            except Malformed:
                pass
            finally:
                sys.setprofile(None)
        return steps

    with monkeypatch.context() as unbounded:
        # So that numbers of parts are not what ends it.
        unbounded.setattr(structured_fields, "MAX_PARTS", 1 << 20)
        few, many = work(MAX_LENGTH // 4), work(MAX_LENGTH)
    assert many <= 4 * few + 200
    with pytest.raises(Malformed, match="are looked at"):
        inner_lists("a" * (MAX_LENGTH + 1))
