"""Redaction takes linear time on any text: it holds the lock that the service's requests need."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from urllib.parse import urlencode

import pytest

from audit_logging.redaction import Redactor

pytestmark = pytest.mark.slow

redactor = Redactor(max_body_bytes=1 << 21)

LONG = 512 * 1024
#: One of each kind that some pattern tells from the others.
RUNS = [
    " ", "\t", "\n", "\r", "\x0b", "\u2028", "\\", '"', "'", "a", "A", "é", "\u0301\u0316",
    "\ufdfa", "\ufeff", "1", "4", ".", "-", "_", "<", ">", "&", "=", ":", ";", ",", "{", "}",
    "[", "]", "(", ")", "/", "@", "%", "+", "\x1e",
]  # fmt: skip
#: What patterns begin with, and what they then look for in vain.
WORDS = [
    "", "x", "password", "password:", 'password: "', "password=", "password: {", '"password": [',
    "data:", "eyJ", "eyJ.", "-----BEGIN ", "-----BEGIN A-----", "bearer ", "Authorization: ",
    "<token", "<token>", "<!--", "<input name=token value=", "</token", "&quot;", "&#", "://",
    "://a:", "Key (token)=(", "card", "4111", "x{", "<td>password</td><td>", "<td>a</td><td> ",
    "name: token, value: ", "name: a value: ", "('token', ", "('a', ", "--token ", "--a ", "Token ",
    "digest a=", "token='", "token=''", "token=X('", "token: |\n a", "cookie: a\n a",
    "</a>token: <b>", "<a id=token>",
    'form-data; name="token"', 'form-data; name="token"\n\n', "form-data;", "password is ", "a is ",
    's:5:"token";s:9:', "a,token\n", "a,token\nb,", 'a,token\n"', "\\uff50", "a+b+c=", "1,2\n",
    "mysql ", "mysql -p", " -p", "curl ", "curl -u ", "pin:$", "-u", "redis-cli -a ",
    '"--token", ', '"-a", ', '"name":"token","text":', '"field":"a","old":"b","new":',
    '"name":"a",', "token\u200b", "a b c d", "gh", "ghp_", "sk-", "&#1", "&am", "%4", "\\u0070",
    "4 ", "41/", "4   ", "docker login ",
]  # fmt: skip

Sink = Callable[[str], object]


def body(content_type: str, form: str = "{}") -> Sink:
    return lambda text: redactor.body(form.replace("{}", text).encode(), content_type)


SINKS: dict[str, Sink] = {
    "text": body("text/plain"),
    "html": body("text/html"),
    "xml": body("application/xml"),
    "csv": body("text/csv"),
    "ndjson": body("application/x-ndjson"),
    "event stream": body("text/event-stream", "data: {}"),
    "form name": body("application/x-www-form-urlencoded", "{}=x"),
    "form value": body("application/x-www-form-urlencoded", "x={}"),
    "json string": lambda text: redactor.body(json.dumps({"x": text}).encode(), "text/json"),
    "json key": lambda text: redactor.body(
        json.dumps({text: "x"}, ensure_ascii=False).encode(), "text/json"
    ),
    "json in json": lambda text: redactor.body(
        json.dumps({"x": json.dumps({text: text})}).encode(), "text/json"
    ),
    "query": redactor.query,
    "path": redactor.path,
    "any text": redactor.text,
}


def stalls(sink: Sink, make: Callable[[int], str], longest: int) -> str:
    """The first length whose work is out of proportion, or "".

    Lengths grow step by step, so that what is not linear shows before it takes minutes.
    """
    length = 4096
    while length <= longest:
        allowed = 0.1 + 6.0 * length / LONG
        text = make(length)
        # Several times, where once was long: a neighbour on the same core doubles a thread's time.
        took = allowed + 1
        for _ in range(4):
            started = time.thread_time()
            sink(text)
            took = min(took, time.thread_time() - started)
            if took <= allowed:
                break
        else:
            return f"{length} characters took {took:.1f} s"
        length = length * 8 if length * 8 <= longest else max(longest, length + 1)
    return ""


def run_of(unit: str, before: str = "", after: str = "") -> Callable[[int], str]:
    return lambda length: before + unit * (length // len(unit)) + after


@pytest.mark.parametrize("where", SINKS)
def test_long_runs(where: str) -> None:
    longest = LONG if where in ("text", "json key") else LONG // 8
    for unit in RUNS:
        assert not stalls(SINKS[where], run_of(unit), longest), repr(unit)


@pytest.mark.parametrize("where", ["text", "json string", "form value"])
def test_repeated_beginnings(where: str) -> None:
    for unit in filter(None, WORDS):
        assert not stalls(SINKS[where], run_of(unit), LONG // 4), repr(unit)


@pytest.mark.parametrize("where", ["text", "json string", "form name"])
def test_runs_after_what_a_pattern_begins_with(where: str) -> None:
    for before, unit, after in itertools.product(WORDS, RUNS, ("", "x{")):
        problem = stalls(SINKS[where], run_of(unit, before, after), 4096)
        assert not problem, (before, unit, after, problem)


@pytest.mark.parametrize("where", ["text", "json key"])
def test_pairs_of_characters_and_repeated_beginnings(where: str) -> None:
    units = [one + other for one, other in itertools.permutations(RUNS, 2)]
    units += [word + run for word in WORDS for run in ["", *RUNS] if word]
    for unit in units:
        problem = stalls(SINKS[where], run_of(unit), 4096)
        assert not problem, (unit, problem)


@pytest.mark.parametrize(
    "make",
    [
        lambda length: " " * length + "x{",
        lambda length: "data:" + " \ufeff" * (length // 2) + "x[",
        lambda length: 'password: "' + "\\" * length,
        lambda length: 'x{ password: "' + "\\" * length,
        lambda length: json.dumps({"\u0301\u0316" * (length // 2): 1}, ensure_ascii=False),
        lambda length: "\u0301\u0316" * (length // 2) + "=x",
        lambda length: "x" + "\u0301\u0316" * (length // 2) + ": x",
    ],
)
def test_shapes_that_took_minutes(make: Callable[[int], str]) -> None:
    for where in ("text", "json string", "json key", "form name", "form value", "query"):
        assert not stalls(SINKS[where], make, LONG), where


@pytest.mark.parametrize(
    ("content_type", "write"),
    [
        ("text/json", lambda pairs: json.dumps(dict(pairs))),
        ("application/x-www-form-urlencoded", urlencode),
    ],
)
def test_many_names_beside_many_values(
    content_type: str, write: Callable[[list[tuple[str, str]]], str]
) -> None:
    def spellings(word: str, most: int) -> list[str]:
        marks = (f"{number:014b}".translate({48: "-", 49: "_"}) for number in range(most))
        return [row[:7] + word[:2] + row[7:] + word[2:] for row in marks]

    def names_and_values(length: int) -> list[tuple[str, str]]:
        most = length // 60
        names = [(name, "password") for name in spellings("name", most)]
        return names + [(value, "hush") for value in spellings("value", most)]

    sink = body(content_type)
    assert not stalls(sink, lambda length: write(names_and_values(length)), LONG // 2)
