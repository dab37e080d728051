"""No secret on the screen: what the doctor prints is searched for every one that it knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from django.conf import settings

from ..conf import conf

_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s]*@", re.IGNORECASE)
#: Shorter ones would black out ordinary words; nobody is protected by them.
_SHORTEST = 4
_sources: list[Callable[[], Iterable[str]]] = []


def secrets_from(source: Callable[[], Iterable[str]]) -> Callable[[], Iterable[str]]:
    """Register a function that returns secrets; it may raise."""
    _sources.append(source)
    return source


def scrub(text: str) -> str:
    """Return `text` without secrets, and addresses without user and password."""
    text = _USER.sub(r"\1", text)
    for secret in _known():
        text = text.replace(secret, "***")
    return text


def _known() -> list[str]:
    found: set[str] = set()
    for source in _sources:
        try:
            found.update(source())
        except Exception:  # noqa: BLE001, S112 - a file that cannot be read holds nothing to hide
            continue
    found |= {form for secret in found for form in (quote(secret, safe=""), unquote(secret))}
    # The longest first: one may hold another.
    return sorted((each for each in found if len(each) >= _SHORTEST), key=len, reverse=True)


def password_of(url: Any) -> str:
    """The password in an address, or ""."""
    try:
        return urlsplit(str(url)).password or ""
    except ValueError:
        return ""


@secrets_from
def _of_django() -> Iterable[str]:
    yield str(settings.SECRET_KEY)
    for database in settings.DATABASES.values():
        yield str(database.get("PASSWORD") or "")
    for url in (getattr(settings, "CELERY_BROKER_URL", ""), conf.BROKER_URL):
        yield password_of(url)
