"""One row per request_id of a service: the first batch to record it in the ledger keeps its row.

The ids of a batch are recorded in one statement, in the transaction that plans the batch. Two
batches that race for an id, of two partitions or two regions, meet in the primary key: one of them
gets it. Redoing a range finds the ids under its own name, and so keeps the same rows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from django.db import connections, router

from ..conf import conf
from ..models import Batch, SeenRequest

#: Bytes of a key.
KEY_BYTES = 16

_INSERT = "INSERT INTO {table} (key, batch_id) VALUES (%s, %s) ON CONFLICT DO NOTHING"
# PostgreSQL takes all keys as one value: a parameter for each costs more than the rest of a
# record's way into the lake.
_INSERT_JOINED = (
    "INSERT INTO {table} (key, batch_id)"
    " SELECT substring(joined.keys FROM n * {size} + 1 FOR {size}), %s"
    " FROM (SELECT %s::bytea AS keys) AS joined, generate_series(0, %s) AS n"
    " ON CONFLICT DO NOTHING"
)


def request_keys(
    sink: str, request_ids: Sequence[str], service_names: Sequence[str]
) -> list[bytes]:
    """What the ledger knows each event of `sink` by: KEY_BYTES bytes.

    The service is a part of it. Services that hand one id on to each other are stored each, and
    none can make another's events look like duplicates.
    """
    # A hash, because an id may be any string, and the ledger must stay small. 128 bits of a
    # cryptographic hash do not collide. The length keeps two services' texts apart.
    prefixes: dict[str, bytes] = {}
    for service in set(service_names):
        name = service.encode("utf-8", "surrogatepass")
        prefixes[service] = b"%s\0%d\0%s" % (sink.encode(), len(name), name)
    blake2b = hashlib.blake2b
    return [
        blake2b(
            prefixes[service] + request_id.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES
        ).digest()
        for request_id, service in zip(request_ids, service_names, strict=True)
    ]


def take_ownership(batch: Batch, keys: Sequence[bytes]) -> list[bool]:
    """Say for each key, in order, whether its row is this batch's to keep; call in a transaction.

    Of equal keys in `keys` the first is kept.
    """
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    # In one order everywhere, so that two batches with the same ids cannot deadlock.
    wanted = sorted(first)
    owned = _record(batch, wanted)
    if owned is None and len(wanted) == len(keys):
        return [True] * len(keys)
    keep = [False] * len(keys)
    for key, index in first.items():
        keep[index] = owned is None or key in owned
    return keep


def _record(batch: Batch, keys: Sequence[bytes]) -> set[bytes] | None:
    """Insert the keys that are free; return those this batch owns, or None for all of `keys`."""
    if not keys:
        return set()
    connection = connections[router.db_for_write(SeenRequest)]
    table = connection.ops.quote_name(SeenRequest._meta.db_table)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                _INSERT_JOINED.format(table=table, size=KEY_BYTES),
                (batch.pk, b"".join(keys), len(keys) - 1),
            )
        else:
            cursor.executemany(_INSERT.format(table=table), [(key, batch.pk) for key in keys])
        if cursor.rowcount == len(keys):
            return None
    mine = SeenRequest.objects.filter(batch=batch).values_list("key", flat=True)
    return {bytes(key) for key in mine.iterator(chunk_size=5000)}


def prune(*, clock: Callable[[], float] = time.time) -> int:
    """Forget the ids of batches that were done more than DEDUP_DAYS ago; return how many."""
    cutoff = datetime.fromtimestamp(clock(), UTC) - timedelta(days=conf.DEDUP_DAYS)
    old = Batch.objects.filter(state=Batch.State.DONE, done_at__lt=cutoff)
    return SeenRequest.objects.filter(batch__in=old).delete()[0]
