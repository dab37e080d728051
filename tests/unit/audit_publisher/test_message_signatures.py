"""Message signatures (RFC 9421): what is let in, and that nothing of it can be changed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from audit_logging import message_signatures as messages
from audit_logging.signing import Scheme, Signer
from audit_publisher import authentication
from audit_publisher.models import Consumer
from tests.unit.audit_publisher.conftest import BATCH, CONSUMER, LEGACY, URL, Configure, stored
from tests.unit.audit_publisher.signed import PSS, V15, Sending, counted, event_body, refusal
from tests.unit.audit_publisher.test_views import problem


@pytest.fixture(autouse=True)
def enforced(configure: Configure) -> None:
    configure(SIGNATURE="enforce")


@pytest.fixture
def sending(api: Client, consumer: Consumer, private_key_file: Path) -> Sending:
    return Sending(api, private_key_file)


@pytest.fixture
def sign(private_key: Any) -> Callable[..., dict[str, str]]:
    """Signs whatever a test wants signed, also what our own signer would not."""

    def sign(
        components: list[tuple[str, str]],
        *,
        names: str | None = None,
        params: str | None = None,
        label: str = "x",
        algorithm: messages.Algorithm = PSS,
        keyid: str = f"{CONSUMER}:1",
        created: int | None = None,
        nonce: str = "n-1",
    ) -> dict[str, str]:
        created = int(time.time()) if created is None else created
        if params is None:
            params = f';created={created};keyid="{keyid}";alg="{algorithm}";nonce="{nonce}"'
        if names is None:
            names = "(" + " ".join(f'"{name}"' for name, _ in components) + ")"
        signature = private_key.sign(
            messages.signature_base(components, names + params),
            *messages.padding_and_hash(algorithm),
        )
        return {
            "WM-CONSUMER.ID": CONSUMER,
            "Signature-Input": f"{label}={names}{params}",
            "Signature": f"{label}=:{base64.b64encode(signature).decode()}:",
        }

    return sign


def parts(body: bytes, url: str = URL) -> list[tuple[str, str]]:
    """What has to be covered of a POST."""
    return [
        ("@method", "POST"),
        ("@path", url),
        ("content-type", "application/json"),
        ("content-digest", messages.content_digest(body)),
        ("wm-consumer.id", CONSUMER),
    ]


@pytest.mark.parametrize("scheme", [PSS, V15])
@pytest.mark.parametrize("url", [URL, LEGACY])
def test_one_event(sending: Sending, private_key_file: Path, scheme: Scheme, url: str) -> None:
    sending.signer = Signer(CONSUMER, "1", private_key_file, scheme)
    before = counted("ok")
    assert sending.post(event_body(), url=url).status_code in (200, 204)
    assert counted("ok") == before + 1
    (record,) = stored()
    assert dict(record.headers)["wm_consumer.id"] == CONSUMER.encode()


def test_the_digest_is_of_the_bytes_that_were_sent(sending: Sending) -> None:
    packed = gzip.compress(event_body() + b"\n" + event_body())
    sent = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    zipped = {"Content-Encoding": "gzip"}
    headers = sending.headers(packed, url=BATCH, sent=sent) | zipped
    response = sending.post(packed, headers, BATCH, "application/x-ndjson")
    assert [item["status"] for item in response.json()["items"]] == ["published"] * 2
    headers = sending.headers(gzip.decompress(packed), url=BATCH, sent=sent) | zipped
    said = refusal(sending.post(packed, headers, BATCH, "application/x-ndjson"))
    assert (said["code"], said["error"]["header"]) == ("signature-bad-digest", "Content-Digest")


def test_nothing_is_taken_of_a_body_that_was_not_signed(sending: Sending) -> None:
    headers = sending.headers(event_body())
    before = counted("bad_digest")
    said = refusal(sending.post(event_body(), headers))
    assert said["code"] == "signature-bad-digest"
    assert not said["retryable"]
    assert counted("bad_digest") == before + 1
    assert stored() == []


def test_each_part_is_covered(sending: Sending) -> None:
    body = event_body()
    headers = sending.headers(body)
    moved = sending.post(body, headers, LEGACY)
    assert refusal(moved)["code"] == "signature-bad-signature"
    asked = sending.post(body, headers, URL + "?dry=1")
    assert refusal(asked)["code"] == "signature-uncovered"
    digest = messages.content_digest(b"{}")
    swapped = sending.post(b"{}", headers | {"Content-Digest": digest})
    assert refusal(swapped)["code"] == "signature-bad-signature"
    for name in (
        *("WM-Site-Id", "WM_SVC.NAME", "WM-SVC.VERSION", "Wm-Svc-Env", "WM_QOS.CORRELATION_ID"),
        "Content-Encoding",
    ):
        added = refusal(sending.post(body, headers | {name: "identity"}))
        assert added["code"] == "signature-uncovered"
        assert name.lower().replace("_", "-").replace(".", "-") in added["detail"].replace(".", "-")
    other = sending.post(body, headers, content_type="application/json; charset=utf-8")
    assert refusal(other)["code"] == "signature-bad-signature"
    assert stored() == []
    assert sending.post(body, headers | {"traceparent": "00-x"}).status_code == 200


def test_another_s_name_over_a_good_signature(sending: Sending) -> None:
    Consumer.objects.create(consumer_id="other", service_names="*", caller_ids="*")
    authentication.refresh()
    body = event_body()
    headers = sending.headers(body) | {"WM-CONSUMER.ID": "other"}
    assert refusal(sending.post(body, headers))["code"] == "signature-malformed"


def test_a_query_is_covered(sending: Sending) -> None:
    url = URL + "?from=a%20b&x=1"
    body = event_body()
    assert sending.post(body, url=url).status_code == 200
    other = sending.post(body, sending.headers(body, url=url), URL + "?from=a%20b&x=2")
    assert refusal(other)["code"] == "signature-bad-signature"


def test_flags_without_a_body(sending: Sending) -> None:
    path = "/v1/config/inventory-api"
    headers = sending.headers(None, method="GET", url=path)
    assert "Content-Digest" not in headers
    assert sending.api.get(path, headers=headers).status_code == 200
    assert refusal(sending.api.get(path, headers=headers))["code"] == "signature-replayed"
    elsewhere = sending.api.get("/v1/config/payments-api", headers=headers)
    assert refusal(elsewhere)["code"] == "signature-bad-signature"


@pytest.mark.parametrize(
    "missing", ["@method", "@path", "content-type", "content-digest", "wm-consumer.id"]
)
def test_what_must_be_covered(
    sending: Sending, sign: Callable[..., dict[str, str]], missing: str
) -> None:
    body = event_body()
    digest = {"Content-Digest": messages.content_digest(body)}
    headers = sign([part for part in parts(body) if part[0] != missing]) | digest
    said = refusal(sending.post(body, headers))
    assert said["code"] == "signature-uncovered"
    assert missing in said["detail"]
    assert sending.post(body, sign(parts(body)) | digest).status_code == 200


@pytest.mark.parametrize(
    "components",
    [
        [("@target-uri", f"http://testserver{URL}")],
        [("@request-target", URL)],
        [("@path", URL), ("@authority", "testserver"), ("@scheme", "http"), ("@query", "?")],
        [("@path", URL), ("host", "testserver")],
        [("@path", URL), ("wm_consumer.id", CONSUMER)],
        [("@path", URL), ("wm-consumer-id", CONSUMER)],
    ],
)
def test_other_ways_to_cover_it(
    sending: Sending, sign: Callable[..., dict[str, str]], components: list[tuple[str, str]]
) -> None:
    body = event_body()
    covered = [part for part in parts(body) if part[0] != "@path"] + components
    digest = {"Content-Digest": messages.content_digest(body)}
    response = sending.post(body, sign(covered) | digest | {"Host": "testserver"})
    assert response.status_code == 200, response.content


@pytest.mark.parametrize(
    "said", ["https", " https , http", "http", "http, https", "HTTPS", "", None]
)
@pytest.mark.parametrize("component", ["@target-uri", "@scheme"])
def test_the_scheme_behind_a_proxy_that_ends_tls(
    sending: Sending,
    sign: Callable[..., dict[str, str]],
    settings: Any,
    said: str | None,
    component: str,
) -> None:
    """As the proxy says, and not in the other form, which somebody else may have asked for."""
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    body = event_body()
    sent = {"Content-Digest": messages.content_digest(body), "Host": "testserver"}
    if said is not None:
        sent["X-Forwarded-Proto"] = said

    def signed(scheme: str) -> dict[str, str]:
        added = {"@target-uri": f"{scheme}://testserver{URL}", "@scheme": scheme}
        return sign([*parts(body), (component, added[component])])

    good = "https" if said is not None and said.split(",")[0].strip() == "https" else "http"
    bad = {"https": "http", "http": "https"}[good]
    assert refusal(sending.post(body, signed(bad) | sent))["code"] == "signature-bad-signature"
    assert sending.post(body, signed(good) | sent).status_code == 200


def test_a_proxy_s_word_counts_for_nothing_unless_it_is_set(
    sending: Sending, sign: Callable[..., dict[str, str]]
) -> None:
    body = event_body()
    sent = {"Content-Digest": messages.content_digest(body), "X-Forwarded-Proto": "https"}
    for scheme, status in (("https", 401), ("http", 200)):
        headers = sign([*parts(body), ("@scheme", scheme)]) | sent
        assert sending.post(body, headers).status_code == status


def test_digests(sending: Sending, sign: Callable[..., dict[str, str]]) -> None:
    body = event_body()

    nonces = itertools.count()

    def send(digest: str) -> Any:
        covered = [part for part in parts(body) if part[0] != "content-digest"]
        signed = sign([*covered, ("content-digest", digest)], nonce=f"n-{next(nonces)}")
        return sending.post(body, signed | {"Content-Digest": digest})

    short = base64.b64encode(hashlib.sha256(body).digest()).decode()
    long = base64.b64encode(hashlib.sha512(body).digest()).decode()
    assert send(f"sha-512=:{long}:").status_code == 200
    assert send(f"sha-256=:{short}:, sha-512=:{long}:").status_code == 200
    assert send(f"unixsum=:AAAA:, sha-256=:{short}:").status_code == 200
    for wrong, code in (
        (f"sha-256=:{short}:,  sha-512=:{short}:", "signature-bad-digest"),
        ("md5=:AAAA:", "signature-malformed"),
        ("sha-256=AAAA", "signature-malformed"),
        ("sha-256=:A:", "signature-malformed"),
        (f"sha-256=:{short}:, sha-256=:{short}:", "signature-malformed"),
    ):
        assert refusal(send(wrong))["code"] == code, wrong


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"nonce": ""}, "signature-malformed", "nonce"),
        ({"nonce": "x" * 300}, "signature-malformed", "nonce"),
        ({"created": 0}, "signature-expired", "180 s"),
        ({"created": 99_999_999_999}, "signature-future", "clock"),
        ({"keyid": f"{CONSUMER}:7"}, "signature-unknown-key", "audit_key add"),
        ({"keyid": "somebody:1"}, "signature-malformed", "<consumer id>:<key version>"),
        ({"keyid": CONSUMER}, "signature-malformed", "<consumer id>:<key version>"),
        ({"params": ';keyid="%s:1";alg="%s";nonce="n"'}, "signature-malformed", "created"),
        ({"params": ';created=NOW;keyid="%s:1";nonce="n"'}, "signature-malformed", "alg"),
        (
            {"params": ';created=NOW;keyid="%s:1";alg="hmac-sha256";nonce="n"'},
            "signature-malformed",
            "rsa-v1_5-sha256",
        ),
        (
            {"params": ';created=NOW;expires=5;keyid="%s:1";alg="%s";nonce="n"'},
            "signature-expired",
            "expired",
        ),
        (
            {"params": ';created=NOW;created=NOW;keyid="%s:1";alg="%s";nonce="n"'},
            "signature-malformed",
            "twice",
        ),
    ],
)
def test_parameters(
    sending: Sending,
    sign: Callable[..., dict[str, str]],
    change: dict[str, Any],
    code: str,
    said: str,
) -> None:
    if "params" in change:
        text = change["params"].replace("NOW", str(int(time.time())))
        change = {"params": text.replace("%s", CONSUMER, 1).replace("%s", PSS)}
    body = event_body()
    digest = {"Content-Digest": messages.content_digest(body)}
    document = refusal(sending.post(body, sign(parts(body), **change) | digest))
    assert document["code"] == code
    assert said in document["detail"]


def test_an_algorithm_cannot_be_swapped(sending: Sending) -> None:
    body = event_body()
    headers = sending.headers(body)
    headers["Signature-Input"] = headers["Signature-Input"].replace(PSS, V15)
    assert refusal(sending.post(body, headers))["code"] == "signature-bad-signature"


def test_who_signs_twice_and_who_signs_beside(
    sending: Sending, sign: Callable[..., dict[str, str]]
) -> None:
    body = event_body()
    own = sending.headers(body)
    # A gateway's signature beside ours is none of our business.
    foreign = 'gw=("@method");created=1;keyid="gateway";alg="ed25519"'
    beside = own | {
        "Signature-Input": f"{foreign}, {own['Signature-Input']}",
        "Signature": f"gw=:AAAA:,{own['Signature']}",
    }
    assert sending.post(body, beside).status_code == 200
    second = sign(parts(body))
    twice = own | {
        name: f"{own[name]}, {second[name]}" for name in ("Signature-Input", "Signature")
    }
    assert refusal(sending.post(body, twice))["code"] == "signature-duplicate"


def test_blanks_that_a_proxy_adds_do_not_matter(sending: Sending) -> None:
    body = event_body()
    headers = sending.headers(body)
    text = headers["Signature-Input"]
    spaced = text.replace('" "', '"   "').replace("=(", "=( ").replace(";nonce", ";  nonce")
    assert spaced != text
    assert sending.post(body, headers | {"Signature-Input": f" {spaced} "}).status_code == 200


@pytest.mark.parametrize("header", ["Signature", "Signature-Input", "Content-Digest"])
def test_a_header_that_is_missing_or_garbage(sending: Sending, header: str) -> None:
    body = event_body()
    headers = sending.headers(body)
    for garbage in ("", " ", "=", "audit", "audit=(", "audit=:", "a=1,", '"', "é", "audit=?1"):
        said = refusal(sending.post(body, headers | {header: garbage}))
        assert said["code"] in {"signature-missing", "signature-malformed"}, garbage
        assert said["error"]["header"] is not None
    assert sending.post(body, headers).status_code == 200


@pytest.mark.parametrize("component", ["@status", "@query-param", "x-unsent", "Wm-Qos"])
def test_components_that_are_none(
    sending: Sending, sign: Callable[..., dict[str, str]], component: str
) -> None:
    body = event_body()
    digest = {"Content-Digest": messages.content_digest(body)}
    headers = sign([*parts(body), (component, "x")]) | digest
    assert component in refusal(sending.post(body, headers))["detail"]
    with_key = sign(parts(body), names='("@method" "content-digest";key="sha-256")')
    assert "parameters" in refusal(sending.post(body, with_key | digest))["detail"]


def test_the_path_as_it_was_sent(sending: Sending, sign: Callable[..., dict[str, str]]) -> None:
    body = event_body()
    url = BATCH.replace(":", "%3A")
    headers = sign(parts(body, url)) | {"Content-Digest": messages.content_digest(body)}
    sent = sending.api.post(
        url, b"[%s]" % body, content_type="application/json", headers=headers, RAW_URI=url
    )
    # Another body than was signed, so that the path was found good.
    assert refusal(sent)["code"] == "signature-bad-digest"
    # A server's word on the path is taken only where it is the path that is acted upon.
    lied = sending.api.post(
        BATCH, body, content_type="application/json", headers=headers, RAW_URI=url + "x"
    )
    assert refusal(lied)["code"] == "signature-bad-signature"


# -- rules ----------------------------------------------------------------------------------


def test_no_way_back_to_the_legacy_signature(sending: Sending, private_key_file: Path) -> None:
    Consumer.objects.update(schemes="message")
    authentication.refresh()
    legacy = Sending(sending.api, private_key_file, "legacy")
    said = refusal(legacy.post(event_body()))
    assert said["code"] == "signature-weak-scheme"
    assert "AUDIT_LOGGING_SIGNATURE_SCHEME" in said["detail"]
    assert sending.post(event_body()).status_code == 200


def test_both_kinds_at_once_are_judged_by_the_better(
    sending: Sending, private_key_file: Path
) -> None:
    body = event_body()
    legacy = Sending(sending.api, private_key_file, "legacy").headers(body)
    assert sending.post(body, legacy | sending.headers(body)).status_code == 200
    broken = legacy | sending.headers(body) | {"Content-Digest": messages.content_digest(b"")}
    assert refusal(sending.post(body, broken))["code"] == "signature-bad-signature"


def test_report_takes_what_is_wrong_and_says_so(sending: Sending, configure: Configure) -> None:
    configure(SIGNATURE="report")
    authentication.refresh()
    before = counted("bad_digest"), counted("uncovered")
    headers = sending.headers(event_body())
    assert sending.post(event_body(), headers).status_code == 200
    assert sending.post(event_body(), sending.headers(b""), URL + "?a").status_code == 200
    assert (counted("bad_digest"), counted("uncovered")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("own", "status"), [("enforce", 401), ("report", 200), ("off", 200), ("inherit", 401)]
)
def test_a_consumer_s_own_rule(sending: Sending, own: str, status: int) -> None:
    Consumer.objects.update(enforcement=own)
    authentication.refresh()
    headers = sending.headers(event_body())
    assert sending.post(event_body(), headers).status_code == status


def test_a_consumer_switched_off(sending: Sending) -> None:
    Consumer.objects.update(active=False)
    authentication.refresh()
    assert refusal(sending.post(event_body()))["code"] == "signature-inactive"


def test_a_revoked_key(sending: Sending, consumer: Consumer) -> None:
    consumer.keys.update(revoked=True)
    authentication.refresh()
    assert refusal(sending.post(event_body()))["code"] == "signature-key-revoked"


def test_a_consumer_id_with_odd_characters(
    sending: Sending, consumer: Consumer, private_key_file: Path
) -> None:
    odd = 'a:b "c" \\d'
    Consumer.objects.update(consumer_id=odd)
    authentication.refresh()
    sending.signer = Signer(odd, "1", private_key_file, PSS)
    assert sending.post(event_body(consumer_id=None, headers=None)).status_code == 200


def test_a_body_that_is_too_large_is_not_digested(sending: Sending, configure: Configure) -> None:
    configure(SIGNATURE="enforce", MAX_EVENT_BYTES=1000)
    authentication.refresh()
    body = json.dumps({"x": "y" * 2000}).encode()
    problem(sending.post(body), 413)
