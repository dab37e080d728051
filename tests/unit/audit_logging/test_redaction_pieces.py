"""Long texts are looked through in pieces, and nothing shows where they were cut."""

from __future__ import annotations

import json
from unittest import mock
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit_logging import pieces
from audit_logging.redaction import Redactor

from .test_redaction_fast import EXTRA, texts

redactor = Redactor(EXTRA, 1 << 20)


@settings(max_examples=400, deadline=None)
@given(st.lists(texts, max_size=6).map("".join), st.sampled_from([1, 3, 8, 20]))
@example('name: a,\n value: b, "password", ("password", "hush") name=pin value=hush', 3)
@example("x, password:\n\n\n  hush, ok", 8)
@example("x\ntoken ->\n hush", 8)
@example("a %C3%A9 password%3Dhush &quot;pin&quot;: 1234", 1)
@example("bearer\nXk9vTq7ZpL, https://bob:hu,sh@host", 3)
@example("<b>password</b>: <i>hush</i>", 3)
@example('curl x -u "bob:hush", mysql -h a -phush; ["--password", "hush"]', 3)
@example('x "field": "pin", "old": "1", "new": "hush" and "label":"pin", "answer":"hush"', 8)
def test_where_a_text_is_cut_changes_nothing(text: str, size: int) -> None:
    with mock.patch.object(pieces, "PIECE", 1 << 30):
        whole = redactor.text(text)
    with mock.patch.object(pieces, "PIECE", size):
        assert redactor.text(text) == whole


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n,;", max_size=80), st.sampled_from([1, 2, 8]))
def test_pieces_are_the_text(text: str, size: int) -> None:
    with mock.patch.object(pieces, "PIECE", size):
        found = list(pieces.cuts(text, "\n,"))
        assert "".join(text[start:end] for start, end in found) == text
        assert all(text[start] in "\n," for start, _ in found[1:])
        assert all(start < end for start, end in found) or not text


LINE = "2026-11-23 10:11:12 INFO a line with a key: value, 12.50 and a name=x\n"
DOCUMENT = json.dumps([{"item": "Widget: blue", "price": 12.5, "gtin": "00012345678905"}] * 800)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (DOCUMENT, "application/json"),
        (DOCUMENT[:-1] + ', {"password": "hush"}]', "application/json"),
        ("\n".join([json.dumps({"a": "b: c"})] * 1500), "application/x-ndjson"),
        (LINE * 1000, "text/plain"),
        ("<tr><td>Item</td><td>Widget: 12 &amp; more</td></tr>" * 1000, "text/html"),
        (urlencode([(f"item{n}", "Widget & more") for n in range(3000)]),
         "application/x-www-form-urlencoded"),
        ("data: {}\n\n" * 3000, "text/event-stream"),
    ],
)  # fmt: skip
def test_long_work_can_be_paused_all_along(body: str, content_type: str) -> None:
    pauses = []
    Redactor((), 1 << 20, lambda: pauses.append(1)).body(body.encode(), content_type)
    assert len(pauses) >= 10
