"""The quick look never passes over what the thorough one would mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit_logging import documents, masking, redaction
from audit_logging.content import Body
from audit_logging.names import names_of
from audit_logging.quiet import is_quiet, is_quiet_query, loud
from audit_logging.redaction import Redactor

EXTRA = ("loyalty-id", "x5t", "https")

NAMES = [
    "password", "userPIN", "pin", "pin1", "PAN", "api_key", "api-key", "X-Auth-Token", "id.token",
    "loyalty id", "loyaltyId", "x5t", "ｐａｓｓ", "contraseña", "sid", "name", "value", "note",
    "shipping", "company", "notpin", "ltpin", "copyotp", "max_tokens", "https", "time", "a",
    "p\u0430ss", "p\u200bin", "/user/password", "--password", "-p", "mysql", "curl", "-u",
]  # fmt: skip
CREDENTIALS = [
    "eyJhbGciOiJIUzI1NiJ9.abc.def", "Bearer Xk9vTq7ZpL", "bearer\tXk9vTq7ZpL", "baſic dTpwYXNz",
    "toKen Xk9vTq7ZpL", "TOKEN Xk9vTq7ZpL", "ApiKey Xk9vTq7ZpL", "apı-key Xk9vTq7ZpL",
    "Basic dTpwYXNz", "NTLM TlRMTVNTUAAB", "Negotiate YIIZKQYGKwYBBQUC", "Digest username=x",
    "Bearer\u2003Xk9vTq7ZpL", "Bearer\x1fXk9vTq7ZpL",
    "-----BEGIN PRIVATE KEY-----\nabc", "-----BEGIN A-----x-----END A-----",
    "https://bob:hush@host/x", "://u:p@", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghij0123456789", "ghu_abcdefghij0123456789", "github_pat_abcdefghij0123456789",
    "glpat-abcdefghij0123456789", "sk_live_abcdefghij", "rk_test_abcdefghij", "pk_live_abcdefghij",
    "xoxb-1234567890-abc", "AIzaabcdefghij0123456789abcdefghij", "sk-abcdefghij0123456789abc",
    "npm_abcdefghij0123456789abcdefghij", "4111111111111111", "4111 1111 1111 1111",
    "4111-1111-1111-1111", "3782 822463 10005", "4111\u00a01111\u00a01111\u00a01111",
    "4111\u20131111\u20131111\u20131111", "4111/1111/1111/1111", "4222222222222",
    "4111 - 1111 - 1111 - 1111", "12 4111111111111111 27", "x4111111111111111",
]  # fmt: skip
GLUE = [
    "", " ", ":", "=", ": ", " = ", ":=", "=>", "->", " -> ", "--", " --", "&", "?", ",", ", ",
    "(", "[", "{", "}", "]", ")", "<", ">", "</td><td>", "<b>", "\\", "'", '"', '\\"', "\n", "\t",
    "\r\n", "\0", "&quot;", "&#58;", "&colon;", "&equals;", "%3D", "%3a", "%", "\\u003d", "+", "/",
    " -p", " -u ", "mysql ", "curl ", "redis-cli -a ", "\u200b", "\ufeff",
    "T", "Z", ".", ";", "|", "@", "://", "('", "', '", "é", "\u0130", "\ud800",
]  # fmt: skip
PLAIN = [
    "2026-11-23T10:11:12.123Z", "2026-11-23 10:11", "https://example.com/a/b?", "http://x/", "12",
    "550e8400-e29b-41d4-a716-446655440000", "hunter2", "Xk9vTq7ZpL", "00012345678905", "x", "100",
    "AT", "T", "Deliver before noon", "1704989259133687000", "PO-2024-000012345678", "[1]", "[[",
    "-phunter2", "bob:hunter2",
]  # fmt: skip

texts = st.lists(
    st.one_of(
        st.sampled_from(NAMES),
        st.sampled_from(GLUE),
        st.sampled_from(GLUE),
        st.sampled_from(PLAIN),
        st.sampled_from(CREDENTIALS),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)

keys = st.one_of(st.sampled_from(NAMES), texts)
BESIDE = [
    "name", "Key", "field", "label", "question", "id", "type", "path", "from", "op", "attribute",
]  # fmt: skip
TOLD = [
    "value", "Value", "content", "text", "answer", "from", "to", "before", "after", "new",
    "new_value", "oldValue", "stringValue",
]  # fmt: skip


def beside(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects and lists that name their values."""
    telling = st.dictionaries(st.sampled_from(BESIDE), st.sampled_from(NAMES), max_size=3)
    told = st.dictionaries(st.sampled_from(TOLD), children, min_size=1, max_size=3)
    operation = st.builds(
        lambda before, name, value: {"query": f"{before}{name}: $p", "variables": {"p": value}},
        st.sampled_from(GLUE), st.sampled_from(NAMES), children,
    )  # fmt: skip
    words = st.sampled_from(NAMES) | st.sampled_from(PLAIN) | children
    objects = st.builds(lambda names, values: names | values, telling, told)
    return st.one_of(objects, operation, st.lists(words, max_size=5))


