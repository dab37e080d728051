"""Names in the lake: ``events/service=…/date=…/endpoint=…/<topic>-<region>-<partition>-<range>``.

Partition values are slugs that every engine reads alike: other characters come back changed from
some of them, and a value that looks like a number, a date or a null changes its type. The true
values stand in the file's own columns.
"""

from __future__ import annotations

import hashlib
import re
from datetime import date

#: Everything under this folder is a finished Parquet file; nothing else may lie there.
EVENTS = "events"

#: Partition keys in their order; never the name of a column inside the file.
KEYS = ("service", "date", "endpoint")

#: Longest slug, in characters.
MAX_SLUG = 64

# No capitals: on a disk that does not tell Iac from iac, two values would share a folder, and their
# files names. No dot at the end: some disks drop it.
_SLUG = re.compile(r"[a-z](?:[a-z0-9._-]*[a-z0-9_-])?\Z")
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
# Engines take these for a value of another type, or for the lack of one.
_RESERVED = frozenset(
    {
        *("null", "none", "nan", "nat", "na", "inf", "infinity", "true", "false"),
        *("epoch", "now", "today", "tomorrow", "yesterday"),
    }
)
_HASH_CHARACTERS = 8


def slug(value: str) -> str:
    """Return `value` as a partition value; unaltered when it is one, else with a short hash.

    Two different values never give the same slug, nor slugs that differ by case alone, short of a
    hash collision; and that would put two services into one folder, no more.
    """
    if (
        _SLUG.match(value)
        and len(value) <= MAX_SLUG
        and value not in _RESERVED
        and not _looks_hashed(value)
    ):
        return value
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    stem = _OTHER.sub("-", value).strip("-._")
    if not stem[:1].isalpha():
        stem = f"v-{stem}" if stem else "v"
    stem = stem[: MAX_SLUG - _HASH_CHARACTERS - 2].rstrip("-._")
    return f"{stem}--{digest[:_HASH_CHARACTERS]}"


def _looks_hashed(value: str) -> bool:
    # Such a value as it stands could be the slug of another one.
    return re.search(r"--[0-9a-f]{8}\Z", value) is not None


def endpoint_slug(endpoint_name: str) -> str:
    """The slug of an endpoint: its first path segment, ``iac`` for ``iac/v1/inventory``."""
    return slug(endpoint_name.strip("/").partition("/")[0])


def range_stem(topic: str, region: str, partition: int, start: int, end: int) -> str:
    """Names the files of the range [`start`, `end`) of one partition; no extension."""
    # A topic's characters are those of a slug, so this needs no escaping.
    return f"{topic}-{region}-{partition}-{start}-{end}"


def event_path(service: str, day: date, endpoint: str, stem: str) -> str:
    """Path of one file inside its bucket; `service` and `endpoint` are slugs."""
    return f"{EVENTS}/service={service}/date={day.isoformat()}/endpoint={endpoint}/{stem}.parquet"
