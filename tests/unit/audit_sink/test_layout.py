"""Partition values that every engine reads alike."""

from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_sink.lake.layout import MAX_SLUG, endpoint_slug, event_path, range_stem, slug

#: Slugs must not change: files that were written stay where they are.
PINNED = {
    "inventory-api": "inventory-api",
    "Inventory API": "Inventory-API--c419b593",
    "007": "v-007--629f4cf9",
    "": "v--e3b0c442",
    "日本": "v--cf2abf0c",
}

SAFE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")


@given(st.text(max_size=200))
def test_any_value_becomes_a_slug(value: str) -> None:
    found = slug(value)
    assert SAFE.match(found)
    assert len(found) <= MAX_SLUG
    assert not found.endswith(".")
    assert found == slug(value)


#: Letters of which values that differ by little are made.
NASTY = st.text(alphabet="aAiIıİſsSßkK.-_=/%\\ \x00\n0é", max_size=8)


@given(st.one_of(st.tuples(st.text(max_size=30), st.text(max_size=30)), st.tuples(NASTY, NASTY)))
def test_two_values_have_two_slugs_on_every_disk(pair: tuple[str, str]) -> None:
    one, other = pair
    # As a disk sees them that does not tell capitals apart.
    assert (slug(one).casefold() == slug(other).casefold()) == (one == other)


@given(st.text(min_size=1, max_size=30))
def test_capitals_make_another_slug(value: str) -> None:
    variants = {value, value.lower(), value.upper(), value.swapcase(), value.title()}
    assert len({slug(one).casefold() for one in variants}) == len(variants)


@given(st.text(max_size=30))
def test_a_slug_of_a_slug_is_another_value(value: str) -> None:
    # Else a service named like another's slug would share its folder.
    found = slug(value)
    assert found == value or slug(found) != found


def test_slugs_are_the_same_for_ever() -> None:
    assert {value: slug(value) for value in PINNED} == PINNED


@pytest.mark.parametrize("value", ["inventory-api", "iac", "dsd.v2", "a", "a" * MAX_SLUG, "x_1"])
def test_a_plain_value_stays_as_it_is(value: str) -> None:
    assert slug(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *("", "007", "null", "NULL", "true", "False", "NaN", "inf", "2024-01-01", "1e3"),
        *("..", ".", "-", "a/b", "a=b", "é", "日本", "a b", "a*", "_x", "a" * (MAX_SLUG + 1)),
        *(
            "\x00",
            "\ud800",
            "\n",
            "a\n",
            "a ",
            "a.",
            ".a",
            "\u202eabc",
            "🚀",
            "%2F",
            "\\",
            "'",
            '"',
        ),
        # A date for one engine or another.
        *("epoch", "now", "today", "tomorrow", "yesterday", "Infinity"),
        # A folder of another on a disk that does not tell capitals apart.
        *("A", "Iac", "inventory-API"),
    ],
)
def test_a_value_that_some_engine_reads_otherwise_is_altered(value: str) -> None:
    found = slug(value)
    assert found != value
    assert SAFE.match(found)
    assert re.search(r"--[0-9a-f]{8}\Z", found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iac/v1/inventory", "iac"),
        ("/iac/v1/inventory", "iac"),
        ("dsd/v1/shipments/<id>", "dsd"),
        ("unmatched", "unmatched"),
    ],
)
def test_an_endpoint_is_its_first_segment(name: str, expected: str) -> None:
    assert endpoint_slug(name) == expected


def test_the_path_of_a_file() -> None:
    stem = range_stem("api-audit-events", "primary", 3, 100, 250)
    assert event_path("inventory-api", date(2026, 1, 2), "iac", stem) == (
        "events/service=inventory-api/date=2026-01-02/endpoint=iac/"
        "api-audit-events-primary-3-100-250.parquet"
    )