tree = st.recursive(
    st.one_of(
        texts,
        st.sampled_from(NAMES),
        st.sampled_from(CREDENTIALS),
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from([4111111111111111, 4111111111111111.0, -4111111111111111, 1e300]),
    ),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(keys, children, max_size=4)
        | beside(children)
    ),
    max_leaves=12,
)

redactor = Redactor(EXTRA, 1 << 20)
names = names_of(EXTRA)
usual = names_of(())


def read(body: Body) -> Any:
    """A body whose JSON is compared by what it says: 1e16 may be written 1e+16."""
    if body.state != "redacted" or not body.text:
        return body
    return json.loads(body.text), body.state


@contextmanager
def thorough() -> Iterator[None]:
    """Every text and document is looked through by every pattern."""
    with (
        mock.patch.object(masking, "is_quiet", return_value=False),
        mock.patch.object(masking, "may_hold_credential", return_value=True),
        mock.patch.object(masking, "may_hold_scheme", return_value=True),
        mock.patch.object(masking, "may_hold_vendor_key", return_value=True),
        mock.patch.object(documents, "loud", lambda texts, _: texts),
        mock.patch.object(documents.Documents, "_colons_of_clean", return_value=None),
        mock.patch.object(documents, "_quick_decode", None),
        mock.patch.object(documents, "_quick_encode", None),
        mock.patch.object(redaction, "is_quiet_query", return_value=False),
    ):
        yield


@pytest.mark.parametrize("each", [Redactor(EXTRA), Redactor()])
@settings(max_examples=400, deadline=None)
@given(text=texts)
@example(text="https://x/?a=1&notpin=hush")
@example(text="a=1&notpin=hush")
@example(text="/x?--token+hush")
def test_texts(each: Redactor, text: str) -> None:
    quick = each.text(text), each.query(text), each.path(text)
    with thorough():
        assert quick == (each.text(text), each.query(text), each.path(text))


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, max_size=6))
def test_several_texts_at_once(several: list[str]) -> None:
    for which in (names, usual):
        found = loud(several, which)
        for text in several:
            if not is_quiet(text, which):
                assert text in found


