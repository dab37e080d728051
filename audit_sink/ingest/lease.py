"""A claim's sign of life, given beside the work: a short lease outlasts a slow bucket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, connections, router

from ..conf import conf
from ..exceptions import ClaimLost
from ..models import Batch
from . import Clock, claims

logger = logging.getLogger(__name__)

#: Signs of life within one lease.
_PER_LEASE = 3


@contextmanager
def kept(batch: Batch, clock: Clock) -> Iterator[None]:
    """Renew the claim of `batch` until the block ends, however long one call in it takes.

    A process that is killed or stopped gives no more signs: its claim is free within a lease. One
    whose claim was taken over meanwhile is told by the ledger, as before.
    """
    over = threading.Event()
    # Most batches are done before the first sign is due: the thread then only waits.
    thread = threading.Thread(
        target=_renew_until, args=(over, batch, clock), name=f"lease {batch.pk}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _renew_until(over: threading.Event, batch: Batch, clock: Clock) -> None:
    try:
        while not over.wait(conf.LEASE_SECONDS / _PER_LEASE):
            try:
                claims.renew(batch, now=clock())
            except ClaimLost:
                return
            except DatabaseError as error:
                # The next sign may come through; the work itself meets the same database.
                logger.warning("%s: its claim could not be renewed: %s", batch, error)
    finally:
        # A connection belongs to the thread that opened it.
        connections[router.db_for_write(Batch)].close()
