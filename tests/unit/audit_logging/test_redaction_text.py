"""No secret in any text, wherever the text stands; words that only look like one stay."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from audit_logging.redaction import MASK, Redactor

SECRET = "Xk9vTq7ZpL2mWd"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

redactor = Redactor()


def everywhere(text: str) -> dict[str, str]:
    """What is recorded of a text in each place where one may stand."""
    bodies = {
        "text": (text, "text/plain"),
        "html": (text, "text/html; charset=utf-8"),
        "json": (json.dumps({"note": [text]}), JSON),
        "json in json": (json.dumps({"note": json.dumps({"x": text})}), JSON),
        "ndjson": (json.dumps({"note": text}) + "\n", "application/x-ndjson"),
        "form": (urlencode({"note": text}), FORM),
    }
    recorded = {
        place: str(redactor.body(body.encode(), content_type).text)
        for place, (body, content_type) in bodies.items()
    }
    recorded["query"] = redactor.query(urlencode({"q": text}))
    recorded["raw query"] = redactor.query(f"q={quote(text)}")
    recorded["header or reason"] = redactor.text(text)
    return recorded


LEAKS = [
    f"login with password: {SECRET}",
    f'got {{"password":"{SECRET}"}}',
    f"<password>{SECRET}</password>",
    f'mutation{{login(password:"{SECRET}"){{id}}}}',
    f"postgres://app:{SECRET}@db/prod",
    f"see https://bob:{SECRET}@host/x",
    f"DETAIL:  Key (token)=({SECRET}) already exists.",
    f"DETAIL:  Key (user_id, token)=(1, {SECRET}) already exists.",
    f"got {{'password': b'{SECRET}'}}",
    f"got {{'password': SecretStr('{SECRET}')}}",
    f"got {{'pin': Decimal('{SECRET}')}}",
    f"[('password', '{SECRET}')]",
    f"<pre>{{&quot;password&quot;: &quot;{SECRET}&quot;}}</pre>",
    f"<pre>{{&#x27;api_key&#x27;: &#x27;{SECRET}&#x27;}}</pre>",
    f'<span class="str">"password"</span>: <span class="str">"{SECRET}"</span>',
    f"<tr><td>password</td><td class='code'><pre>&#x27;{SECRET}&#x27;</pre></td></tr>",
    f"<th>Password</th><td>{SECRET}</td>",
    f"<dt>API key</dt><dd>{SECRET}</dd>",
    f"<dict><key>password</key><string>{SECRET}</string></dict>",
    f"<b>Password:</b> {SECRET}<br>",
    f'<input type="password" value="{SECRET}">',
    f'<input id=pw name="user_password" value="{SECRET}">',
    f'<property k="password" v="{SECRET}"/>',
    f"<token><token>x</token>{SECRET}</token>",
    f"<password><!-- </password> -->{SECRET}</password>",
    f"<password><![CDATA[</password>{SECRET}]]></password>",
    f'<password a="{"x" * 5000}">{SECRET}</password>',
    f"<contraseña>{SECRET}</contraseña>",
    f"password: two {SECRET}",
    f"password: ab,{SECRET}",
    f"password: ab&{SECRET}",
    f"password: ab;{SECRET}",
    f"password: &{SECRET}",
    f"password: <{SECRET}>",
    f"password := {SECRET}",
    f"password == {SECRET}",
    f"password -> {SECRET}",
    f"password:          {SECRET}",
    f"password          : {SECRET}",
    f"password='ab''{SECRET}'",
    f'password="ab"cd{SECRET}',
    f"password: it's {SECRET}",
    f"password: |\n  {SECRET}\n",
    f"- name: DB_PASSWORD\n  value: {SECRET}\n",
    f"Authorization: Basic\r\n {SECRET}",
    f'Digest username="u", response="{SECRET}"',
    f'INFO {{"name":"password","value":"{SECRET}"}}',
    f"mysql --password {SECRET} -u root",
    f"Server=x;Pass Word={SECRET}",
    f"AccountKey={SECRET}==;",
    f"next=%3Fpassword%3D{SECRET}",
    f"next=%253Fpassword%253D{SECRET}",
    f"https://x/?p%61ssword={SECRET}",
    f'x {{"p\\u0061ssword":"{SECRET}"}}',
    f"API key: {SECRET}",
    f"Secret Key: {SECRET}",
    f"security code: {SECRET}",
    f"one time code: {SECRET}",
    f"Token {SECRET}",
    f"ApiKey {SECRET}",
    "Bearer XkvTqZpLmWd",
    f"AKIA{SECRET.upper()}77",
    f"ghp_{SECRET}{SECRET}",
    f"sk_live_{SECRET}",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_secret_in_text_anywhere(text: str) -> None:
    for place, recorded in everywhere(text).items():
        assert SECRET not in recorded, place
        assert SECRET.upper() not in recorded, place
        assert "XkvTqZpLmWd" not in recorded, place


@pytest.mark.parametrize(
    "text",
    [
        "the secretary said: hello",
        "max_tokens: 4096",
        "password_required: true",
        '"signature": "required"',
        "Basic packaging1 and basic education",
        "Token expired",
        "at 10:30:00 on 2024-01-31, see https://example.com:8443/a?b=c#d",
        "a < b, c > d & e; 100% of it",
        "position 41.123456789012345, -93.123456789012345",
        "4.1/2.5 and 12/06/2024 10.11.12.13",
        "<html><head><title>Cards</title></head><body><th>Password</th><th>x</th></body></html>",
    ],
)
def test_words_and_numbers_that_are_no_secrets_stay(text: str) -> None:
    recorded = everywhere(text)
    assert recorded["text"] == recorded["html"] == recorded["header or reason"] == text
    assert json.loads(recorded["json"]) == {"note": [text]}
    assert recorded["raw query"] == f"q={quote(text)}"


@pytest.mark.parametrize(
    "name",
    [
        "contraseña", "Contrasena", "clave", "mot_de_passe", "pw", "psw", "userpass", "dbpass",
        "passwrd", "authorisation", "mfa_code", "verification_code", "totp", "one_time_code",
        "cardpin", "Ocp-Apim-Subscription-Key", "client_key", "app_key", "masterKey", "ssh_key",
        "PHPSESSID", "account_no", "acct_no", "client_assertion", "SAMLResponse", "code_verifier",
        "curp", "clabe", "passwort", "AccountKey",
    ],
)  # fmt: skip
def test_more_names(name: str) -> None:
    assert redactor.is_sensitive(name)


@pytest.mark.parametrize(
    "document",
    [
        {"password_required": True, "token": None, "has_session": False},
        {"max_tokens": 4096, "tokenized": "yes", "total_tokens": 3, "token_count": 2},
        {"secretary": "Ann", "card_count": 3, "signature": "required"},
        {"card": {"type": "visa", "last4": "1111"}},
        {"name": "Cookies", "value": 3.99},
        {"account_notes": "x", "totals": 1, "total_pages": 2, "sessionCount": 3},
    ],
)
def test_what_tells_no_secret_stays(document: Any) -> None:
    body = redactor.body(json.dumps(document).encode(), JSON)
    assert (body.text, body.state) == (json.dumps(document), "full")


@pytest.mark.parametrize(
    "document",
    [
        {"card": {"type": SECRET, "number": SECRET}},
        {"k": "password", "v": SECRET},
        {"key": "password", "val": SECRET},
        {"id": "password", "value": SECRET},
        {"label": "Password", "value": SECRET},
        {"NAME": "password", "VALUE": SECRET},
        {"name": "password", "values": [SECRET]},
        {"name": "cookie", "value": SECRET},
        {"rows": [["password", SECRET], ["user", "bob"]]},
    ],
)
def test_a_value_beside_its_name(document: Any) -> None:
    assert SECRET not in str(redactor.body(json.dumps(document).encode(), JSON).text)


def test_a_value_beside_its_name_in_a_form() -> None:
    text = f"name=color&value=red&name=password&value={SECRET}"
    assert SECRET not in str(redactor.body(text.encode(), FORM).text)
    assert redactor.query("name=color&value=red") == "name=color&value=red"
    assert SECRET not in redactor.query(text)


@pytest.mark.parametrize(
    "card",
    [
        "card4111111111111111", "x4111111111111111", "%B4111111111111111^DOE/J^2512",
        "4111.1111.1111.1111", "4111_1111_1111_1111", "4111/1111/1111/1111",
        "4111  1111  1111  1111", "4111\t1111\t1111\t1111", "4111 - 1111 - 1111 - 1111",
        "4111\u00a01111\u00a01111\u00a01111", "4111\u20111111\u20111111\u20111111",
        "4111%201111%201111%201111",
    ],
)  # fmt: skip
def test_card_numbers_however_they_are_written(card: str) -> None:
    assert MASK in redactor.text(card)
    assert "1111" not in redactor.text(card)


@pytest.mark.parametrize(
    ("path", "kwargs", "recorded"),
    [
        ("/otp/482915/", {"otp": 482915}, f"/otp/{MASK}/"),
        ("/otp/007/", {"otp": 7}, f"/otp/{MASK}/"),
        (f"/reset/{uuid.UUID(int=5)}", {"token": uuid.UUID(int=5)}, f"/reset/{MASK}"),
        ("/a/ab/x", {"pin": "ab"}, f"/a/{MASK}/x"),
        ("/key/ff/", {"pin": 255}, f"/{MASK}"),
        ("/files/a/b/c", {"token": "a/b/c"}, f"/files/{MASK}"),
        ("/login/", {"token_required": True, "session": None}, "/login/"),
        ("/items/7/", {"pk": 7}, "/items/7/"),
        ("/v1/sessions:close", {}, "/v1/sessions:close"),
    ],
)
def test_what_a_route_takes_from_the_path(path: str, kwargs: Any, recorded: str) -> None:
    assert redactor.path(path, kwargs) == recorded


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        (f"image/{SECRET}", "unknown type"),
        (SECRET, "unknown type"),
        (f"image/png {SECRET}", "unknown type"),
        ("image/" + "a." * 40, "unknown type"),
        ("image/png", "image/png"),
        ("Application/Octet-Stream; x=y", "application/octet-stream"),
        ("application/vnd.ms-excel.v2", "application/vnd.ms-excel.v2"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
    ],
)
def test_summaries_show_a_type_that_looks_like_one(content_type: str, shown: str) -> None:
    body = redactor.body(b"abc", content_type)
    assert body.text == f"[not text: {shown}, 3 bytes]"


@pytest.mark.parametrize(
    "charset", ["cp037", "cp500", "utf-7", "hz", "iso2022_jp", "utf-16", "utf-32", "rot13"]
)
def test_charsets_that_would_hide_a_secret(charset: str) -> None:
    raw = f"password={SECRET}".ljust(40).encode()
    for content_type in (FORM, "text/plain"):
        body = redactor.body(raw, f"{content_type}; charset={charset}")
        assert body.state == "omitted_parse", body


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "windows-1252", "shift_jis", "gb18030"])
def test_charsets_that_are_read(charset: str) -> None:
    raw = f"hello, password={SECRET}".encode(charset)
    body = redactor.body(raw, f"text/plain; charset={charset}")
    assert (body.text, body.state) == (f"hello, password={MASK}", "redacted")


def test_hostile_references_are_no_error() -> None:
    assert redactor.text(f"&#{'9' * 100_000}; &quot;password&quot;: {SECRET}").endswith(MASK)


@pytest.mark.parametrize(
    "text",
    [
        "a69fc4111111111111111b60aae928",
        "9576eeb5008394111111111111111",
        "4111111111111111e82c205b99",
    ],
)
def test_an_id_that_happens_to_hold_a_card_number_stays(text: str) -> None:
    assert Redactor().text(text) == text