@pytest.mark.parametrize("each", [Redactor(EXTRA), Redactor()])
@settings(max_examples=200, deadline=None)
@given(document=tree, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
@example(document={"a": "\u06634111111111111111"}, ascii_only=True, indent=None)
@example(document={"a": "4111111111111111\u0663\u0663"}, ascii_only=True, indent=None)
@example(document={"columns": [{"name": "pin"}], "row": [1234]}, ascii_only=True, indent=None)
@example(
    document={"schema": {"fields": [{"name": "pin"}]}, "values": [1234], "password": "x"},
    ascii_only=True,
    indent=None,
)
def test_documents(each: Redactor, document: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    raw = text.encode("utf-8", "replace")
    quick = each.body(raw, "application/json")
    with thorough():
        slow = each.body(raw, "application/json")
    assert read(quick) == read(slow)


#: Documents of which nothing needs a closer look but, often, what a telling key stands above.
orders = st.recursive(
    st.sampled_from(["12", "AT", "hunter2", "No sugar", "2026-11-23T10:11:12.123Z", 7, 1.5, None]),
    lambda children: (
        st.lists(st.dictionaries(st.sampled_from(["line", "item", "pin"]), children), max_size=3)
        | st.dictionaries(
            st.sampled_from(["store", "note", "password", "api_key", "X-Auth-Token", "tokens"]),
            children | st.sampled_from(["Bearer Xk9vTq7ZpL", "a: b", 4111111111111111, "", True]),
            max_size=4,
        )
        | st.dictionaries(st.sampled_from(["name", "value", "password", "columns"]), children)
        | st.fixed_dictionaries(
            {
                "fields": st.lists(st.fixed_dictionaries({"name": st.sampled_from(NAMES)})),
                "row": st.lists(children, max_size=3),
            }
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("each", [Redactor(EXTRA), Redactor(), Redactor(("query",))])
@settings(max_examples=300, deadline=None)
@given(document=orders, twice=st.booleans())
@example(document={"tokens": ["password"], "data": ["hunter2"]}, twice=False)
@example(document={"password": {"a": "hunter2"}, "store": 1}, twice=True)
@example(
    document={"query": "mutation L($p: String) { f(pin: $p) }", "variables": {"p": "hush"}},
    twice=False,
)
def test_documents_with_secrets_under_their_own_keys(
    each: Redactor, document: Any, twice: bool
) -> None:
    text = json.dumps(document)
    if twice and text.startswith("{"):
        # The first of the two is lost to a parser, and stays in the text.
        text = '{"store": "Bearer Xk9vTq7ZpL", "password": "hush", ' + text[1:]
        text = text.replace(", }", "}")
    quick = each.body(text.encode(), "application/json")
    with thorough():
        slow = each.body(text.encode(), "application/json")
    assert read(quick) == read(slow)


@settings(max_examples=300, deadline=None)
@given(
    tree.map(json.dumps)
    | st.text(alphabet='{}[]",:\\u0d8 \t1-eE.+nNaItrufls', max_size=12)
    | st.integers().map(str)
)
@example("1e400")
@example('{"a": NaN, "b": -Infinity}')
@example('"\\ud800"')
@example("[" * 2000 + "]" * 2000)
@example("1" * 5000)
@example('{"a": 1, "a": 2}')
def test_both_parsers_read_the_same(text: str) -> None:
    def parsed() -> Any:
        try:
            return documents._parse(text)
        except (ValueError, RecursionError):
            return ValueError

    assert documents._quick_decode is not None, "install msgspec"
    quick = parsed()
    with mock.patch.object(documents, "_quick_decode", None):
        assert repr(quick) == repr(parsed())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(keys, st.sampled_from(BESIDE), st.sampled_from(TOLD)), keys), max_size=4
    )
)
def test_queries(pairs: list[tuple[str, str]]) -> None:
    for write in (str, lambda text: quote_plus(text, errors="replace")):
        query = "&".join(f"{write(key)}={write(value)}" for key, value in pairs)
        quick = redactor.query(query)
        with thorough():
            assert quick == redactor.query(query)


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_each_kind_of_credential_is_seen_at_once(credential: str) -> None:
    for text in (credential, f"see {credential}", f"see\n{credential}!", credential + " é"):
        assert not is_quiet(text, usual)
        assert loud(["a", text, "b"], usual) == [text]
        with thorough():
            assert redactor.text(text) != text


@pytest.mark.parametrize(
    "text",
    [
        "", "OK", "SHIPPED", "Deliver before noon; call ahead", "2026-11-23T10:11:12.123456Z",
        "2026-11-23 10:11:12+01:00", "https://api.example.com/v1/orders/12?page=2&sort=asc",
        "AT&T, 20% off", "00012345678905", "Zoë Müller", "ops@acme.example", "PO-2024-000012345678",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)",
        "text/html,application/xhtml+xml", "1704989259133687000",
    ],
)  # fmt: skip
def test_usual_texts_are_quiet(text: str) -> None:
    assert is_quiet(text, usual)
    assert loud([text], usual) == []


def test_usual_queries_are_quiet() -> None:
    assert is_quiet_query("page=2&sort=-created&ids=1,2,3&type=x", usual)
    assert is_quiet_query("from=2026-01-01&to=2026-02-01", usual)
    assert not is_quiet_query("page=2&token=x", usual)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"pin": 1}, "a": 2}',
        '{"a" : {"pin": 1}, "a": 2}',
        '{"a":{"pin":1},"a":":"}',
        '{"b": "\\u003a", "a": {"pin": 1}, "a": 2}',
        '{"b": "\\u003A", "a":{"pin":1},"a":2}',
    ],
)
def test_a_key_given_twice_is_noticed_however_it_is_written(text: str) -> None:
    body = redactor.body(text.encode(), "application/json")
    assert body.state == "redacted"
    assert "pin" not in str(body.text)


def test_what_is_remembered_is_bounded_and_looks_like_names() -> None:
    fresh = names_of(("only-here",))
    for number in range(9000):
        fresh.is_plain("".join(chr(97 + int(digit)) for digit in str(number)))
        fresh.is_plain_parameter("p" + "".join(chr(97 + int(digit)) for digit in str(number)))
        fresh.remember_quiet(f"agent/{number}")
    for kept in (fresh.plain, fresh.plain_parameters, fresh.quiet):
        assert 0 < len(kept) <= 4096
    fresh.remember_quiet("x" * 1000)
    assert "x" * 1000 not in fresh.quiet
    assert not fresh.is_plain("4111111111111111")
    assert not fresh.is_plain("value")
    assert not fresh.is_plain("a key with blanks")
