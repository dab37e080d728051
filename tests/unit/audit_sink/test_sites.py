"""Every record has exactly one owner, whatever its headers hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_sink.ingest.sites import SiteFilter
from audit_sink.models import UNROUTABLE

from .conftest import SITES


@dataclass
class Country:
    code: str
    site_id: str
    takes_unlabelled: bool = False


ALL = [Country(code, site_id, code == "US") for code, site_id in SITES.items()]
FILTER = SiteFilter(ALL)

names = st.sampled_from(
    ["wm-site-id", "WM-Site-Id", "wm_site_id", "WM.SITE.ID", "wm-site", "x", "", "wm-site-id "]
) | st.text(max_size=12)
values = (
    st.sampled_from([site.encode() for site in SITES.values()] + [b"", b"  ", b"0", b"\xff\xfe"])
    | st.binary(max_size=24)
    | st.none()
)
odd = st.one_of(st.none(), st.binary(max_size=5), st.integers(), st.text(max_size=5))


@given(st.lists(st.tuples(st.one_of(names, odd), st.one_of(values, odd)), max_size=5))
def test_nothing_in_a_header_raises(headers: list[tuple[Any, Any]]) -> None:
    assert FILTER.owner(headers) in {*SITES, UNROUTABLE}


@pytest.mark.parametrize("name", ["wm-site-id", "WM-Site-Id", "wm_site_id", "Wm_Site-ID"])
@pytest.mark.parametrize("code", SITES)
def test_the_name_matches_in_any_spelling(name: str, code: str) -> None:
    assert FILTER.owner([("other", b"1"), (name, SITES[code].encode())]) == code


@pytest.mark.parametrize("headers", [[], [("wm-site-id", None)], [("wm-site-id", b" ")]])
def test_without_a_site_it_is_the_us(headers: list) -> None:
    assert FILTER.owner(headers) == "US"


@pytest.mark.parametrize(
    "value", [b"0", b"us", b"US", b"\xff\xfe\x00", SITES["CA"].encode()[:-1], b"1" * 10_000]
)
def test_an_unknown_or_undecodable_site_is_unroutable(value: bytes) -> None:
    assert FILTER.owner([("wm-site-id", value)]) == UNROUTABLE


def test_the_value_matches_exactly_but_for_white_space() -> None:
    assert FILTER.owner([("wm-site-id", b" " + SITES["MX"].encode() + b"\r\n")]) == "MX"


def test_two_different_sites_are_no_guess() -> None:
    us, ca = (SITES[code].encode() for code in ("US", "CA"))
    assert FILTER.owner([("wm-site-id", us), ("WM_SITE_ID", ca)]) == UNROUTABLE
    assert FILTER.owner([("wm-site-id", ca), ("WM_SITE_ID", ca)]) == "CA"


def test_without_a_site_for_them_unlabelled_records_are_unroutable() -> None:
    assert SiteFilter(ALL[1:]).owner([]) == UNROUTABLE
