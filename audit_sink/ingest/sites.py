"""Whose record is it: the header filter, over bytes of unknown quality.

Every record has exactly one owner: the one site whose id the header ``wm-site-id`` names; without
the header, the one site that takes unlabelled records; else the ``unroutable`` sink, which
dead-letters it. Nothing in a header makes this raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from audit_publisher.names import header_key

from ..models import UNROUTABLE

HEADER = "wm-site-id"


class SiteLike(Protocol):
    """What the filter needs of a site."""

    code: str
    site_id: str
    takes_unlabelled: bool


class SiteFilter:
    """Knows the owner of every record.

    :param sites: all sites there are, paused ones too: their records wait for them.
    """

    def __init__(self, sites: Iterable[SiteLike]) -> None:
        self._owners: dict[bytes, str] = {}
        self._unlabelled = UNROUTABLE
        for site in sites:
            self._owners[site.site_id.strip().encode()] = site.code
            if site.takes_unlabelled:
                self._unlabelled = site.code

    def owner(self, headers: Sequence[tuple[Any, Any]]) -> str:
        """Return the code of the site that owns a record with these headers, or UNROUTABLE."""
        label: bytes | None = None
        for name, value in headers:
            # This runs for each header of each record, for each site: hence no calls here.
            try:
                if not _SPELLINGS[name]:
                    continue
            except (KeyError, TypeError):
                if not _is_site_header(name):
                    continue
            # A header without a value says no more than no header.
            value = _clean(value)
            if value:
                if label is not None and value != label:
                    # Two different sites: guessing would show one country's data to another.
                    return UNROUTABLE
                label = value
        if label is None:
            return self._unlabelled
        return self._owners.get(label, UNROUTABLE)


def _clean(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    # A foreign client may give anything; what is not bytes matches no site.
    return bytes(value).strip() if isinstance(value, (bytes, bytearray, memoryview)) else b"?"


#: Header names seen, and whether each is a spelling of HEADER. Producers use few names; foreign
#: ones shall not fill the memory.
_SPELLINGS: dict[Any, bool] = {}
_MAX_SPELLINGS = 1024


def _is_site_header(name: Any) -> bool:
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    found = isinstance(text, str) and len(text) <= 64 and header_key(text) == HEADER
    if isinstance(name, str) and len(name) <= 64 and len(_SPELLINGS) < _MAX_SPELLINGS:
        _SPELLINGS[name] = found
    return found
