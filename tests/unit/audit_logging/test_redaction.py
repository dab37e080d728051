"""Redaction: no planted secret comes through, however it is wrapped; the rest stays."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_logging.cards import is_card
from audit_logging.redaction import MASK, MAX_DEPTH, Redactor

SECRET = "Xk9vTq7ZpL2mWd"
NUMBER = 918273645546372819
JSON = "application/json"

redactor = Redactor(extra_keys=["loyalty-id"], max_body_bytes=100_000)

KEYS = [
    "password", "Password", "PASSWORD", "user_password", "db-password", "passwd", "pwd", "userPwd",
    "secret", "client_secret", "clientSecret", "token", "access_token", "accessToken",
    "X-Auth-Token", "id.token", "api_key", "apiKey", "API-KEY", "x-api-key", "authorization",
    "Proxy-Authorization", "auth", "x_auth", "card_number", "Card-Number", "cardNo", "cvv", "CVV2",
    "cvc", "pin", "userPIN", "PAN", "ssn", "SSN", "iban", "otp", "jwt", "sessionid", "session_id",
    "csrfmiddlewaretoken", "cookie", "Set-Cookie", "privateKey", "signature", "credentials",
    "WM_SEC.AUTH_SIGNATURE", "pass", "authCode", "ｐａｓｓｗｏｒｄ", "loyalty_id", "Loyalty ID",
    "p" * 300 + "_password",
]  # fmt: skip
HARMLESS_KEYS = [
    "business_name", "footprint", "gtin", "site_id", "order_number", "shipping", "company",
    "assignee", "description", "spinner", "panel", "discard", "wildcard", "postcard", "author",
    "tokenType", "sku", "quantity", "cancelled", "compass", "pinned", "sidebar", "signal",
]  # fmt: skip


def text_of(raw: bytes | str, content_type: str = JSON, encoding: str = "", **kwargs: Any) -> str:
    """What is recorded, state included: a secret may hide in neither."""
    raw = raw.encode() if isinstance(raw, str) else raw
    body = redactor.body(raw, content_type, encoding, **kwargs)
    return f"{body.state} {body.text}"


def hidden(text: str) -> bool:
    return SECRET not in text and str(NUMBER) not in text


# -- JSON ------------------------------------------------------------------------------------

plain = (
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(-1e3, 1e3)
    | st.text(max_size=8)
)
documents = st.recursive(
    plain,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(HARMLESS_KEYS), children, max_size=3)
    ),
    max_leaves=8,
)
secrets = st.sampled_from(
    [
        SECRET,
        NUMBER,
        float(NUMBER),
        [SECRET],
        [[1, {"x": SECRET}]],
        {"x": SECRET},
        {"value": NUMBER},
        f'{{"x": "{SECRET}"}}',
    ]
)


@st.composite
def planted(draw: st.DrawFn) -> Any:
    """A document with one secret under a telling key, at some depth, maybe in JSON in a string."""
    document: Any = {draw(st.sampled_from(KEYS)): draw(secrets), "note": draw(documents)}
    for _ in range(draw(st.integers(0, 6))):
        wrap = draw(st.sampled_from(["list", "dict", "string", "string in string"]))
        if wrap == "list":
            document = [draw(documents), document]
        elif wrap == "dict":
            document = {draw(st.sampled_from(HARMLESS_KEYS)): document, "other": draw(documents)}
        elif wrap == "string":
            document = {"payload": json.dumps(document)}
        else:
            document = {"payload": json.dumps(json.dumps(document))}
    return document


@settings(max_examples=100, deadline=None)
@given(planted(), st.sampled_from(["", " \r\n\t", "\ufeff"]), st.booleans())
def test_no_secret_in_json_at_any_depth(document: Any, blank: str, ascii_only: bool) -> None:
    text = blank + json.dumps(document, ensure_ascii=ascii_only)
    for content_type in (
        JSON,
        "Application/Problem+JSON; charset=utf-8",
        "text/plain",
        "text/html; charset=utf-8",
        "",
        "application/x-www-form-urlencoded",
        "application/x-ndjson",
        "text/event-stream",
    ):
        assert hidden(text_of(text, content_type)), content_type
    assert hidden(text_of(gzip.compress(text.encode(), mtime=0), JSON, "gzip"))
    assert hidden(text_of(zlib.compress(text.encode()), JSON, "deflate"))
    assert hidden(text_of(text[: len(text) * 2 // 3], "text/plain", truncated=True))
    assert hidden(text_of(f"data: {text}\n\ndata: {text}\n", "text/event-stream"))
    assert hidden(redactor.query(urlencode({"filter": text})))
    lines = f'{{"sku": 1}}\n{json.dumps(document, ensure_ascii=ascii_only)}\n'
    assert hidden(text_of(lines, "application/x-ndjson"))
    assert hidden(text_of(lines, "text/plain"))


@settings(max_examples=60, deadline=None)
@given(documents)
def test_a_document_without_secrets_is_kept_byte_for_byte(document: Any) -> None:
    text = json.dumps(document, indent=2)
    body = redactor.body(text.encode(), JSON)
    assert (body.text, body.state) == (text, "full")


@pytest.mark.parametrize("key", KEYS)
def test_every_spelling_of_a_key_is_known(key: str) -> None:
    assert redactor.is_sensitive(key)
    assert redactor.query(urlencode({key: SECRET, "page": "2"})).endswith("&page=2")
    assert hidden(redactor.query(urlencode({key: SECRET})))
    assert hidden(text_of(urlencode({"a": "b", key: SECRET}), "application/x-www-form-urlencoded"))


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_harmless_keys_keep_their_values(key: str) -> None:
    assert not redactor.is_sensitive(key)
    assert redactor.body(json.dumps({key: "kept"}).encode(), JSON).state == "full"


@pytest.mark.parametrize(
    "value",
    [
        "00012345678905",  # GTIN-14
        "4006381333931",  # GTIN-13, begins as a Visa card does
        4006381333931,
        "30012345678904",
        "1704989259133687000",  # a site id
        1704989259133687000,
        "PO-2024-000012345678",
        "2024-01-31T23:59:59.123456Z",
        "+1 479 555 0100 ext 12",
        "10.0.0.1 192.168.100.200",
        "Basic training and bearer of news, digest of the week",
        "business_name=Smith&footprint=12",
        "order_number: 9000000000000001",
    ],
)
def test_numbers_and_words_that_are_no_secrets_stay(value: Any) -> None:
    text = json.dumps({"value": value})
    assert redactor.body(text.encode(), JSON).text == text


def test_a_value_beside_its_name_is_known_too() -> None:
    for pair in (
        {"name": "password", "value": SECRET},
        {"Key": "x-api-key", "Value": SECRET},
        {"header": "Authorization", "value": [SECRET]},
    ):
        assert hidden(text_of(json.dumps({"fields": [pair, {"name": "color", "value": "red"}]})))
    assert "red" in text_of(json.dumps([{"name": "color", "value": "red"}]))


def test_empty_values_stay_so_that_a_reader_sees_they_were_empty() -> None:
    text = '{"password": "", "token": null}'
    assert redactor.body(text.encode(), JSON).text == text


def test_a_repeated_key_does_not_carry_its_first_value_through() -> None:
    body = redactor.body(f'{{"note": {{"password": "{SECRET}"}}, "note": 1}}'.encode(), JSON)
    assert body.state == "redacted"
    assert hidden(body.text or "")


# -- patterns ----------------------------------------------------------------------------------

CARDS = ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117",
         "2223003122003222", "3530111333300000"]  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_card_numbers_are_masked_wherever_they_stand(card: str) -> None:
    spaced = " ".join(card[i : i + 4] for i in range(0, len(card), 4))
    dashed = "-".join(card[i : i + 4] for i in range(0, len(card), 4))
    for written in (card, spaced, dashed):
        for text in (
            written,
            f"{written} 12/27",  # its expiry date
            f"{written} 123",
            f"order 12 {written}",
            f"2024 {written} 2025",
            f"paid with {written}.",
        ):
            masked = redactor.text(text)
            assert written not in masked
            assert MASK in masked, text
    assert hidden_card(text_of(json.dumps({"n": int(card)})), card)
    assert hidden_card(text_of(json.dumps({"n": -int(card)})), card)
    assert hidden_card(text_of(json.dumps({"n": float(card)})), card)
    assert hidden_card(text_of(json.dumps({card: 1})), card)
    assert redactor.path(f"/pay/{card}/now") == f"/pay/{MASK}/now"


def hidden_card(text: str, card: str) -> bool:
    return card not in text


def test_a_number_that_only_looks_like_a_card_stays() -> None:
    assert not is_card("4111111111111112")
    assert redactor.text("4111111111111112") == "4111111111111112"
    assert redactor.text("id 41111111111111114111111111111111") == (
        "id 41111111111111114111111111111111"
    )


@pytest.mark.parametrize(
    "text",
    [
        "eyJhbGciOiJIUzI1NiJ9.{}.c2ln",
        "Bearer {}",
        "bearer\t{}",
        "Basic dXNlcjpYazl2VHE3WnBMMm1XZA== {}",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n{}",
        "https://example.com/cb?access_token={}&x=1",
        "https://example.com/cb?x=1&user[password]={}#top",
        "password={}",
    ],
)
def test_patterns_are_masked_in_json_strings_queries_and_headers(text: str) -> None:
    planted = text.format(SECRET).replace(f"== {SECRET}", "==")
    body = text_of(json.dumps({"note": f"see {planted}"}))
    assert hidden(body)
    assert "dXNlcj" not in body
    assert hidden(redactor.text(planted))
    assert hidden(redactor.query(urlencode({"q": planted})))


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: token {SECRET}",
        f'Authorization: Digest username="u", response="{SECRET}"',
        f"Cookie: a=b; sessionid={SECRET}; c={SECRET}\nnext",
        f"login failed, password: {SECRET}",
        f"login failed, password => '{SECRET} with spaces'",
        f'{{"a": 1, "password": "{SECRET} and \\" {SECRET}", broken',
        f"{{'auth': {{'user': 'u', 'code': '{SECRET}'}}}}",
        f'say {{\\"pin\\": \\"{SECRET}\\"}} twice',
        f"<password>{SECRET}</password>",
        f'<wsse:Password Type="x">{SECRET}</wsse:Password>',
        f"<Token><![CDATA[{SECRET}]]></Token>",
        f"<a><secret><b>{SECRET}</b></secret></a>",
        f"<secret>{SECRET}",
        f'<login password="{SECRET}"/>',
        f'<input type="hidden" name="csrfmiddlewaretoken" value="{SECRET}">',
        f'<property name="password">{SECRET}</property>',
    ],
)
def test_prose_and_markup(text: str) -> None:
    for content_type in ("text/plain", "text/html", "application/xml", "application/soap+xml"):
        assert hidden(text_of(text, content_type)), content_type
    assert hidden(redactor.text(text))


def test_markup_without_secrets_is_unchanged() -> None:
    page = '<html><body class="card"><h1>Not Found</h1><p>No token here.</p></body></html>'
    assert redactor.body(page.encode(), "text/html").state == "full"


# -- what cannot be looked through -------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "content_type", "encoding", "state"),
    [
        (b'{"password": "' + SECRET.encode() + b'", ', JSON, "", "omitted_parse"),
        (b'{"password": "' + SECRET.encode() + b'", ', "", "", "omitted_parse"),
        (b'{"n": "' + SECRET.encode() + b'", ', "text/plain", "", "omitted_parse"),
        (b"\xff\xfe\x00", JSON, "", "omitted_parse"),
        (b"\x89PNG\r\n", "image/png", "", "omitted_binary"),
        (b"\x89PNG\r\n\xff", "", "", "omitted_binary"),
        (b"no type at all", "", "", "omitted_binary"),
        (b"--x\r\n", "multipart/form-data; boundary=x", "", "omitted_binary"),
        (b"not gzip", JSON, "gzip", "omitted_parse"),
        (gzip.compress(b"{}", mtime=0)[:-4], JSON, "gzip", "omitted_parse"),
        (
            gzip.compress(b'{"a": 1}', mtime=0) + gzip.compress(b'{"b": 1}', mtime=0),
            JSON,
            "gzip",
            "omitted_parse",
        ),
        (b"{}", JSON, "br", "omitted_parse"),
        (b"{}", f"{JSON}; charset=nonsense", "", "omitted_parse"),
        (b"{}", f"{JSON}; charset=punycode", "", "omitted_parse"),
        (b"{}", f"{JSON}; charset=unicode_escape", "", "omitted_parse"),
        ('{"a": 1}'.encode("utf-16"), JSON, "", "omitted_parse"),
        (b"x" * 100_001, "text/plain", "", "omitted_size"),
        (b'{"n": ' + b"9" * 5000 + b"}", JSON, "", "omitted_parse"),
        (b"[" * 50_000, JSON, "", "omitted_parse"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, JSON, "", "omitted_size"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), JSON, "", "omitted_parse"),
        (json.dumps({"s": "[" * 50_000}).encode(), JSON, "", "omitted_parse"),
        (b"[" + b"1," * 49_000 + b"1]", JSON, "", "full"),
        (gzip.compress(b"a" * 50_000_000, mtime=0), "text/plain", "gzip", "omitted_size"),
    ],
)
def test_states(raw: bytes, content_type: str, encoding: str, state: str) -> None:
    started = time.perf_counter()
    body = redactor.body(raw, content_type, encoding)
    assert body.state == state
    assert hidden(body.text or "")
    if state.startswith("omitted"):
        assert len(body.text or "") < 200
    assert time.perf_counter() - started < 1.0


def test_json_in_json_beyond_the_depth_is_left_out() -> None:
    document: Any = {"password": SECRET}
    for _ in range(10):
        document = json.dumps({"a": document})
    for _ in range(MAX_DEPTH - 5):
        document = [document]
    assert text_of(json.dumps(document)).startswith("omitted_parse")


def test_other_charsets_are_read() -> None:
    raw = json.dumps({"name": "Zoë", "pin": SECRET}, ensure_ascii=False).encode("latin-1")
    body = redactor.body(raw, f"{JSON}; charset=ISO-8859-1")
    assert body.text == f'{{"name":"Zoë","pin":"{MASK}"}}'


def test_not_a_number_and_lone_surrogates() -> None:
    raw = b'{"x": NaN, "y": "\\ud800", "pin": 1234567}'
    body = redactor.body(raw, JSON)
    assert body.state == "redacted"
    assert "1234567" not in (body.text or "")
    assert redactor.body(b'{"x": NaN}', JSON).text == '{"x": NaN}'


def test_a_number_beyond_all_floats_stays_its_text() -> None:
    body = redactor.body(b'{"password": "x", "n": 1e400}', JSON)
    assert body.text == f'{{"password":"{MASK}","n":"1e400"}}'


def test_a_form_that_is_redacted_reads_like_the_form_it_was() -> None:
    body = redactor.body(b"a=1&password=x&b=%20y&empty=", "application/x-www-form-urlencoded")
    assert (body.text, body.state) == (f"a=1&password={MASK}&b=+y&empty=", "redacted")
    same = b"a=1&b=%20y&empty="
    assert redactor.body(same, "application/x-www-form-urlencoded").text == same.decode()


def test_a_form_with_absurdly_many_fields_is_left_out() -> None:
    raw = b"&".join(b"a=1" for _ in range(10_001))
    body = redactor.body(raw, "application/x-www-form-urlencoded")
    assert body.text == "omitted=unparsable"


def test_a_cut_text_ends_at_a_line_so_that_no_half_secret_shows() -> None:
    body = redactor.body(b"one\ntwo\npassword=abc", "text/plain", truncated=True)
    assert (body.text, body.state) == ("one\ntwo\n", "truncated")
    assert redactor.body(b'{"a": 1', JSON, truncated=True).state == "omitted_size"
    assert redactor.body(b"", JSON, truncated=True).state == "truncated"


def test_route_arguments_with_telling_names_are_masked_in_paths() -> None:
    path = redactor.path(f"/reset/MQ/{SECRET}/", {"uidb64": "MQ", "token": SECRET, "id": 1})
    assert path == f"/reset/MQ/{MASK}/"


HOSTILE = [
    "a" * 200_000, "password" * 25_000, "eyJ" * 66_000, "eyJ." * 50_000, "1 " * 50_000,
    "4 " * 50_000, "<a " * 66_000, "a=" * 100_000, "token={" * 28_000, 'pin:"\\' * 33_000,
    "-----BEGIN A-----" * 12_000, "<token>" * 28_000, "bearer " * 28_000, "=" * 200_000,
    'data:{"' * 28_000, "[" * 200_000, "{\n" * 100_000, "session " * 25_000,
    "password = " * 18_000, "\\" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_text_takes_linear_time(text: str) -> None:
    wide = Redactor(max_body_bytes=1_000_000)
    started = time.process_time()
    for content_type in ("text/plain", JSON, "application/x-www-form-urlencoded"):
        wide.body(text.encode(), content_type)
    wide.text(text)
    # Quadratic patterns took minutes here.
    assert time.process_time() - started < 5
