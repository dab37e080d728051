"""The publisher's work inside a worker of the capture tier: DELIVERY = "kafka" skips the HTTP hop.

A batch takes the same way as one that came over HTTP: validated, routed, framed, and appended to
the primary region, else the secondary, else this host's spool, which is drained when a region is
back. What differs is who vouches for the sender: there is no signature, as there is nobody between.
"""

from __future__ import annotations

import json
import logging
import time

from audit_logging.batch import Batch
from audit_logging.conf import LoggingSettings
from audit_logging.conf import conf as logging_conf
from audit_logging.exceptions import BatchUnreadable, Declined, RetryLater
from audit_logging.fitting import fit_batch
from audit_logging.outcome import Delivered, Refusal

from . import routing
from .authentication import Sender
from .conf import conf
from .identity.allowed import EVERY
from .intake import RETRY_AFTER, error_of, problem_of, take

logger = logging.getLogger(__name__)


class EventLog:
    """Appends batches to the event log; one per process, and light until its first batch.

    :param options: of the service that captured the events.
    """

    def __init__(self, options: LoggingSettings = logging_conf) -> None:
        self._options = options

    def send(self, batch: Batch) -> Delivered:
        """Make one batch durable.

        :raises RetryLater: no place takes events now, or topic routes were not read even once.
        :raises Declined: something failed that ought not to.
        :raises BatchUnreadable: its bytes are damaged.
        """
        if not routing.known():
            # They wait where they are, rather than go where nobody looks for them.
            raise RetryLater("Topic routes could not be read from the database yet.", RETRY_AFTER)
        batch = fit_batch(batch, conf.MAX_EVENT_BYTES)
        lines = batch.lines()
        # This very process made the events: there is nobody between, and no list to be in.
        sender = Sender(self._options.CONSUMER_ID, verified=True, services=EVERY, callers=EVERY)
        try:
            http = routing.http_headers({}, sender.consumer_id)
            events = [line.encode() for line in lines]
            results = take(events, http, sender, time.time_ns() // 1000)
        except BatchUnreadable:
            raise
        except Exception as error:
            logger.exception("a batch could not be appended to the event log")
            raise Declined(f"the event log failed: {error}", by_content=True) from error
        delivered = Delivered()
        for line, result in zip(lines, results, strict=True):
            outcome = result.outcome
            if outcome.status != "rejected":
                delivered.stored[outcome.status] = delivered.stored.get(outcome.status, 0) + 1
            elif outcome.retryable:
                delivered.again.append(line)
            else:
                reason = json.dumps(error_of(outcome))
                delivered.refused.append(Refusal(line, reason, problem_of(outcome).status))
        if results and len(delivered.again) == len(results):
            raise RetryLater(problem_of(results[0].outcome).detail, RETRY_AFTER)
        return delivered
