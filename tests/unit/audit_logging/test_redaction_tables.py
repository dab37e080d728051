"""Secrets whose names stand elsewhere: at the head of a column, in a list, in prose, in a part."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_logging.redaction import MASK, Redactor

from .test_redaction import KEYS, SECRET, redactor

JSON = "application/json"

#: Names that stand in headings: what holds an absurd name is hidden by other means.
HEADINGS = [key for key in KEYS if len(key) < 60]


def of(document: Any) -> str:
    return str(redactor.body(json.dumps(document).encode(), JSON).text)


@pytest.mark.parametrize(
    "document",
    [
        {"columns": ["user", "password"], "rows": [["bob", SECRET], ["ann", None]]},
        {"data": [["bob", SECRET]], "columns": ["user", "password"]},
        {"columns": [{"name": "user"}, {"name": "password", "type": "text"}],
         "rows": [["bob", SECRET]]},
        {"schema": {"fields": ["user", "password"]}, "rows": [["bob", SECRET]]},
        {"schema": {"fields": [{"name": "password"}]}, "rows": [[SECRET]]},
        {"names": ["user", "password"], "values": ["bob", SECRET]},
        [["user", "password"], ["bob", SECRET], ["ann", SECRET]],
        {"table": [["user", "password"], ["bob", SECRET]]},
        ["Authorization", SECRET, "Accept", "text/html"],
        ["Accept", "text/html", "X-Api-Key", SECRET],
        {"rawHeaders": ["Host", "x", "Cookie", SECRET]},
        [["password", SECRET]],
    ],
)  # fmt: skip
def test_tables_and_lists_of_pairs_in_json(document: Any) -> None:
    for written in (of(document), of({"deep": [{"payload": json.dumps(document)}]})):
        assert SECRET not in written
        assert MASK in written


@pytest.mark.parametrize(
    "document",
    [
        {"columns": ["user", "pin"], "rows": [[1, 918273]]},
        {"columns": [{"name": "pin"}], "rows": [[918273], [918273]]},
        [["user", "pin"], [1, 918273]],
        ["pin", 918273],
    ],
)
def test_numbers_in_such_columns(document: Any) -> None:
    assert "918273" not in of(document)


@pytest.mark.parametrize(
    "document",
    [
        {"missing": ["user", "password"]},
        {"required": ["email", "password", "name"]},
        {"columns": ["user", "item"], "rows": [["bob", "tokenizer"]]},
        {"coordinates": [[[-93.1, 41.2], [-93.2, 41.3]]], "name": "x"},
        [["a", "b"], ["c", "d"]],
    ],
)
def test_lists_of_other_things_stay(document: Any) -> None:
    assert of(document) == json.dumps(document)


cells = st.text("ab,;\t\"'\n 12|é", max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from(HEADINGS),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([",", ";", "\t", "|"]),
    st.data(),
)
def test_no_secret_in_a_column_that_says_so(
    rows: list[list[str]], place: int, heading: str, end: str, separator: str, data: st.DataObject
) -> None:
    headings = ["user", "item", "price"]
    headings.insert(place, heading)
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, lineterminator=end)
    writer.writerow(headings)
    for row in rows:
        planted = data.draw(st.sampled_from([SECRET, f"a {SECRET}", f'"{SECRET}"', f"x\n{SECRET}"]))
        writer.writerow([*row[:place], planted, *row[place:]])
    text = written.getvalue()
    body = redactor.body(text.encode(), "text/csv; header=present")
    assert SECRET not in str(body.text)
    assert str(body.text).startswith(headings[0])


def test_a_table_that_is_not_said_to_be_one() -> None:
    text = f"user,password\nbob,{SECRET}\nann,{SECRET}\n"
    for recorded in (
        redactor.text(text),
        str(redactor.body(text.encode(), "text/plain").text),
        of({"file": text}),
        of({"file": f"\n{text}"}),
    ):
        assert SECRET not in recorded
        assert "bob" in recorded
    prose = "Dear Bob, your password, changed\nplease call\nand tell us\n"
    assert redactor.text(prose) == prose


def test_the_other_columns_and_empty_cells_stay_as_they_were() -> None:
    text = 'user,pin,note\r\nbob,1234,"a, b"\r\nann,,\r\n'
    body = redactor.body(text.encode(), "text/csv")
    assert body.text == f'user,pin,note\r\nbob,{MASK},"a, b"\r\nann,,\r\n'
    harmless = 'user,item\n"bob",  1\n'
    assert redactor.body(harmless.encode(), "text/csv").text == harmless


def test_a_table_that_cannot_be_read_is_left_out() -> None:
    text = f"user,pin\nbob,{'9' * 200_000}\nann,{SECRET}\n"
    body = Redactor((), 1 << 20).body(text.encode(), "text/csv")
    assert body.text == f"user,pin\n{MASK}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password is hunter2", f"password is {MASK}"),
        ("Login failed: the password was hunter", f"the password was {MASK}"),
        ("your API key is abc-def", f"key is {MASK}"),
        ('the "pin" is 1234, ok', f"is {MASK} ok"),
        ("password is now hunter", f"now {MASK}"),
        ("password is invalid-1", f"is {MASK}"),
        ("password is open.sesame", f"is {MASK}"),
        ("The password is required.", "The password is required."),
        ("Your session is closed, the token was revoked", "closed, the token was revoked"),
        ("This field is required.", "This field is required."),
    ],
)
def test_what_is_said_of_a_secret(text: str, shown: str) -> None:
    assert shown in redactor.text(text)
    assert shown.replace('"', '\\"') in of({"detail": text})


@pytest.mark.parametrize(
    "text",
    [
        f'a:2:{{s:4:"user";s:3:"bob";s:8:"password";s:14:"{SECRET}";}}',
        f'a:1:{{s:8:"password";a:1:{{i:0;s:14:"{SECRET}";}}}}',
        f'O:1:"U":1:{{s:8:\\"password\\";s:14:\\"{SECRET}\\";}}',
        f'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\n{SECRET}\r\n--b--',
        f'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\na\r\n{SECRET}\r\n--b--',
        "--b\r\ncontent-disposition: form-data; name=user[password]; filename=x\r\n"
        f"Content-Type: text/plain\r\n\r\n{SECRET}\r\n--b--",
        f'--b\\r\\nContent-Disposition: form-data; name=\\"pin\\"\\r\\n\\r\\n{SECRET}\\r\\n--b',
        f'--b\nContent-Disposition: form-data; name="token"\n\n{SECRET}',
    ],
)
def test_what_other_programs_write(text: str) -> None:
    for recorded in (
        redactor.text(text),
        of({"raw": text}),
        str(redactor.body(text.encode(), "text/plain").text),
    ):
        assert SECRET not in recorded
